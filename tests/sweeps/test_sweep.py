from __future__ import annotations

import math
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from support.runs import document, write_table

from fedsim.cli.main import main
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import parse
from fedsim.runs import play, prepare
from fedsim.sweeps import cells
from fedsim.sweeps.cells import Cell, Report
from fedsim.sweeps.file import FIXED
from fedsim.sweeps.points import Point, distinct, plan
from fedsim.sweeps.table import left_out, mean_over_games
from fedsim.terminal.live import Pace

together = pytest.mark.xdist_group("sweep")  # they share a sweep, which takes a while

ATTACKS = {"adversary": {"attacks": ["loss", "gap"]}}


def write_sweep(folder: Path, **sections: object) -> Path:
    """A sweep of two points over a tiny scenario, or whatever ``sections`` say."""
    (folder / "tiny.toml").write_text(tomli_w.dumps(document(folder, **ATTACKS)))
    base = {"scenarios": ["tiny.toml"], "headline": ["loss"], "axes": {"dp.all.epsilon": [4, math.inf]}}
    path = folder / "sweep.toml"
    path.write_text(tomli_w.dumps({key: value for key, value in (base | sections).items() if value}))
    return path


def fedsim(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def planned(path: Path, **more: Any) -> list[Point]:
    return plan(path, path.parent / "cells", **more)


def keys(path: Path) -> list[str]:
    return [point.cell.key for point in planned(path)]


# ------------------------------------------------------------------ end to end
LARGER = {
    "axes": {"dp.all.epsilon": [4, math.inf], "federation.rounds": [12, 30]},
    "set": {"games": 2, "training": {"epochs": 6}},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A sweep of four cells, and its table as it comes out when nothing happens."""
    path = write_sweep(tmp_path_factory.mktemp("undisturbed"), **LARGER)
    result = fedsim("sweep", path, "--out", path.parent / "out", "--workers", 2)
    assert result.exit_code == 0, result.output
    for word in ("4 points, 4 cells, 0 finished", "4/4", "dp.all.epsilon = 4.0", " s left", "sweep.parquet"):
        assert word in result.output, result.output
    return path, (path.parent / "out" / "sweep.parquet").read_bytes()


@together
def test_the_table_is_the_runs_own_tables(undisturbed: tuple[Path, bytes]) -> None:
    path, _ = undisturbed
    found = pd.read_parquet(path.parent / "out" / "sweep.parquet")
    assert list(found.columns[:5]) == ["cell", "scenario", "variant", "dp.all.epsilon", "federation.rounds"]
    assert found["dp.all.epsilon"].dtype == float and found["federation.rounds"].dtype.kind == "i"
    points = plan(path, path.parent / "out" / "cells")
    assert list(dict.fromkeys(found["cell"])) == [point.cell.key for point in points]
    for point in points:
        run = RunDirectory(point.cell.path)
        mine = found[found["cell"] == point.cell.key].reset_index(drop=True)
        assert set(mine["dp.all.epsilon"]) == {point.labels["dp.all.epsilon"]}
        leakage = run.table("leakage")
        same = mine[mine["kind"] == "leakage"][leakage.columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(same, leakage, check_dtype=False)
        rounds = run.table("rounds")
        last = rounds[rounds["round"] == point.labels["federation.rounds"]].set_index(["game", "party"])
        utility = mine[mine["kind"] == "utility"].set_index(["party", "metric", "game"])
        for party in ("all", "hospital-2"):
            values = last["accuracy"].xs(party, level="party")
            assert utility.loc[(party, "accuracy", "1"), "value"] == values[1]
            assert utility.loc[(party, "accuracy", "all"), "value"] == pytest.approx(values.mean())
        guarantee = mine[mine["kind"] == "guarantee"].set_index(["party", "metric"])["value"]
        assert guarantee["all", "epsilon"] == last["epsilon"].drop("all", level="party").max()
        assert math.isinf(guarantee["all", "epsilon"]) == math.isinf(point.labels["dp.all.epsilon"])
        assert (("all", "delta") in guarantee.index) == math.isfinite(point.labels["dp.all.epsilon"])


def test_an_attack_that_was_not_run_is_named_with_its_reason_and_how_often() -> None:
    rows = [
        {"cell": "c", "scenario": "s", "variant": variant, "kind": kind, "observer": "participant",
         "attack": attack, "world": world, "note": note}
        for variant, kind, attack, world, note in [
            ("none", "leakage", "lira", "all", ""),
            ("noise", "not run", "lira", "all", "shadows cannot follow it"),
            ("noise", "not run", "lira", "half", "shadows cannot follow it"),
            ("noise", "leakage", "loss", "all", ""),
        ]
    ]  # fmt: skip
    found = pd.DataFrame(rows).reindex(columns=["cell", "scenario", "variant", *FIXED])
    assert left_out(found) == ["'lira' was not run at 1 of 2 points: shadows cannot follow it"]


def test_a_sweep_says_which_attack_its_cells_could_not_run(tmp_path: Path) -> None:
    failing = "def attack(view, candidates, rng):\n    raise ValueError('nothing to go by')\n"
    (tmp_path / "broken.py").write_text(failing)
    attacks = {"adversary.attacks": ["loss", "broken:attack"]}
    path = write_sweep(tmp_path, axes={}, set=attacks)
    result = fedsim("sweep", path, "--out", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0, result.output
    sentence = "'attack' was not run at 1 of 1 points: ValueError: nothing to go by"
    assert sentence in " ".join(result.output.split())
    found = pd.read_parquet(tmp_path / "out" / "sweep.parquet")
    assert set(found.loc[found["kind"] == "not run", "attack"]) == {"attack"}


@together
def test_a_finished_sweep_runs_nothing_again_and_other_sweeps_share_its_cells(
    undisturbed: tuple[Path, bytes],
) -> None:
    path, table = undisturbed
    cells_folder = path.parent / "out" / "cells"
    before = {file: file.stat().st_mtime_ns for file in cells_folder.glob("*/manifest.json")}
    assert fedsim("sweep", path, "--out", path.parent / "out").exit_code == 0
    other = path.with_name("other.toml")
    variants = [{"name": "long", "set": {"federation.rounds": 30}}]
    other.write_text(
        tomli_w.dumps(
            {
                "scenarios": ["tiny.toml"],
                "headline": ["loss"],
                "variants": variants,
                "axes": {"dp.all.epsilon": ["off"]},
                **{"set": LARGER["set"]},
            }
        )
    )
    result = fedsim("sweep", other, "--out", path.parent / "other", "--cells", cells_folder)
    assert result.exit_code == 0 and "1 cells, 1 finished" in result.output
    assert {file: file.stat().st_mtime_ns for file in cells_folder.glob("*/manifest.json")} == before
    assert (path.parent / "out" / "sweep.parquet").read_bytes() == table
    shown = fedsim("sweep", path, "--out", path.parent / "out", "--show")
    assert shown.exit_code == 0 and "loss" in shown.output and "∞" in shown.output


def start(path: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedsim.cli", "sweep", str(path), "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list((out / "cells").glob("*.log")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@together
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes by Linux's /proc")
def test_killed_at_any_moment_and_run_again_it_gives_the_same_table(
    undisturbed: tuple[Path, bytes], tmp_path: Path
) -> None:
    path, table = undisturbed
    for attempt in range(3):
        process = start(path, tmp_path)
        delay = random.random() * 2
        time.sleep(delay)
        workers, asked = children(process), time.monotonic()
        process.send_signal(signal.SIGINT if attempt == 0 else signal.SIGKILL)
        output, _ = process.communicate(timeout=20)
        if process.returncode == 0:
            break  # it was quicker than the signal
        while any(map(alive, workers)) and time.monotonic() < asked + 10:
            time.sleep(0.02)
        assert not any(map(alive, workers)), f"a process outlived its parent, killed after {delay:.2f} s"
        if attempt == 0:
            assert process.returncode == 130 and "the same command goes on" in output, output
            assert "Traceback" not in output and time.monotonic() - asked < 5
    result = fedsim("sweep", path, "--out", tmp_path, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "sweep.parquet").read_bytes() == table


@together
@pytest.mark.slow
def test_ray_gives_the_same_table(undisturbed: tuple[Path, bytes], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    path, table = undisturbed
    result = fedsim("sweep", path, "--out", tmp_path, "--workers", 2, "--engine", "ray")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "sweep.parquet").read_bytes() == table


def test_an_address_without_a_cluster_is_refused_at_once() -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port"):
        with pytest.raises(InputError, match=f"--ray-address {address}: no Ray cluster answers there"):
            next(cells.on_ray([], 1, address))


# ------------------------------------------------------------------ failures
FRAGILE = """
import os, pathlib, torch
class Fragile(torch.nn.Linear):
    def forward(self, x):
        marker = pathlib.Path(r"{marker}")
        if self.training and marker.exists():
            if marker.read_text() == "die":
                os._exit(9)
            raise ValueError("a fault of its own")
        return super().forward(x.flatten(1))
def build(input_shape, classes):
    return Fragile(input_shape[0], classes)
"""


def test_a_cell_that_fails_is_named_and_tried_again_while_the_others_go_on(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [{"name": "fine"}]
    for how in ("raise", "die"):
        folder = tmp_path / how
        folder.mkdir()
        (folder / "marker").write_text(how)
        (folder / "fragile.py").write_text(FRAGILE.format(marker=folder / "marker"))
        model = {"name": "fragile:build", "folder": str(folder)}
        variants.insert(0, {"name": how, "set": {"model": model}})
    path = write_sweep(tmp_path, axes=None, variants=variants)
    result = fedsim("sweep", path, "--out", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 1, result.output
    assert "2 of 3 cells failed, the first being tiny, die: round 1 ended with 0 usable" in result.output
    states = pd.read_parquet(tmp_path / "out" / "cells.parquet").set_index("variant")
    assert states["state"].to_dict() == {"die": "failed", "raise": "failed", "fine": "done"}
    assert "a fault of its own" in states["reason"]["raise"]
    assert "its process ended with code 9" in states["reason"]["die"]
    assert set(pd.read_parquet(tmp_path / "out" / "sweep.parquet")["variant"]) == {"fine"}
    for how in ("raise", "die"):
        (tmp_path / how / "marker").unlink()
    assert fedsim("sweep", path, "--out", tmp_path / "out", "--workers", 1).exit_code == 0
    assert set(pd.read_parquet(tmp_path / "out" / "sweep.parquet")["variant"]) == {"fine", "raise", "die"}


def test_a_bug_leaves_its_trace_in_the_cells_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = planned(write_sweep(tmp_path))[0].cell
    assert "all nodes must share" in cells.attempt(cell).reason
    cell.folder.mkdir()
    monkeypatch.setattr(play, "federate", lambda run: 1 / 0)
    report = cells.attempt(cell)
    assert report.state == "failed" and report.reason.startswith("ZeroDivisionError: division by zero")
    assert "in run" in (cell.folder / f"{cell.key}.log").read_text()


def test_records_that_changed_after_the_check_are_noticed(tmp_path: Path) -> None:
    cell = planned(write_sweep(tmp_path))[0].cell
    cell.folder.mkdir()
    write_table(tmp_path / "patients.csv", seed=1)
    assert "changed since the sweep was started" in cells.attempt(cell).reason


# ---------------------------------------------------------------------- keys
def key_of(folder: Path, **sections: Any) -> str:
    return cells.key_of(prepare.check(parse(document(folder, **sections)), None))


def test_the_key_follows_what_decides_the_result_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = key_of(tmp_path)
    assert base == key_of(tmp_path, name="other")
    assert base == key_of(tmp_path, dp={"all": "off"}) == key_of(tmp_path, dp={"hospital-2": "off"})
    assert base == key_of(tmp_path, adversary={"party": "hospital-1"}), "the default, spelt out"
    dp = {"epsilon": 8.0}
    private = [key_of(tmp_path, dp={name: dp}) for name in ("all", "hospital-1", "hospital-2")]
    everyone = key_of(tmp_path, dp={f"hospital-{k}": dp for k in (1, 2, 3)})
    assert everyone == private[0]
    others = [
        key_of(tmp_path, seed=4),
        key_of(tmp_path, games=2),
        key_of(tmp_path, federation={"rounds": 4}),
        key_of(tmp_path, adversary={"attacks": ["loss"]}),
        key_of(tmp_path, n=61),
    ]
    assert len({base, *private, *others}) == 4 + len(others)
    monkeypatch.setattr(cells, "code_version", lambda: "another")
    assert key_of(tmp_path) != base


def test_the_key_follows_the_code_of_a_persons_own_model(tmp_path: Path) -> None:
    text = FRAGILE.format(marker=tmp_path / "none")
    (tmp_path / "fragile.py").write_text(text)
    model = {"name": "fragile:build", "folder": str(tmp_path)}
    before = key_of(tmp_path, model=model)
    (tmp_path / "fragile.py").write_text(text + "\n# changed\n")
    assert key_of(tmp_path, model=model) != before


def test_points_of_the_same_content_share_a_cell(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, axes={"dp.all.epsilon": [math.inf, "off", 4]})
    points = planned(path)
    assert [point.labels["dp.all.epsilon"] for point in points] == [math.inf, math.inf, 4]
    assert len(distinct(points)) == 2


# ----------------------------------------------------------------- sweep files
def test_settings_come_in_order_and_keep_what_they_do_not_name(tmp_path: Path) -> None:
    dp = {"dp.all": {"noise_multiplier": 2.0, "clipping_norm": 0.5}}
    variants = [
        {"name": "own", "set": {"dp.hospital-2.epsilon": 3, "seed": 9}},
        {"name": "none", "set": {"dp.all.epsilon": "inf"}, "scenarios": ["tiny"]},
    ]
    path = write_sweep(
        tmp_path, set={**dp, "seed": 5}, variants=variants, axes={"model": {"hidden": [[4], [4, 4]]}}
    )
    points = planned(path)
    assert [point.name for point in points] == [
        "tiny, own, model.hidden = [4]",
        "tiny, own, model.hidden = [4, 4]",
        "tiny, none, model.hidden = [4]",
        "tiny, none, model.hidden = [4, 4]",
    ]
    own, none = points[1].cell.scenario, points[2].cell.scenario
    assert own.seed == 9 and none.seed == 5 and own.model.hidden == [4, 4]
    mine, others = own.dp_of("hospital-2"), own.dp_of("hospital-1")
    assert mine is not None and (mine.epsilon, mine.noise_multiplier, mine.clipping_norm) == (3, None, 0.5)
    assert others is not None and others.noise_multiplier == 2.0 and none.dp_of("hospital-1") is None


def test_overrides_hold_everywhere(tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path, set={"games": 5}, variants=[{"name": "a", "set": {"seed": 1}}, {"name": "b"}]
    )
    points = planned(path, overrides=["games=2", "seed=8"])
    assert {(point.cell.scenario.games, point.cell.scenario.seed) for point in points} == {(2, 8)}
    with pytest.raises(InputError, match=r"'dp' of --set and the axis 'dp\.all\.epsilon' set the same"):
        planned(path, overrides=["dp=off"])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"axis": {"seed": [1]}}, "unknown key 'axis'; did you mean 'axes'?"),
    "unknown axis": ({"axes": {"federation.round": [1]}}, "federation.round = 1: unknown key 'round' in"),
    "its suggestion": ({"axes": {"federation.round": [1]}}, "did you mean 'rounds'?"),
    "empty axis": ({"axes": {"seed": []}}, "axes.seed = []: List should have at least 1 item"),
    "axis no list": (
        {"axes": {"federation": {"rounds": 3}}},
        "axes.federation.rounds = 3: it should be a valid",
    ),
    "wrong value": ({"axes": {"dp.all.epsilon": [8, -1]}}, "dp.all.epsilon = -1: dp.all.epsilon = -1"),
    "clash": (
        {"set": {"dp": {"all": "off"}}},
        "'dp.all' of [set] and the axis 'dp.all.epsilon' set the same",
    ),
    "name": ({"axes": {"name": ["a"]}}, "axes.name: a scenario's 'name' decides nothing"),
    "no scenarios": ({"scenarios": None}, "scenarios"),
    "no such file": ({"scenarios": ["tny.toml"]}, "there is no file"),
    "near file": ({"scenarios": ["tny.toml"]}, "did you mean 'tiny.toml'?"),
    "twice": ({"scenarios": ["tiny.toml", "tiny.toml"]}, "two are named 'tiny'"),
    "headline": ({"headline": ["lyra"]}, "unknown attack 'lyra'; did you mean 'lira'?"),
    "headline not run": (
        {"headline": ["lira"]},
        "no attack of headline = ['lira'] is run; it runs gap, loss",
    ),
    "variant's scenario": ({"variants": [{"name": "a", "scenarios": ["tin"]}]}, "did you mean 'tiny'?"),
    "same variants": ({"variants": [{"name": "a"}, {"name": "a"}]}, "2 are named 'a'"),
    "variant key": ({"variants": [{"name": "a", "sett": {}}]}, "unknown key 'sett' in [variants.0]; did you"),
    "party": ({"axes": {"dp.hospital-9.epsilon": [1]}}, "dp.hospital-9: no such party; did you mean"),
    "section": ({"set": {"seed.x": 1}}, "'seed' is a value, not a section"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_one_sentence_before_any_work(tmp_path: Path, name: str) -> None:
    sections, sentence = WRONG[name]
    path = write_sweep(tmp_path, **sections)
    result = fedsim("sweep", path, "--out", tmp_path / "out")
    said = result.output.strip().splitlines()[-1]
    assert result.exit_code == 2 and sentence in said and str(path) in said, result.output
    assert not (tmp_path / "out").exists()


def test_unreadable_files_are_one_sentence(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    (tmp_path / "tiny.toml").write_text("seed = ")
    with pytest.raises(InputError, match=r"tiny\.toml: not valid TOML"):
        planned(path)
    path.write_text("[axes")
    with pytest.raises(InputError, match=r"sweep\.toml: not valid TOML"):
        planned(path)
    with pytest.raises(InputError, match="there is no such file"):
        planned(tmp_path / "none.toml")
    result = fedsim("sweep", write_sweep(tmp_path), "--engine", "rai")
    assert result.exit_code == 2 and "did you mean 'ray'" in result.output


# ------------------------------------------------------------------- figures
@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_the_mean_over_games_has_students_interval(values: list[float]) -> None:
    from scipy import stats

    mean, low, high = mean_over_games(values)
    assert mean == pytest.approx(sum(values) / len(values))
    spread = stats.sem(values)
    if spread > 0:
        expected = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=spread)
        assert (low, high) == pytest.approx((max(0, expected[0]), min(1, expected[1])))
    assert low <= mean + 1e-12 and mean <= high + 1e-12


def test_one_game_has_no_interval() -> None:
    mean, low, high = mean_over_games([0.7, math.nan])
    assert mean == 0.7 and math.isnan(low) and math.isnan(high)


def test_the_time_left_follows_the_cells_of_the_same_scenario(tmp_path: Path) -> None:
    names = ["a", "a", "a", "b", "b"]
    base = parse(document(tmp_path))
    some = [
        Cell(str(k), base.model_copy(update={"name": name}), tmp_path / "none", None)
        for k, name in enumerate(names)
    ]
    pace = Pace(some, workers=2)
    for key, at in (("0", 0.0), ("3", 0.0)):
        pace.take(Report(key, "running"), at)
    assert pace.left(5.0) is None and pace.words(5.0) == ""
    pace.take(Report("0", "done"), 10.0)
    assert pace.left(10.0) == pytest.approx((2 * 10 + 10 + 0) / 2)  # two of a, one of b, and b's rest
    pace.take(Report("3", "failed", "why"), 20.0)
    assert pace.left(20.0) == pytest.approx(30 / 2), "how long a failure took says nothing"
    pace.take(Report("1", "running"), 20.0)
    assert pace.left(24.0) == pytest.approx((6 + 10 + 10) / 2) and pace.words(24.0) == "13 s left"
    for key in ("1", "2", "4"):
        pace.take(Report(key, "running"), 30.0)
        pace.take(Report(key, "done"), 30.0)
    assert pace.left(30.0) == 0 and pace.words(30.0) == ""


def test_a_worker_ends_with_the_sweep(tmp_path: Path) -> None:
    """Closing the iterator in the middle of a cell ends its process at once."""
    cell = planned(write_sweep(tmp_path, set={"federation.rounds": 2000}))[1].cell
    cell.folder.mkdir()
    reports = cells.in_processes([cell], 1)
    assert next(reports) == Report(cell.key, "running")
    pids = [child.pid for child in multiprocessing.active_children() if child.pid]
    reports.close()
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert pids and not any(map(alive, pids)) and not cell.finished
