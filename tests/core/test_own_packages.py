"""fedsim's packages are fedsim's, from wherever it is started; an installed wheel brings what it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedsim.core import own_packages
from fedsim.core.errors import InputError
from fedsim.core.imports import load

ROOT = Path(__file__).resolve().parents[2]


def fedsim_in(folder: Path, *arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path)}
    command = [sys.executable, "-m", "fedsim", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_package_of_the_same_name_is_not_used_silently(tmp_path: Path) -> None:
    (tmp_path / "attacks").mkdir()
    assert fedsim_in(tmp_path, "experiments").returncode == 0, "a folder without code hides nothing"
    (tmp_path / "attacks" / "__init__.py").touch()
    done = fedsim_in(tmp_path, "experiments")
    assert done.returncode == 2 and "one hides the other; rename yours" in done.stderr
    assert str(tmp_path / "attacks") in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_module_of_ones_own_cannot_be_called_as_fedsim_s(tmp_path: Path) -> None:
    (tmp_path / "attacks.py").write_text("def mine(view, candidates, rng): ...", encoding="utf-8")
    with pytest.raises(InputError, match=r"your module 'attacks' in .* has the name of one of fedsim's"):
        load("attacks:mine", str(tmp_path), "adversary.attacks")
    assert load("attacks.declaration:attack", str(ROOT), "here") is not None


def test_the_checkout_s_own_experiments_are_shipped() -> None:
    files = own_packages.shipped()
    assert {"hospitals.toml", "own/my_attacks.py", "foreign/net.py", "sweeps/epsilon.toml"} <= set(files)
    assert files["hospitals.toml"] == ROOT / "experiments" / "hospitals.toml"


@pytest.mark.slow
def test_a_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("fedsim", "clients", "attacks", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    shutil.rmtree(source)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    install = ["pip", "install", "-q", "--no-deps", "--no-index", "--prefix", str(site), "--ignore-installed"]
    subprocess.run([sys.executable, "-m", *install, str(wheel)], capture_output=True, check=True)
    (packages,) = site.rglob("site-packages")
    copied = fedsim_in(tmp_path, "experiments", "--to", "mine", path=packages)
    assert copied.returncode == 0, copied.stderr
    again = fedsim_in(tmp_path, "experiments", "--to", "mine", path=packages)
    assert again.returncode == 2 and "is there already and stays as it is" in again.stderr
    # Neither the checkout nor anything downloaded: the embedded records, and report with its templates.
    run = ["run", "mine/hospitals.toml", "--quick", "--set", "federation.rounds=2", "--out", "run"]
    done = fedsim_in(tmp_path, *run, path=packages)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
