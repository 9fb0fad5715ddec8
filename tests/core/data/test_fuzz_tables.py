"""A hundred tables that went wrong on the way: each is read as it is meant, or refused in one sentence."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.tables import column, encoded

from fedsim.core.errors import InputError

N = 60
BOUNDS = {"bounds": {"a": [0, 100], "b": [0, 100]}, "categories": {"c": ["u", "v"], "y": ["n", "p"]}}


def _table(draw: np.random.Generator) -> list[list[str]]:
    return [["a", "b", "c", "y"]] + [
        [
            f"{draw.uniform(1, 99):.2f}",
            str(draw.integers(1, 99)),
            "uv"[draw.integers(2)],
            "np"[draw.integers(2)],
        ]
        for _ in range(N)
    ]


def _bytes(rows: list[list[str]], separator: str = ",", end: str = "\n") -> bytes:
    return (end.join(separator.join(row) for row in rows) + end).encode()


def _cut(whole: bytes, draw: np.random.Generator) -> bytes:
    return whole[: draw.integers(1, len(whole))]


def _flip(whole: bytes, draw: np.random.Generator) -> bytes:
    places = draw.integers(0, len(whole), size=5)
    damaged = bytearray(whole)
    for place in places:
        damaged[place] = draw.integers(256)
    return bytes(damaged)


def _drop_lines(whole: bytes, draw: np.random.Generator) -> bytes:
    lines = whole.splitlines(keepends=True)
    return b"".join(line for line in lines if draw.random() < 0.7)


def _insert(whole: bytes, draw: np.random.Generator) -> bytes:
    junk = [b"\x00", b'"', b"\n\n", b";;;;", b"\xff\xfe", b"#", b"sep=;", b"1e999", b"\x1b[31m", b"," * 50]
    for _ in range(3):
        place = draw.integers(0, len(whole))
        whole = whole[:place] + junk[draw.integers(len(junk))] + whole[place:]
    return whole


def _twice(whole: bytes, draw: np.random.Generator) -> bytes:
    return whole + whole


def _shuffle(whole: bytes, draw: np.random.Generator) -> bytes:
    lines = whole.splitlines(keepends=True)
    return b"".join(lines[k] for k in draw.permutation(len(lines)))


MUTATIONS: list[Callable[[bytes, np.random.Generator], bytes]] = [
    _cut, _flip, _drop_lines, _insert, _twice, _shuffle
]  # fmt: skip


@pytest.mark.parametrize("seed", range(100))
def test_a_malformed_table_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    whole = _bytes(_table(draw), ",;\t|"[seed % 4], ["\n", "\r\n"][seed % 2])
    path = tmp_path / "t.csv"
    path.write_bytes(MUTATIONS[seed % len(MUTATIONS)](whole, draw))
    declared = BOUNDS if seed % 2 else {}
    start = time.monotonic()
    try:
        records = encoded(path, **declared)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        assert str(error).isprintable()
    else:
        assert np.isfinite(records.features).all() and len(records) <= 2 * N
    assert time.monotonic() - start < 10


WRITERS: list[Callable[[float], str]] = [
    lambda x: f"{x:.2f}",
    lambda x: f"{x:.2f}".replace(".", ","),
    lambda x: f"{x:,.2f}",
    lambda x: f"{x:,.2f}".replace(",", "'"),
    lambda x: f"{x:,.2f}".translate(str.maketrans(",.", ".,")),
    lambda x: f"{x:,.2f}".translate(str.maketrans(",.", "\u202f,")),
    lambda x: f"{x:,.0f}",
    lambda x: f"{x:,.0f}".replace(",", "."),
    lambda x: f"$ {x:,.2f}",
    lambda x: f"{x:.1f} kg".replace(".", ","),
]


@pytest.mark.parametrize("writer", range(len(WRITERS)))
@pytest.mark.parametrize("witness", [".", ","])
@pytest.mark.parametrize("separator", [";", "\t"])
def test_no_number_is_read_as_another_one(tmp_path: Path, writer: int, witness: str, separator: str) -> None:
    """Whatever the other column's decimal mark: the numbers that were written, or a refusal."""
    draw = np.random.default_rng(writer)
    values = np.round(draw.uniform(1, 9999, N), 2)
    write = WRITERS[writer]
    lines = [separator.join(["x", "w", "y"])]
    lines += [
        separator.join([write(v), f"{k}.5".replace(".", witness), "np"[k % 2]]) for k, v in enumerate(values)
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        records = encoded(tmp_path / "t.csv", bounds={"x": [0, 10_000], "w": [0, 100]})
    except InputError as error:
        assert "data.decimal" in str(error)
        return
    places = {6: 0, 7: 0, 9: 1}.get(writer, 2)
    expected = np.array([float(f"{v:.{places}f}") for v in values]) / 10_000 * 4 - 2
    np.testing.assert_allclose(column(records, "x"), expected, atol=1e-5)
