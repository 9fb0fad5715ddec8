"""What the terminal says of protections, against the functions that account for them."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from support.runs import finished_run

from fedsim.core.privacy import gaussian
from fedsim.core.run_directory import RunDirectory
from fedsim.terminal import run_tables


def shown(run: RunDirectory) -> str:
    stream = io.StringIO()
    run_tables.show(run, Console(file=stream, width=400))
    return stream.getvalue()


def test_what_answers_cost_an_outsider_is_shown(tmp_path: Path) -> None:
    output = {"policy": "laplace", "epsilon": 0.25, "queries": 50}
    adversary = {"attacks": ["loss"], "observers": ["outsider", "participant"], "output": output}
    text = shown(finished_run(tmp_path, adversary=adversary))
    assert "an answer costs ε = 0.25" in text
    candidates = 40
    assert f"the {candidates} answers of" in text and f"cost ε = {candidates * 0.25:g} a game" in text


def test_no_cost_is_shown_where_none_is_stated(tmp_path: Path) -> None:
    adversary = {"attacks": ["loss"], "observers": ["outsider", "participant"]}
    assert "answer costs" not in shown(finished_run(tmp_path, adversary=adversary))


def test_a_partys_epsilon_under_central_dp_is_named_so(tmp_path: Path) -> None:
    federation = {"rounds": 2, "central_dp": {"noise_multiplier": 3.0, "delta": 1e-4}}
    text = shown(finished_run(tmp_path, federation=federation, adversary={"attacks": ["loss"]}))
    spent = gaussian.epsilon_of(1e-4, 3.0, 2)
    assert f"party-level ε = {spent:.3g}, δ = 1e-04: a promise about whole parties" in text
