"""Code of the user's own, named in a scenario as 'module:callable'."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.core.errors import InputError, suggestion

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_reference(text: str) -> bool:
    """Tell whether a text has the form 'module:callable'."""
    return _REFERENCE.fullmatch(text) is not None


def source_file(reference: str, folder: str | None) -> Path | None:
    """Return the file below ``folder`` that holds the module of 'module:callable', None without one."""
    relative = reference.partition(":")[0].replace(".", "/")
    base = Path(folder or ".") / relative
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


REFUSED: dict[tuple[str, str | None], str] = {}
"""What is not imported: ('module:callable', its folder) → why, in a sentence; see `fedsim.core.trust`."""


def load(reference: str, folder: str | None, where: str) -> Callable[..., Any]:
    """Return the callable of 'module:callable'; the module is looked for in ``folder`` first.

    where: the key and value that begin an error's sentence, such as "model.name = 'mine:build'"

    Raises:
        InputError: there is no such module, importing it fails, or it has no such callable; or it is refused.
    """
    if (reference, folder) in REFUSED:
        raise InputError(f"{where}: {REFUSED[reference, folder]}")
    module_name, _, name = reference.partition(":")
    path = str(Path(folder or ".").resolve())
    root = module_name.partition(".")[0]
    if root in ("attacks", "clients", "fedsim") and _has_module(Path(path), root):
        raise InputError(
            f"{where}: your module '{root}' in {path} has the name of one of fedsim's; rename it"
        )
    try:
        with _importing_from(path, module_name.partition(".")[0]):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"{where}: there is no module '{error.name}' (looked in {path} first)") from error
    except Exception as error:
        raise InputError(f"{where}: importing '{module_name}' failed: {short(error)}") from error
    loaded = getattr(module, name, None)
    if not callable(loaded):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"{where}: '{module_name}' has no callable '{name}'{suggestion(name, known)}")
    return loaded


def _has_module(folder: Path, root: str) -> bool:
    """Whether a folder other than fedsim's own has a module of this name."""
    if folder == Path(__file__).resolve().parents[2]:
        return False
    return (folder / f"{root}.py").is_file() or (folder / root / "__init__.py").is_file()


def accepts(function: Callable[..., Any], arguments: int) -> bool:
    """Tell whether ``function`` can be called with so many positional arguments and no others."""
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        return False
    except ValueError:
        return True  # a builtin that does not say what it takes
    return True


# The folder that each top-level module of a user was imported from.
_origin: dict[str, str] = {}


@contextmanager
def _importing_from(folder: str, root: str) -> Iterator[None]:
    """Put ``folder`` first on the import path.

    A module of the same name from another scenario's folder is forgotten, or it would be used in place of
    this one.
    """
    if _origin.get(root, folder) != folder:
        for name in [name for name in sys.modules if name.partition(".")[0] == root]:
            del sys.modules[name]
    if root not in sys.modules:
        _origin[root] = folder
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)


def short(error: BaseException) -> str:
    """Return an exception's kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
