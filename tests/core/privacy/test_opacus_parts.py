"""Accounting by Opacus' own modules under another name, against the whole package."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
{before}
from fedsim.core.privacy.ledger import Ledger
spent = [Ledger().add(1.1, 0.05, 40).epsilon(1e-5, accountant) for accountant in ("rdp", "prv")]
print(*map(float.hex, spent), "torch" in sys.modules, "opacus" in sys.modules)
"""
MOVED = "import importlib.util; find = importlib.util.find_spec; importlib.util.find_spec = lambda n: None"


@pytest.mark.parametrize("before", ["import opacus", MOVED], ids=["imported before", "laid out otherwise"])
def test_the_same_as_by_the_whole_package(before: str) -> None:
    def said(before: str) -> list[str]:
        command = [sys.executable, "-c", CODE.format(before=before)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    alone, whole = said(""), said(before)
    assert alone == [*whole[:2], "False", "False"] and whole[2:] == ["True", "True"]
