"""What `fedsim doctor` looks at: whether this machine and installation can run, and what they lack."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedsim.core.errors import InputError
from fedsim.core.stores import Remote

State = Literal["ok", "note", "bad"]

EXTRAS = {
    "ray": ("ray", "--engine ray and sweeps over a cluster"),
    "excel": ("openpyxl", "tables from .xlsx"),
    "images": ("PIL", "folders of PNGs"),
    "serve": ("starlette", "fedsim serve and attacks on a served model"),
}
"""Extra → the module that it brings, and what it is for."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; 'note' may be as it is, 'bad' has to be mended."""

    what: str
    state: State
    said: str


def examine(data_dir: Path | None = None) -> list[Check]:
    """Return every check, in an order in which to read them."""
    steps: list[Callable[[], Iterator[Check]]] = [_python, _packages, _shadowing, _extras, _machine, _folders]
    return [check for step in steps for check in step()] + list(_data(data_dir))


def _python() -> Iterator[Check]:
    fine = sys.version_info >= (3, 11)
    said = platform.python_version() + ("" if fine else "; fedsim needs 3.11 or newer")
    yield Check("Python", "ok" if fine else "bad", said)


def _packages() -> Iterator[Check]:
    """Compare what is installed with what the package asks for."""
    from packaging.requirements import Requirement

    try:
        wanted = importlib.metadata.requires("fedsim") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", "note", "fedsim runs from its folder and is not installed: pip install -e .")
        return
    problems = []
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} {version}, needs {requirement.specifier}")
    yield Check("packages", "bad" if problems else "ok", "; ".join(problems) or "all there, in range")


def _shadowing() -> Iterator[Check]:
    """`attacks` and `clients` are names that another package may have as well."""
    import fedsim

    home = Path(fedsim.__file__).resolve().parent.parent
    for name in ("attacks", "clients"):
        found = importlib.util.find_spec(name)
        origin = Path(found.origin).resolve() if found is not None and found.origin else None
        fine = origin is not None and origin.is_relative_to(home)
        said = str(origin) if fine else f"import {name} finds {origin}, not fedsim's; rename or move that one"
        yield Check(f"package {name}", "ok" if fine else "bad", said)


def _extras() -> Iterator[Check]:
    for extra, (module, purpose) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        said = "there" if there else f"not installed; pip install 'fedsim[{extra}]'"
        yield Check(f"{purpose}", "ok" if there else "note", said)


def _machine() -> Iterator[Check]:
    cores = os.cpu_count() or 1
    yield Check("cores", "ok" if cores > 1 else "note", str(cores))
    memory = _memory()
    if memory is not None:
        said = f"{memory / 2**30:.1f} GiB"
        yield Check("memory", "ok" if memory >= 2 << 30 else "note", said + " (a small run takes 1)")
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Check("OMP_NUM_THREADS", "ok" if threads == "1" else "note",
                threads or "not set; 1 is quickest for small models")  # fmt: skip


def _memory() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _folders() -> Iterator[Check]:
    from attacks.shadows.cache import cache_folder

    try:
        kept = cache_folder()
    except InputError as error:
        yield Check("shadows kept", "bad", str(error))
        kept = None
    if isinstance(kept, Remote):
        yield Check("shadows kept", "ok", str(kept))
    for what, folder in (("runs", Path("runs")), ("shadows kept", kept)):
        if not isinstance(folder, Path):
            continue
        place = next((one for one in (folder, *folder.resolve().parents) if one.exists()), Path("/"))
        if not os.access(place, os.W_OK):
            yield Check(what, "bad", f"{folder} cannot be written to")
            continue
        free = shutil.disk_usage(place).free
        yield Check(what, "ok" if free > 2 << 30 else "note", f"{folder}; {free / 2**30:.0f} GiB free")


def _data(data_dir: Path | None) -> Iterator[Check]:
    if data_dir is None:
        yield Check("data sets", "note", "FEDSIM_DATA is not set: named sets are downloaded once")
        return
    count = sum(1 for _ in data_dir.iterdir())
    yield Check("data sets", "ok" if count else "note", f"{data_dir}: {count} entries")
