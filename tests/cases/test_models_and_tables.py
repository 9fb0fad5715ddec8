"""Models that let private data out, tables that were misread: each of `inputs/a-…` gives what is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.cases import OUTCOME, checked, enter, fedsim, finished, refused, start

from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import load
from fedsim.runs.prepare import check, read_records


@pytest.fixture(autouse=True)
def _in_the_case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [folder] = [marker.args[0] for marker in request.node.iter_markers("case")]
    monkeypatch.chdir(enter(folder, tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


def features() -> pd.DataFrame:
    """What the case's table becomes: a column per feature."""
    encoded = read_records(load(Path("s.toml")), None)
    return pd.DataFrame(encoded.features, columns=list(encoded.feature_names))


def unscaled(feature: pd.Series, low: float, high: float) -> np.ndarray:
    """Undo the scaling of [low, high] to [-2, 2]."""
    return np.asarray((feature + 2) / 4 * (high - low) + low)


@pytest.mark.case("a-01-dp-buffer-without-parameters")
def test_a_01_dp_buffer_without_parameters() -> None:
    refused(fedsim("run", "s.toml"), "under DP")
    for command in (["scenario", "check"], ["run"]):
        refused(fedsim(*command, "s.toml", "--set", OUTCOME), "layer 'norm'", "'mean'")
    assert not Path("runs").exists()


@pytest.mark.case("a-02-dp-embedding-max-norm")
def test_a_02_dp_embedding_max_norm() -> None:
    for command in (["scenario", "check"], ["run"]):
        refused(fedsim(*command, "s.toml", "--set", OUTCOME), "layer '", "max_norm")


@pytest.mark.case("a-03-number-spellings-german-integers")
def test_a_03_number_spellings_german_integers() -> None:
    raw = pd.read_csv("d.csv", sep=";", dtype=str)["balance"]
    assert raw.str.contains(r"^\d\.\d{3}$").any() and raw.str.contains(r"^\d{3}$").any()
    encoded = read_records(load(Path("s.toml"), ["data.bounds.balance=[0, 3000]"]), None)
    column = pd.Series(encoded.features[:, encoded.feature_names.index("balance")])
    expected = raw.str.replace(".", "").astype(float)
    np.testing.assert_allclose(np.sort(unscaled(column, 0, 3000)), np.sort(expected), atol=0.01)
    assert "'balance': decimal comma" in checked("s.toml")


@pytest.mark.case("a-05-number-spellings-decimal-comma-3")
def test_a_05_number_spellings_decimal_comma_3() -> None:
    expected = pd.read_csv("d.csv", decimal=",")["creat"]
    assert expected.max() < 5
    np.testing.assert_allclose(np.sort(unscaled(features()["creat"], 0, 5)), np.sort(expected), atol=1e-4)
    assert "creat: decimal comma" in checked("s.toml")


@pytest.mark.case("a-07-number-column-becomes-categories")
@pytest.mark.parametrize("odd", [".", "#DIV/0!", "inf", "na", "<0.5", "k.A."])
def test_a_07_number_column_becomes_categories(odd: str) -> None:
    table = pd.read_csv("d.csv", dtype=str)
    table.replace({"hb": "."}, odd).to_csv("d.csv", index=False)
    said = checked("s.toml")
    assert "hb number" in said and "hb=" not in said
    if odd != "na":  # one of the usual spellings of 'missing'
        assert f"value(s) of 'hb' are not finite numbers and count as missing: '{odd}' (" in said


@pytest.mark.case("a-07-number-column-becomes-categories")
@pytest.mark.parametrize("form", ["%-m/%d/%Y", "%d.%m.%Y", "%Y-%m-%d"])
def test_a_07_neither_do_dates(form: str) -> None:
    table = pd.read_csv("d.csv", dtype=str)
    after = np.random.default_rng(0).integers(0, 400, len(table))
    days = pd.Timestamp("2021-01-01") + pd.to_timedelta(after, unit="D")
    table.assign(hb=days.strftime(form)).to_csv("d.csv", index=False)
    said = checked("s.toml")
    assert " hb date " in said and "1970" in said


@pytest.mark.case("a-09-row-number-is-a-feature")
def test_a_09_row_number_is_a_feature() -> None:
    said = checked("s.toml")
    assert "'Unnamed: 0' was dropped: it numbers the records" in said
    records = pd.read_csv("d.csv").drop(columns="Unnamed: 0")
    encoded = check(load(Path("s.toml")), None).encoded
    assert len(records) == 120 and len(encoded) == 58, "60 twins, less those set aside as public"
    assert len(np.unique(encoded.features, axis=0)) == len(encoded)
    assert "duplicate record(s) were removed" in said


@pytest.mark.case("a-10-party-names-lost")
def test_a_10_party_names_lost() -> None:
    names = {"北京医院", "上海医院", "广州医院"}
    run = finished("s.toml", "--set", OUTCOME, "--set", "adversary.party=广州医院", "--dp", "北京医院=8")
    assert set(run.manifest["parties"]) == names and run.manifest["adversary"] == "广州医院"
    assert set(run.manifest["dp"]) == {"北京医院"}
    shown, page = fedsim("show", "run", "--all").output, (run.path / "report.html").read_text("utf-8")
    assert all(name in page for name in names)
    assert all(name in shown for name in names - {"广州医院"})


@pytest.mark.case("a-11-integer-buffers")
def test_a_11_integer_buffers() -> None:
    """FedAvg's is among `test_models_of_ones_own`."""
    run = finished("s.toml", "--set", "federation.rounds=2")
    model = run.read_model(0, 2)
    assert "perm" not in model and {"fc.weight", "fc.bias"} == set(model), "a constant is not exchanged"
    assert np.isfinite(run.table("rounds")["loss"]).all()


@pytest.mark.case("a-12-tied-weights-undo-update-defence")
def test_a_12_tied_weights_undo_update_defence() -> None:
    run = finished("s.toml")
    norms = run.table("rounds")["update_norm"].dropna()
    assert len(norms) and norms.max() <= 0.001 * (1 + 1e-4), "but for float32's rounding"


@pytest.mark.case("a-13-gru-kills-all-attacks")
def test_a_13_gru_kills_all_attacks() -> None:
    run = finished("s.toml")
    asked = run.scenario.adversary.attacks
    assert "loss" in asked and set(run.table("scores")["attack"]) == set(asked)


@pytest.mark.case("a-14-position-embedding-dp")
@pytest.mark.parametrize("batch", [8, 16])
def test_a_14_position_embedding_dp(batch: int) -> None:
    """With 8 records there are as many as positions, and the shapes alone would fit."""
    sets = ["--set", OUTCOME, "--set", f"training.batch={batch}"]
    refused(fedsim("scenario", "check", "s.toml", *sets), "layer '", "one record")


@pytest.mark.case("a-15-two-runs-one-folder")
def test_a_15_two_runs_one_folder() -> None:
    started = [start("run", "s.toml", "--set", f"seed={seed}") for seed in (1, 2)]
    answers = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], answers
    seeds = {name: RunDirectory.open(Path("runs") / name).manifest["seed"] for name in ("s", "s-2")}
    assert sorted(seeds.values()) == [1, 2]
    for seed, (stdout, _) in zip((1, 2), answers, strict=True):
        assert [name for name in seeds if f"runs/{name}/report.html" in stdout] == [
            name for name, its in seeds.items() if its == seed
        ]


@pytest.mark.case("a-16-stdout-not-utf8")
def test_a_16_stdout_not_utf8() -> None:
    process = start(
        "run",
        "s.toml",
        "--set",
        OUTCOME,
        "--set",
        "federation.rounds=1",
        "--dp",
        "all=8",
        PYTHONIOENCODING="cp1252",
    )
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in stderr, stderr
    assert "Report: " in stdout and Path("runs/s/report.html").exists()


@pytest.mark.case("a-17-parquet-folder")
def test_a_17_parquet_folder() -> None:
    said = checked("s.toml")
    assert "120 duplicate record(s) were removed" in said, "two parts of 120 records, which are twins"


@pytest.mark.case("a-19-parquet-index-dropped")
def test_a_19_parquet_index_dropped() -> None:
    prepared = check(load(Path("s.toml")), None)
    assert set(prepared.rows) == set(pd.read_parquet("d.parquet").index.unique("clinic"))


@pytest.mark.case("a-21-excel-sep-line")
def test_a_21_excel_sep_line() -> None:
    expected = pd.read_csv("d.csv", sep=";", skiprows=1)
    assert len(expected) == 120 and np.allclose(np.sort(unscaled(features()["age"], 0, 100))[-1],
                                                min(expected["age"].max(), 100))  # fmt: skip
    assert "5 columns" in checked("s.toml")


@pytest.mark.case("a-22-gzip-csv-garbage")
def test_a_22_gzip_csv_garbage() -> None:
    assert "5 columns" in checked("s.toml")
    assert len(features()) == len(pd.read_csv("d.csv.gz"))


@pytest.mark.case("a-22-gzip-csv-garbage")
@pytest.mark.parametrize("name", ["d.xls", "d.sav", "d.csv.zst", "d.csv"])
def test_a_22_nor_of_other_packings(name: str) -> None:
    magic = {"d.xls": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "d.sav": b"$FL2", "d.csv.zst": b"\x28\xb5\x2f\xfd"}
    content = magic[name] + bytes(range(256)) * 8 if name in magic else Path("d.csv.gz").read_bytes()[:300]
    Path(name).write_bytes(content)
    result = fedsim("scenario", "check", "s.toml", "--set", f"data.path={name}")
    refused(result, name)
    assert not any(ord(character) < 32 and character != "\n" for character in result.output)


@pytest.mark.case("a-23-label-spellings")
def test_a_23_label_spellings() -> None:
    said = checked("s.toml")
    counts = pd.read_csv("d.csv")["outcome"].str.strip().value_counts()
    assert set(counts.index) == {"Yes", "yes", "No", "no"}
    for pair in ("'Yes', 'yes'", "'No', 'no'"):
        assert f"classes of 'outcome' differ in case or blanks only: {pair}" in said
    assert all(f" {spelling} " in said.partition("Classes of outcome")[2] for spelling in counts.index)


@pytest.mark.case("a-23-label-spellings")
def test_a_23_a_class_of_one_record_and_a_code() -> None:
    table = pd.read_csv("d.csv", dtype=str)
    table["outcome"] = table["outcome"].str.lower()
    table.loc[table.index[:9], "outcome"] = "-9"
    table.loc[table.index[-1], "outcome"] = "maybe"
    table.to_csv("d.csv", index=False)
    said = checked("s.toml", "--set", 'data.categories.sex=["F", "M"]',
                   "--set", 'data.categories.ward=["med", "surg", "icu"]')  # fmt: skip
    assert "class(es) of 'outcome' with one record: 'maybe'" in said
    assert "class '-9' of 'outcome' looks like a code" in said


@pytest.mark.case("a-25-delta-above-1-over-n")
def test_a_25_delta_above_1_over_n() -> None:
    said = checked("s.toml")
    assert all(f"dp.{party}: δ = 0.5 is not below 1/n" in said for party in ("c1", "c2", "c3"))
    run = finished("s.toml")
    assert any("1/n" in notice for notice in run.manifest["notices"])
