"""Whose code a run executes: a person's own may hang, or take its process along."""

from __future__ import annotations

from clients.isolation import ISOLATE
from fedsim.core import trust
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.settings import Scenario


def runs_own_code(scenario: Scenario) -> bool:
    """Return whether a client runs a 'module:callable' of the person's own: a model or an attack."""
    return any(":" in name for name in (scenario.model.name, *scenario.adversary.attacks))


def isolation(scenario: Scenario) -> dict[str, str]:
    """Return the variable by which each message has a process of its own, where a person's code runs."""
    return {ISOLATE: "1"} if runs_own_code(scenario) else {}


def environment(run: RunDirectory) -> dict[str, str]:
    """Return the variables by which processes of Flower's run the run's own code as this process would."""
    return isolation(run.scenario) | trust.passed_on(run.path, run.scenario)
