"""fedsim: what could another participant of a federation learn about who is in my data?

    >>> import fedsim
    >>> run = fedsim.run("experiments/hospitals.toml", dp={"all": 8})  # doctest: +SKIP
    >>> run.leakage  # doctest: +SKIP

run, load        make a run, or open a finished one
Run              its tables, its report, its attacks
Scenario         what a scenario file says, validated
FedsimError      the run cannot go on; an InputError where something that a person wrote or chose is wrong
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.api import Run, load, run
    from fedsim.core.errors import FedsimError, InputError
    from fedsim.core.scenario.settings import Scenario

__version__ = "0.1.0"

__all__ = ["FedsimError", "InputError", "Run", "Scenario", "__version__", "load", "run"]

# Before NumPy is imported: sums over several threads can differ in the last bit from one machine to the next,
# and matrices this small are faster on one thread. Work is spread over processes instead (`--workers`).
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# Imported when first asked for (PEP 562): `import fedsim` costs nothing, and nothing depends on the API.
_HOMES = {
    "FedsimError": "fedsim.core.errors",
    "InputError": "fedsim.core.errors",
    "Run": "fedsim.api",
    "Scenario": "fedsim.core.scenario.settings",
    "load": "fedsim.api",
    "run": "fedsim.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsim' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
