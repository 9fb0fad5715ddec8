"""Opacus' accounting without the rest of Opacus.

What it computes takes NumPy and SciPy. `import opacus` brings its optimizers, and these torch's and sympy: a
second and 50 MiB in each process, for which accounting alone has no use.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import lru_cache
from types import ModuleType
from typing import Literal

_ALIAS = "_opacus_accountants"


@lru_cache(maxsize=2)
def accounting(name: Literal["prv", "rdp"]) -> ModuleType:
    """Return ``opacus.accountants.analysis.<name>``, of a package of another name where that is not imported.

    The package is Opacus' own folder; its ``rdp``, the accountant that is attached to an optimizer and whose
    class one of the parts names, is left empty. Of an Opacus that is laid out otherwise all is imported.
    """
    whole = f"opacus.accountants.analysis.{name}"
    if "opacus" in sys.modules:
        return importlib.import_module(whole)
    try:
        if _ALIAS not in sys.modules:
            sys.modules.update(_packages())
        return importlib.import_module(f"{_ALIAS}.analysis.{name}")
    except (ImportError, AttributeError):
        return importlib.import_module(whole)


def _packages() -> dict[str, ModuleType]:
    """Return the accountants' package and its ``rdp``, neither of them filled.

    Raises:
        ImportError: Opacus is not a package in a folder.
    """
    spec = importlib.util.find_spec("opacus")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("opacus is no package")
    package, attached = ModuleType(_ALIAS), ModuleType(f"{_ALIAS}.rdp")
    package.__path__ = [f"{folder}/accountants" for folder in spec.submodule_search_locations]
    attached.RDPAccountant = None  # type: ignore[attr-defined]
    return {_ALIAS: package, f"{_ALIAS}.rdp": attached}
