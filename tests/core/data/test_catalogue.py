from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsim.core import rng
from fedsim.core.data import catalogue
from fedsim.core.data.encode import Encoded, deduplicate, encode
from fedsim.core.data.schema import Column
from fedsim.core.data.sets import finance, health
from fedsim.core.data.sets.health import PROGRESSION_MEDIAN
from fedsim.core.data.sources import File, cache_folder, obtain, unpack, verify
from fedsim.core.data.table import Table, sha256, texts
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import DataSettings

EMBEDDED = ["diabetes-progression", "breast-cancer", "digits"]
LOCAL = ["heart-disease", "diabetes-130", "credit-default", "bank-marketing", "adult", "location-30", "mnist"]
# facts/data.md: records, share of the last class, features, exact duplicates after encoding.
EXPECTED = {
    "diabetes-progression": (442, 221 / 442, (11,), 0),
    "breast-cancer": (569, 212 / 569, (30,), 0),
    "digits": (1797, 180 / 1797, (1, 8, 8), 0),
    "heart-disease": (920, 509 / 920, (30,), 2),
    "diabetes-130": (101_766, (101_766 - 54_864) / 101_766, (318,), None),
    "credit-default": (30_000, 0.2212, (33,), 35),
    "bank-marketing": (45_211, 5289 / 45_211, (52,), None),
    "adult": (48_842, 11_687 / 48_842, (105,), None),
    "location-30": (5010, 179 / 5010, (446,), None),
    "mnist": (70_000, 6958 / 70_000, (1, 28, 28), 0),
}


def loaded(name: str, data_dir: Path | None) -> tuple[Table, Encoded]:
    table = catalogue.load(name, data_dir)
    return table, encode(table, DataSettings(name=name), rng.generator(0, "data"))


def check(name: str, data_dir: Path | None) -> None:
    """Every set is encoded by its declared schema alone, completely, and is what was published."""
    rows, share, shape, duplicates = EXPECTED[name]
    table, encoded = loaded(name, data_dir)
    assert table.schema.undeclared == () and encoded.notices == ()
    assert encoded.features.shape == (rows, *shape) and encoded.features.dtype == np.float32
    assert np.isfinite(encoded.features).all() and np.abs(encoded.features).max() <= 2
    assert (encoded.labels == len(encoded.classes) - 1).mean() == pytest.approx(share)
    assert encoded.labels.min() == 0
    assert all(len(value) == 64 for value in encoded.hashes.values()) and encoded.hashes
    if duplicates is not None:
        assert rows - len(deduplicate(encoded)) == duplicates
    for column in table.schema.columns if len(shape) == 1 else ():
        if column.kind == "number":
            check_bounds(column, encoded.features[:, encoded.feature_names.index(column.name)])
        elif name != "location-30":
            seen = set(texts(table.frame[column.name]))
            assert seen <= {*(column.categories or ()), None, "Unknown/Invalid"}, column.name


def check_bounds(column: Column, scaled: np.ndarray) -> None:
    """Declared bounds fit: the values spread over a good part of them and do not all lie at the ends."""
    assert (np.abs(scaled) == 2).mean() < 0.97, column.name
    assert 0.25 < scaled.std() < 1.5, column.name


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets(name: str) -> None:
    check(name, None)
    assert catalogue.fetch(name) == []


@pytest.mark.parametrize("name", LOCAL)
def test_local_sets(name: str, data_dir: Path) -> None:
    check(name, data_dir)


def test_hearts_hospitals_and_their_missing_values(data_dir: Path) -> None:
    _, encoded = loaded("heart-disease", data_dir)
    assert encoded.party is not None
    hospitals = pd.Series(encoded.labels).groupby(encoded.party).agg(["size", "mean"])
    assert hospitals["size"].to_dict() == {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
    assert hospitals["mean"].round(3).to_dict() == {
        "cleveland": 0.459, "hungarian": 0.361, "switzerland": 0.935, "va": 0.745
    }  # fmt: skip
    missing = pd.Series(encoded.features[:, encoded.feature_names.index("chol missing")])
    per_hospital = missing.groupby(encoded.party).sum()
    assert per_hospital.to_dict() == {"cleveland": 0, "hungarian": 23, "switzerland": 123, "va": 49 + 7}
    kept = deduplicate(encoded)
    assert kept.party is not None
    removed = pd.Series(encoded.party).value_counts() - pd.Series(kept.party).value_counts()
    assert removed[removed > 0].to_dict() == {"hungarian": 1, "va": 1}


def test_diabetes_130_has_persons_and_a_proxy_of_the_hospital(data_dir: Path) -> None:
    table, encoded = loaded("diabetes-130", data_dir)
    assert encoded.person is not None and len(set(encoded.person)) == 71_518
    assert encoded.party is None
    said = DataSettings(name="diabetes-130", party="payer_code")
    named = encode(table, said, rng.generator(0, "data"))
    assert named.party is not None and len(set(named.party)) == 17
    assert "40256 record(s) without 'payer_code' were dropped" in named.owner_notices
    assert not any(name.startswith("payer_code") for name in named.feature_names)


@pytest.mark.parametrize(
    ("code", "group"),
    [
        ("250.83", "diabetes"), ("428", "circulatory"), ("785", "circulatory"), ("786", "respiratory"),
        ("787", "digestive"), ("788", "genitourinary"), ("V27", "other"), ("E885", "other"), ("8", "other"),
        ("820", "injury"), ("715", "musculoskeletal"), ("162", "neoplasms"), ("251", "other"), (None, None),
    ],
)  # fmt: skip
def test_diagnoses_are_grouped_as_in_strack_2014(code: str | None, group: str | None) -> None:
    assert health._diagnosis_group(code) == group


def test_the_median_is_that_of_the_published_scores() -> None:
    from sklearn.datasets import load_diabetes

    assert np.median(load_diabetes(scaled=False).target) == PROGRESSION_MEDIAN


def test_no_label_or_key_is_a_feature() -> None:
    for name in catalogue.names():
        schema = catalogue.get(name).schema
        assert not {schema.label, schema.party, schema.person} & set(schema.names)
        assert len(set(schema.names)) == len(schema.names)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'heart-disease'"):
        catalogue.get("heart-diseas")


def test_the_scenario_chooses_the_table(tmp_path: Path) -> None:
    assert catalogue.open_table(DataSettings()).name == catalogue.DEFAULT
    assert catalogue.open_table(DataSettings(name="digits")).name == "digits"
    (tmp_path / "own.csv").write_text("a,y\n1,u\n2,v\n")
    own = DataSettings(path=str(tmp_path / "own.csv"), label="y")
    assert catalogue.open_table(own).name == "own.csv"


# --- files: local folders, downloads, hashes ------------------------------------------------------------


def german_lines() -> str:
    """A thousand made-up records in the published format."""
    schema, draw = catalogue.get("german-credit").schema, np.random.default_rng(0)
    known = {
        c.name: c.categories or range(int(c.bounds[0]), int(c.bounds[1]))
        for c in schema.columns
        if c.bounds or c.categories
    }
    known["risk"] = ("1", "2")
    columns = [draw.choice(np.array(known[name], dtype=str), 1000) for name in finance._GERMAN_NAMES]
    lines = [" ".join(cells) for cells in zip(*columns, strict=True)]
    return "\n".join(lines) + "\n"


def test_german_credit_from_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "german.data").write_text(german_lines())
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    table = catalogue.load("german-credit")
    encoded = encode(table, DataSettings(), rng.generator(0, "data"))
    assert encoded.features.shape == (1000, 7 + 56) and encoded.classes == ("good", "bad")
    assert encoded.notices == () and table.schema.undeclared == ()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A publisher's site on this machine: (address, folder)."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_port}", folder
        site.shutdown()


def test_the_first_download_is_pinned(server: tuple[str, Path]) -> None:
    address, folder = server
    (folder / "german.data").write_text(german_lines())
    data = catalogue.get("german-credit")
    data = replace(data, files=(replace(data.files[0], url=f"{address}/german.data"),))
    (path,) = obtain(data, None)
    assert path.parent == cache_folder(data)
    assert path.with_name("german.data.sha256").read_text().strip() == sha256(path)
    # What the site publishes later is not taken for the same file.
    (folder / "german.data").write_text(german_lines().replace("A11", "A12"))
    path.unlink()
    with pytest.raises(InputError, match="the download does not have SHA-256"):
        obtain(data, None)


def test_a_download_is_checked_and_kept(server: tuple[str, Path]) -> None:
    address, folder = server
    (folder / "x.csv").write_text("x")
    known = hashlib.sha256(b"x").hexdigest()
    data = replace(catalogue.get("adult"), files=(File("x.csv", f"{address}/x.csv", known),))
    (path,) = obtain(data, None)
    (folder / "x.csv").unlink()
    assert obtain(data, None) == [path]
    wrong = replace(data, files=(File("y.csv", f"{address}/y.csv", known),))
    (folder / "y.csv").write_text("other")
    with pytest.raises(InputError, match=f"y.csv: the download does not have SHA-256 {known}"):
        obtain(wrong, None)


def test_without_a_network_the_sentence_says_what_to_put_where(tmp_path: Path) -> None:
    data = catalogue.get("heart-disease")
    closed = "http://127.0.0.1:9/processed.cleveland.data"
    data = replace(data, files=(replace(data.files[0], url=closed),))
    with pytest.raises(InputError) as caught:
        obtain(data, tmp_path)
    text = str(caught.value)
    assert closed in text and "put processed.cleveland.data into <folder>/heart_disease_uci/" in text


def test_a_file_that_needs_a_login(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"get it from https://www\.kaggle\.com/.*--data-dir"):
        catalogue.fetch("credit-default", tmp_path)


def test_a_data_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        catalogue.fetch("adult", tmp_path / "none")


def test_a_damaged_file_is_refused_with_both_hashes(tmp_path: Path) -> None:
    (tmp_path / "adult").mkdir()
    (tmp_path / "adult" / "adult.data").write_text("39, State-gov\n")
    with pytest.raises(InputError) as caught:
        catalogue.load("adult", tmp_path)
    text = str(caught.value)
    assert "adult.data" in text and sha256(tmp_path / "adult" / "adult.data") in text
    assert "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d" in text


def test_a_file_in_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "german.data").write_text("A11 6\n")
    with pytest.raises(InputError, match="german-credit: 1 records were read"):
        catalogue.load("german-credit", tmp_path)


def test_repacked_content_is_the_same_file(tmp_path: Path) -> None:
    def nested(level: int) -> bytes:
        inner, outer = io.BytesIO(), io.BytesIO()
        with zipfile.ZipFile(inner, "w", compresslevel=level) as archive:
            archive.writestr("full.csv", "content")
        with zipfile.ZipFile(outer, "w") as archive:
            archive.writestr("bank.zip", inner.getvalue())
        return outer.getvalue()

    content = hashlib.sha256(b"content").hexdigest()
    path = tmp_path / "a.zip"
    path.write_bytes(nested(1))
    verify(path, File("a.zip", None, "0" * 64, content, ("bank.zip", "full.csv")))
    with pytest.raises(InputError, match="SHA-256"):
        verify(path, File("a.zip", None, "0" * 64, "1" * 64, ("bank.zip", "full.csv")))
    with pytest.raises(InputError, match="SHA-256"):
        verify(path, File("a.zip", None, "0" * 64, content, ("bank.zip", "none.csv")))
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"content", mtime=1))
    verify(tmp_path / "a.gz", File("a.gz", None, "0" * 64, content))


def test_archives_are_unpacked_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("bangkok")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))
    assert unpack(path, ("bangkok",)) == b"abc"
    for member in (("paris",), ()):
        (tmp_path / "b.gz").write_bytes(b"not gzip")
        with pytest.raises(InputError, match="cannot read"):
            unpack(path if member else tmp_path / "b.gz", member)
