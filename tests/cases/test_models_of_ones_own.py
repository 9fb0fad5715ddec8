"""Models of a user's own, from the command line: what DP refuses, and what a federation makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner, Result

from fedsim.cli.main import main
from fedsim.core.files import read_arrays
from fedsim.core.run_directory import RunDirectory

HERE = Path(__file__).parent


def scenario(folder: Path, net: str, **sections: object) -> Path:
    """Write a scenario of small clinics that train ``net`` of `nets`."""
    document: dict[str, object] = {
        "data": {
            "path": str(HERE / "clinics.csv"),
            "label": "outcome",
            "party": "clinic",
            "categories": {"sex": ["F", "M"], "ward": ["med", "surg", "icu"], "outcome": ["0", "1"]},
        },
        "model": {"name": f"nets:{net}", "folder": str(HERE)},
        "federation": {"rounds": 2},
        "training": {"epochs": 1, "lr": 0.05},
        "adversary": {"attacks": ["loss", "update-cosine"]},
    }
    path = folder / "clinics.toml"
    path.write_text(tomli_w.dumps(document | sections))
    return path


def fedsim(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in arguments], catch_exceptions=False)


def finished(folder: Path, net: str, **sections: object) -> RunDirectory:
    result = fedsim("run", scenario(folder, net, **sections), "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return RunDirectory.open(folder / "run")


@pytest.mark.parametrize(
    ("net", "layer", "word"),
    [
        ("running", "0", "'mean'"),
        ("bounded_words", "words", "max_norm"),
        ("attending", "positions", "one record"),
    ],
)
def test_what_is_refused_under_dp_is_refused_by_the_check(
    tmp_path: Path, net: str, layer: str, word: str
) -> None:
    result = fedsim("scenario", "check", scenario(tmp_path, net, dp={"all": {"epsilon": 1}}))
    assert result.exit_code == 2
    assert f"layer '{layer}'" in result.stderr and word in result.stderr
    assert result.stderr.count("fedsim: ") == 1


def test_state_that_is_no_floating_point_stays_as_it_was_made(tmp_path: Path) -> None:
    run = finished(tmp_path, "permuted", federation={"rounds": 3, "strategy": "fedavg"})
    assert set(run.read_model(0, 3)) == {"out.weight", "out.bias"}, "nothing to average, or to move"
    assert np.isfinite(run.table("rounds")["loss"]).all()


@pytest.mark.parametrize(
    ("defence", "most"),
    [({"clip_update": 0.001}, 0.00101), ({"sparsify": 0.02}, None), ({"quantise": 1}, None)],
)
def test_tied_weights_do_not_undo_what_shapes_an_update(
    tmp_path: Path, defence: dict, most: float | None
) -> None:
    run = finished(tmp_path, "tied", federation={"rounds": 1}, defences={"all": defence})
    before = run.read_model(0, 0)
    after = read_arrays(run.observations(0) / "reply-001.safetensors")
    assert "down.weight" not in before, "a tied weight is sent once"
    update = {name: after[name] - before[name] for name in before}
    if most is not None:
        assert run.table("rounds")["update_norm"].max() <= most
        length = np.sqrt(sum(np.sum(array.astype(np.float64) ** 2) for array in update.values()))
        assert length <= most
    elif "sparsify" in defence:
        sent = sum(np.count_nonzero(array) for array in update.values())
        assert sent <= np.ceil(0.02 * sum(array.size for array in update.values()))
    else:
        for array in update.values():  # one bit: 0, or ± the largest entry, but for float32's rounding
            sizes = np.abs(array)
            assert ((sizes < 1e-6) | (np.abs(sizes - sizes.max()) < 1e-6)).all()


def test_a_delta_of_one_over_n_or_more_is_said(tmp_path: Path) -> None:
    """At δ ≥ 1/n a mechanism that publishes one whole record is (0, δ)-DP."""
    path = scenario(tmp_path, "tied", model={"name": "logistic"}, dp={"all": {"epsilon": 8, "delta": 0.5}})
    result = fedsim("scenario", "check", path)
    assert result.exit_code == 0 and "δ = 0.5" in result.stderr and "1/n" in result.stderr
    run = fedsim("run", path, "--out", tmp_path / "run")
    assert run.exit_code == 0, run.output
    notices = json.loads((tmp_path / "run" / "manifest.json").read_text())["notices"]
    assert any("1/n" in notice for notice in notices)
    assert "1/n" in (tmp_path / "run" / "report.html").read_text()
