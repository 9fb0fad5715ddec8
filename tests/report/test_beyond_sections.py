"""What the page says of attacks beyond membership: shown leaks are called so, others are not."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.runs import finished_run

from fedsim.core.run_directory import RunDirectory
from fedsim.report import beyond, page, pictures
from fedsim.runs import beyond as asked
from fedsim.runs import persons, poison
from fedsim.runs.sent import Setting


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return finished_run(tmp_path_factory.mktemp("run"), n=120, adversary={"attacks": ["loss"]})


def leaks(value: float, low: float, high: float) -> pd.DataFrame:
    rows = [("ward", "yeom", side, "accuracy", 0.6, 0.5, 0.7, 40, "") for side in ("members", "held out")]
    rows.append(("ward", "yeom", "difference", "leak", value, low, high, 80, ""))
    columns = ["column", "attack", "records", "metric", "value", "low", "high", "n", "note"]
    return pd.DataFrame(rows, columns=columns)


def section(run: RunDirectory, name: str) -> beyond.Section:
    return next(part for part in beyond.sections(run) if part.name == name)


def test_a_leak_is_called_shown_only_where_its_interval_excludes_none(run: RunDirectory) -> None:
    run.write_table("attributes", leaks(0.2, 0.1, 0.3))
    assert "more is found out" in section(run, "attributes").lead
    run.write_table("attributes", leaks(0.2, -0.01, 0.4))
    assert "no more was shown" in section(run, "attributes").lead
    (run.path / "attributes.parquet").unlink()


def test_an_interval_is_stretched_for_the_choice_of_the_strongest() -> None:
    one, seven = (beyond.widened(("x", 0.2, 0.1, 0.4), tests) for tests in (1, 7))
    assert one == pytest.approx((0.1, 0.4))
    assert seven[0] < 0.1 and seven[1] > 0.4
    assert (0.2 - seven[0]) / 0.1 == pytest.approx(1.3730, abs=1e-3)  # z at 1 − .025/7 over z at .975


def test_every_attack_that_was_asked_has_a_section_with_a_picture(run: RunDirectory) -> None:
    assert beyond.sections(run) == []
    asked.attribute(run, "ward")
    asked.invert(run, asked.Descent(iterations=20))
    sent = [Setting(1), Setting(2, 1, "clipped", 2, "momentum")]
    asked.gradient(run, sent, repeats=2, methods=["analytic"])
    asked.count(run, "ward")
    persons.persons(run, points=1)
    persons.promises(run)
    poison.poison(run, poison.Budget(4, 2, 2), ["fedavg"])
    html = page.write(run).read_text(encoding="utf-8")
    for name in ("attributes", "inversion", "gradient", "counts", "persons", "poisoning"):
        assert f'<section id="{name}">' in html
        assert (run.path / "figures" / f"beyond-{name}.svg").exists()
    updates = section(run, "gradient").picture
    assert "unprotected, 1 record, 1 step<" in updates
    assert "clipped, 2 × 2 records, 2 steps, momentum<" in updates
    assert "the table says what is promised" not in section(run, "persons").notes  # there is no DP
    assert "class mean, no" in html  # the typical record's columns, where it is no image


def test_pngs_hold_the_pixels() -> None:
    data = pictures.png(np.array([[0.0, 1.0, 0.5], [2.0, 0.0, 0.0]]))
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and struct.unpack(">II", data[16:24]) == (3, 2)
    start = data.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", data[start - 8 : start - 4])
    assert zlib.decompress(data[start : start + length]) == bytes([0, 0, 128, 64, 0, 255, 0, 0])


def test_typical_images_are_drawn_as_a_grid(tmp_path: Path) -> None:
    changes = {"data": {"name": "digits"}, "parties": {"count": 3}, "model": {"hidden": [8]}}
    run = finished_run(tmp_path, adversary={"attacks": ["loss"], "candidates": 100}, **changes)
    asked.invert(run, asked.Descent(iterations=3))
    picture = section(run, "inversion").picture
    assert picture.count("<image ") == 4 * 10
