"""Run the benchmarks and join what they print in one page, `experiments/results/benchmarks.md`.

    python experiments/benchmarks/all.py                        # every benchmark, quick: each under 5 minutes
    python experiments/benchmarks/all.py --full                 # as long as they take
    python experiments/benchmarks/all.py growth kernels         # these anew; the other sections stay

Each benchmark is a process of its own; what it prints stands in the page as it is, under the command that
made it, the machine, and the wall and CPU time it took (its own processes included). One that fails leaves
its last line of error in its section, and an exit code of 1.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import subprocess
import sys
import time
from datetime import date
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "results" / "benchmarks.md"
START = "<!-- {} -->"

BENCHMARKS: dict[str, tuple[str, list[str]]] = {
    "shadows": ("Shadow federations against one after another", ["--quick"]),
    "kernels": ("The step of many small models, four ways", ["--quick"]),
    "growth": ("How the cost of shadows grows", ["--quick"]),
    "dp_training": ("A step of local training, with and without DP-SGD", ["--quick"]),
    "engines": ("Engines", ["--quick"]),
    "tables": ("Large tables", ["--quick"]),
    "gpu": ("Stacked models on a GPU", ["--quick"]),
}
"""Title, and what makes it quick. `serving.py` and `monitoring.py` have a page of their own."""

HEAD = """# Benchmarks

Made by `python experiments/benchmarks/all.py`; each section by the command in it. Wall times are of a machine
that may have had other work: beside them stands CPU time where it says the same thing better, and ratios are
of sides that took turns in one run. Compare figures of one section only.
"""


def section(name: str, full: bool) -> tuple[str, bool]:
    """Run one benchmark; return its part of the page, and whether it succeeded."""
    title, quick = BENCHMARKS[name]
    arguments = [] if full else quick
    began, before = time.perf_counter(), cpu_of_children()
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), *arguments],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wall, cpu = time.perf_counter() - began, cpu_of_children() - before
    command = " ".join(["python", f"experiments/benchmarks/{name}.py", *arguments])
    made = f"`{command}`: {wall:.0f} s, {cpu:.0f} s of CPU; {machine()}, {date.today()}."
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"## {title}\n\n{made}\n\nIt failed (exit code {done.returncode}): `{last}`\n", False
    output = done.stdout.strip("\n")  # a first title is centred by blanks
    return f"## {title}\n\n{made}\n\n```\n{output}\n```\n", True


def cpu_of_children() -> float:
    """Return the CPU seconds of all processes that were started here and have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine() -> str:
    """Return the processor, its cores and torch's version."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, torch {metadata.version('torch')}"


def sections_of(page: str) -> dict[str, str]:
    """Return the sections of an earlier page by name."""
    parts = re.split(r"<!-- (\w+) -->\n", page)[1:]
    return dict(zip(parts[::2], (part.strip() + "\n" for part in parts[1::2]), strict=True))


def page_of(sections: dict[str, str]) -> str:
    ordered = [f"{START.format(name)}\n{sections[name]}" for name in BENCHMARKS if name in sections]
    return "\n".join([HEAD, *ordered])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all if none")
    parser.add_argument("--full", action="store_true", help="without --quick")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    sections = sections_of(PAGE.read_text()) if PAGE.exists() else {}
    failed = []
    for number, name in enumerate(names := options.names or list(BENCHMARKS), start=1):
        print(f"{number} of {len(names)}: {name} …", flush=True)
        sections[name], succeeded = section(name, options.full)
        failed += [] if succeeded else [name]
        PAGE.write_text(page_of(sections))  # as it goes: a long run that is stopped keeps what it has
    print(PAGE, f"failed: {', '.join(failed)}" if failed else "")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
