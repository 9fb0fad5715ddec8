"""Whose code a run executes: a person's own may hang, or take its process along."""

from __future__ import annotations

from fedsim.core.scenario.settings import Scenario


def runs_own_code(scenario: Scenario) -> bool:
    """Return whether a client runs a 'module:callable' of the person's own: a model or an attack."""
    return any(":" in name for name in (scenario.model.name, *scenario.adversary.attacks))
