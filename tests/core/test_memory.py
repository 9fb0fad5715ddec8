"""What is freed is given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
from pathlib import Path
from fedsim.core.memory import give_back

def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024  # MiB

pieces = [bytearray(20_000) for _ in range(10_000)]
last, full = pieces[-1], resident()
del pieces
give_back()
print(full - resident())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other libraries keep nothing, or cannot be asked"
)
def test_a_piece_that_is_left_does_not_keep_all_before_it() -> None:
    found = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert float(found.stdout) > 150  # of 190
