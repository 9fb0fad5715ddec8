"""The page that joins the benchmarks: what is run anew replaces its section and leaves the others."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "benchmarks" / "all.py"


@pytest.fixture
def joined() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_a_page_is_read_back_as_the_sections_that_it_was_made_of(joined) -> None:
    sections = {"growth": "## G\n\n```\na <b> # c\n```\n", "shadows": "## S\n\nlast line\n"}
    page = joined["page_of"](sections)
    assert joined["sections_of"](page) == sections
    assert page.index("## S") < page.index("## G")  # in the order of the list, whatever was run first


def test_a_benchmark_that_fails_says_so_in_its_section(joined, tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text("raise SystemExit('no compiler')")
    (tmp_path / "growth.py").write_text("import sys; print('table', *sys.argv[1:])")
    joined["section"].__globals__["HERE"] = tmp_path
    text, succeeded = joined["section"]("kernels", False)
    assert not succeeded and "exit code 1" in text and "no compiler" in text
    text, succeeded = joined["section"]("growth", False)
    assert succeeded and "table --quick" in text and "s of CPU" in text


def test_every_benchmark_of_the_list_is_there(joined) -> None:
    assert all((SCRIPT.parent / f"{name}.py").exists() for name in joined["BENCHMARKS"])


def test_an_unknown_name_is_refused_with_the_known_ones(joined, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["all.py", "shadow"])
    with pytest.raises(SystemExit) as stopped:
        joined["main"]()
    assert stopped.value.code == 2 and "shadows" in capsys.readouterr().err
