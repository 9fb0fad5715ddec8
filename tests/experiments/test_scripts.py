"""The scripts of `experiments/` stand in no library's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"

IMPORTS = """
import sys
sys.path[:0] = sys.argv[1:]  # as Python does for a script of that folder
import numba, torch, pandas, sklearn.linear_model, plotly, opacus, flwr.serverapp
taken = {name: module.__file__ for name, module in sys.modules.items() if getattr(module, "__file__", None)}
print(*(f"{name}: {path}" for name, path in taken.items() if path.startswith(tuple(sys.argv[1:]))))
"""


def test_no_script_has_the_name_of_a_module_that_a_library_looks_for() -> None:
    """Numba looks for `coverage`, and takes what stands beside the script that is run."""
    folders = [str(EXPERIMENTS / name) for name in ("studies", "benchmarks")]
    done = subprocess.run([sys.executable, "-c", IMPORTS, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
