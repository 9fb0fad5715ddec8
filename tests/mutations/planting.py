"""Planting a bug: a few lines of the real code are replaced for a while, wherever they are called from."""

from __future__ import annotations

import functools
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from fedsim.core.privacy import accountants, calibration, ledger, plan, prv, rdp


@dataclass(frozen=True)
class Edit:
    """Replace ``right`` by ``wrong`` in the source of a function.

    where: 'module:function', 'module:Class.method' or 'module:Class.property'
    right: text that stands exactly once in its source
    """

    where: str
    right: str
    wrong: str


@contextmanager
def planted(edits: tuple[Edit, ...]) -> Iterator[None]:
    """Run the code as if ``edits`` had been made in its files.

    A function's code object is exchanged, not its name: whoever has imported the function meets the bug.

    Raises:
        LookupError: the text to be replaced is not, or not just once, in the function.
    """
    places = dict.fromkeys(edit.where for edit in edits)
    with ExitStack() as stack:
        for where in places:
            stack.enter_context(_planted_in(where, [edit for edit in edits if edit.where == where]))
        if any(where.startswith("fedsim.core.privacy.") for where in places):
            _forget()
            stack.callback(_forget)
        yield


@contextmanager
def _planted_in(where: str, edits: list[Edit]) -> Iterator[None]:
    function = _function(where)
    right_code, attributes = function.__code__, dict(function.__dict__)
    source = textwrap.dedent(inspect.getsource(function))
    for edit in edits:
        if source.count(edit.right) != 1:
            raise LookupError(
                f"{where}: '{edit.right}' stands {source.count(edit.right)} times in it, not once"
            )
        source = source.replace(edit.right, edit.wrong)
    function.__code__ = _code(source, function.__name__)
    try:
        yield
    finally:
        function.__code__ = right_code
        function.__dict__.clear()  # a bug may keep what it should not on the function itself
        function.__dict__.update(attributes)


def _function(where: str) -> FunctionType:
    module, _, path = where.partition(":")
    found: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    function = inspect.unwrap(found.fget if isinstance(found, property) else found)
    assert isinstance(function, FunctionType) and function.__closure__ is None, where
    return function


def _code(source: str, name: str) -> CodeType:
    compiled = compile(source, "<planted bug>", "exec")
    return next(part for part in compiled.co_consts if isinstance(part, CodeType) and part.co_name == name)


def _forget() -> None:
    """Empty the accounting's caches: they hold answers of the other code."""
    for function in [
        f for module in (accountants, calibration, ledger, plan, prv, rdp) for f in vars(module).values()
    ]:
        clear: Callable[[], None] | None = getattr(function, "cache_clear", None)
        if clear is not None:
            clear()
