"""The examples in docstrings of privacy functions run, and give what they say."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from fedsim.core.privacy import ledger, plan
from fedsim.core.training import dp


@pytest.mark.parametrize("module", [dp, ledger, plan], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: ModuleType) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0
