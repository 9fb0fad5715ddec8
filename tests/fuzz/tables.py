"""Tables broken in every way that files break: an answer in one sentence, or a valid scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from support.runs import document

from fedsim.core.scenario.reading import parse
from fedsim.runs.prepare import check
from fuzz.keys import SECONDS, Trial, judged, limited

Cells = list[list[str]]
Change = Callable[[Cells, np.random.Generator], Cells | bytes]

ODD = [
    "",
    "NaN",
    "-",
    "1e999",
    "0x1F",
    "1.234,56",
    "12:60",
    "31.02.2024",
    "\x00",
    "\x1b[2J",
    "'",
    '"',
    "=1+1",
]


def text(cells: Cells, separator: str = ",", end: str = "\n") -> str:
    return "".join(separator.join(row) + end for row in cells)


def _place(cells: Cells, stream: np.random.Generator) -> tuple[int, int]:
    return int(stream.integers(1, len(cells))), int(stream.integers(len(cells[0])))


def _odd_cells(cells: Cells, stream: np.random.Generator) -> Cells:
    for _ in range(int(stream.integers(1, 20))):
        row, column = _place(cells, stream)
        cells[row][column] = str(stream.choice(ODD))
    return cells


def _odd_column(cells: Cells, stream: np.random.Generator) -> Cells:
    _, column = _place(cells, stream)
    return [cells[0], *([*row[:column], str(stream.choice(ODD)), *row[column + 1 :]] for row in cells[1:])]


def _ragged(cells: Cells, stream: np.random.Generator) -> Cells:
    row, column = _place(cells, stream)
    cells[row] = cells[row][:column] if stream.random() < 0.5 else [*cells[row], "more", "and more"]
    return cells


def _open_quote(cells: Cells, stream: np.random.Generator) -> Cells:
    row, column = _place(cells, stream)
    cells[row][column] = '"' + cells[row][column]
    return cells


def _headless(cells: Cells, stream: np.random.Generator) -> Cells:
    return cells[1:]


def _names(cells: Cells, stream: np.random.Generator) -> Cells:
    column = int(stream.integers(len(cells[0])))
    cells[0][column] = str(stream.choice(["", cells[0][0], "x" * 5000, "a\tb", "\u200b", "ill "]))
    return cells


def _without_column(cells: Cells, stream: np.random.Generator) -> Cells:
    _, column = _place(cells, stream)
    return [row[:column] + row[column + 1 :] for row in cells]


def _few_rows(cells: Cells, stream: np.random.Generator) -> Cells:
    return cells[: int(stream.integers(0, 12))]


def _one_row_again(cells: Cells, stream: np.random.Generator) -> Cells:
    return [cells[0], *[cells[1]] * (len(cells) - 1)]


def _one_class(cells: Cells, stream: np.random.Generator) -> Cells:
    return [cells[0], *([*row[:-1], "yes"] for row in cells[1:])]


def _scaled(cells: Cells, stream: np.random.Generator) -> Cells:
    column, factor = int(stream.integers(2)), 10.0 ** stream.integers(-12, 300)
    return [cells[0], *([*r[:column], repr(float(r[column]) * factor), *r[column + 1 :]] for r in cells[1:])]


def _shuffled_columns(cells: Cells, stream: np.random.Generator) -> Cells:
    return [cells[0], *([row[k] for k in stream.permutation(len(row))] for row in cells[1:])]


def _total(cells: Cells, stream: np.random.Generator) -> Cells:
    return [*cells, ["Total", "", "", str(len(cells) - 1)]]


def _preamble(cells: Cells, stream: np.random.Generator) -> Cells:
    return [["Export of 3.4.2024"], [""], *cells]


def _encoded(cells: Cells, stream: np.random.Generator) -> bytes:
    cells[1][2] = "Ä"
    return text(cells).encode(str(stream.choice(["utf-16", "utf-32", "cp1252", "cp037"])))


def _separated(cells: Cells, stream: np.random.Generator) -> bytes:
    return text(
        cells, str(stream.choice([";", "\t", "|", " ", "::"])), str(stream.choice(["\r", "\r\n"]))
    ).encode()


def _cut(cells: Cells, stream: np.random.Generator) -> bytes:
    whole = text(cells).encode()
    return whole[: int(stream.integers(len(whole)))]


def _bytes_flipped(cells: Cells, stream: np.random.Generator) -> bytes:
    whole = np.frombuffer(text(cells).encode(), dtype=np.uint8).copy()
    places = stream.integers(0, len(whole), 30)
    whole[places] = stream.integers(0, 256, 30)
    return whole.tobytes()


def _zeros(cells: Cells, stream: np.random.Generator) -> bytes:
    return text(cells).encode() + bytes(int(stream.integers(1, 5000)))


def _noise(cells: Cells, stream: np.random.Generator) -> bytes:
    return stream.bytes(int(stream.integers(0, 5000)))


def _another_kind(cells: Cells, stream: np.random.Generator) -> bytes:
    return (
        bytes(stream.choice([b"PAR1", b"PK\x03\x04", b"\x1f\x8b", b"%PDF-1.7\n", b"<html>", b"\x89PNG"]))
        + b"x" * 99
    )


def _wide(cells: Cells, stream: np.random.Generator) -> Cells:
    more = int(stream.integers(100, 400))
    return [row + [f"c{k}" if i == 0 else str(k) for k in range(more)] for i, row in enumerate(cells)]


def _long_cell(cells: Cells, stream: np.random.Generator) -> Cells:
    row, column = _place(cells, stream)
    cells[row][column] = "9" * 200_000
    return cells


def _identifiers(cells: Cells, stream: np.random.Generator) -> Cells:
    return [["id", *cells[0]], *([str(i), *row] for i, row in enumerate(cells[1:]))]


CHANGES: Mapping[str, Change] = {
    change.__name__.strip("_").replace("_", " "): change
    for change in (
        _odd_cells, _odd_column, _ragged, _open_quote, _headless, _names, _without_column, _few_rows,
        _one_row_again, _one_class, _scaled, _shuffled_columns, _total, _preamble, _encoded, _separated, _cut,
        _bytes_flipped, _zeros, _noise, _another_kind, _wide, _long_cell, _identifiers,
    )
}  # fmt: skip


def try_table(folder: Path, change: str, seed: int, **data: Any) -> Trial:
    """Check a tiny scenario on a table that was changed; data: further keys of its section."""
    scenario = document(folder, adversary={"attacks": ["loss"]})
    section = dict(scenario["data"]) | data  # type: ignore[call-overload]
    path = Path(section["path"])
    cells = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    changed = CHANGES[change](cells, np.random.default_rng(seed))
    path.write_bytes(changed if isinstance(changed, bytes) else text(changed).encode())

    def act() -> None:
        with limited(SECONDS):
            check(parse(scenario | {"data": section}), None)

    return judged(f"{change}, seed {seed}", act)
