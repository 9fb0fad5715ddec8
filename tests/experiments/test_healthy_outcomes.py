"""The ten steps, short: everything is asked over HTTP, and the page says what was found."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

FOLDER = Path(__file__).parents[2] / "experiments" / "healthy_outcomes"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("healthy_outcomes", "registry", "defences"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import healthy_outcomes

    return healthy_outcomes


def test_the_registry_is_made_and_repeats(study) -> None:  # type: ignore[no-untyped-def]
    first, again = (study.registry.registry(50, seed=4) for _ in range(2))
    assert first.equals(again) and set(first["clinic"]) == set(study.registry.CLINICS)
    assert first[list(study.registry.VALUES)].stack().between(0, 100).all()


def test_every_defence_is_a_scenario(study) -> None:  # type: ignore[no-untyped-def]
    from fedsim.core.scenario.protection import OutputPolicy

    document = study.registry.scenario("a.csv", "b.csv")
    names = [defence.name for defence in study.DEFENCES]
    assert len(set(names)) == len(names)
    for defence in study.DEFENCES:
        study.parse(document | defence.changes)
        OutputPolicy(**defence.policy)


@pytest.mark.slow
def test_ten_steps_and_two_defences_make_a_page(
    study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    small = study.ShadowSettings(shadows=16, model=study.ModelSettings(hidden=[8]), ages=(1, 2))
    monkeypatch.setattr(study, "SHADOWS", small)
    monkeypatch.setattr(study, "PATIENTS", 240)
    options = ["--quick", "--out", str(tmp_path), "--only", "labels", "--only", "a budget", "--workers", "1"]
    result = CliRunner().invoke(study.main, options, catch_exceptions=False)
    assert result.exit_code == 0
    page = (tmp_path / "results" / "healthy_outcomes.md").read_text()
    assert [line.split(".")[0] for line in page.splitlines() if re.match(r"\d+\. ", line)] == [
        str(number) for number in range(1, 11)
    ]
    rows = [line for line in page.splitlines() if line.startswith("| ") and "(" in line]
    assert [row.split(" | ")[0] for row in rows] == [
        "| nothing",
        "| labels alone",
        "| a budget of 120 queries",
    ]
    assert (tmp_path / "results" / "healthy_outcomes.svg").read_text().startswith("<svg")
