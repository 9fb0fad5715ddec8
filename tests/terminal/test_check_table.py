from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedsim.core.errors import InputError
from fedsim.core.scenario.reading import parse
from fedsim.runs import prepare
from fedsim.runs.prepare import Prepared
from fedsim.terminal import check_table

CASES = Path(__file__).parents[1] / "cases" / "inputs"


def checked(name: str, **sections: object) -> Prepared:
    (folder,) = CASES.glob(f"{name}-*")
    data = {"path": str(folder / "d.csv"), "label": "outcome", "party": "clinic"}
    document = {"data": data, "model": {"name": "logistic"}, "adversary": {"attacks": ["loss"]}, **sections}
    return prepare.check(parse(document), None)


def printed(prepared: Prepared) -> str:
    console = Console(file=io.StringIO(), width=200)
    check_table.show(prepared, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_column_has_its_row_and_every_class_its_count() -> None:
    text = printed(checked("a-09"))
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "dropped: it numbers the records" in rows["Unnamed:"]
    assert "0 to 100" in rows["age"] and "sector" in rows["age"] and "data.bounds.age" in rows["age"]
    assert "set aside" in rows["sex"] and "data.categories.sex" in rows["sex"]
    assert "120 in the table → 100 not set aside as public → " in text and "without duplicates" in text
    assert "Rough estimate: " in text and "GiB of memory" in text


def test_what_stands_in_a_file_is_printed_safely() -> None:
    facts = checked("a-07").encoded.columns
    strange = [type(facts[0])(**{**vars(facts[0]), "name": "x[/bold]\x1b[31m"})]
    console = Console(file=io.StringIO(), width=200)
    console.print(check_table.columns(strange))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "x[/bold]" in text and "\x1b" not in text


def test_parties_are_named_as_they_are_written() -> None:
    prepared = checked(
        "a-10", dp={"北京医院": {"epsilon": 8}}, adversary={"party": "广州医院", "attacks": ["loss"]}
    )
    assert set(prepared.rows) == {"北京医院", "上海医院", "广州医院"} and prepared.adversary == "广州医院"
    assert "北京医院" in printed(prepared)
    with pytest.raises(InputError, match=r"dp\.北京: no such party"):
        checked("a-10", dp={"北京": {"epsilon": 8}})


def test_folders_of_parties_are_fit_for_files_and_apart(tmp_path: Path) -> None:
    run = prepare.prepare(checked("a-10"), tmp_path / "run")
    folders = sorted(path.name for path in (run.path / "parties" / "game-000").iterdir())
    assert folders == ["000-x", "001-x", "002-x"]
    assert set(run.manifest["parties"]) == {"北京医院", "上海医院", "广州医院"}
