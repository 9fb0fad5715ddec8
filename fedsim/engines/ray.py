"""Flower's own simulation engine (Ray), through ``flwr run``, with the same two apps unchanged.

Flower keeps a SuperLink running after ``flwr run``, reuses it with the first starter's environment, and
answers 0 even where a run failed. Here every game has a SuperLink of its own, in a private home and on
free ports, which ends with it; success is what ``flwr list`` says. Flower keeps the clients' states,
so a game that was stopped starts again from round 1 (to the same result).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fedsim
from clients.isolation import ISOLATE
from fedsim.core.errors import FedsimError, plainly
from fedsim.core.run_directory import RunDirectory
from fedsim.engines.own_code import runs_own_code

_STARTUP_SECONDS = 60.0


def run_game(run: RunDirectory, game: int, workers: int = 1) -> None:
    """Run one game of ``run`` under Ray; ``workers > 1`` bounds the number of Ray's CPUs.

    Raises:
        FedsimError: the run failed; the text names Flower's log and its last error.
    """
    app = app_folder()
    run.forget_checkpoint(game)
    log_path = run.path / f"flower-{game:03d}.log"
    isolation = {ISOLATE: "1"} if runs_own_code(run.scenario) else {}
    with _private_home(isolation) as environment, _superlink(environment, log_path) as address:
        _configure(environment, address)
        parties = run.scenario.parties.count
        federation = f"num-supernodes={parties} client-resources-num-cpus=1 init-args-log-to-driver=false"
        if workers > 1:
            federation += f" init-args-num-cpus={workers}"
        command = [
            *(_tool("flwr"), "run", str(app), "fedsim", "--stream"),
            *("--run-config", f"run={json.dumps(str(run.path))} game={game}"),
            *("--federation-config", federation),
        ]
        with log_path.open("ab") as log:
            home = environment["FLWR_HOME"]  # where no folder is called as the connection is
            subprocess.run(command, env=environment, cwd=home, stdout=log, stderr=log, check=False)
        status = _status(environment)
    if status != "finished:completed":
        raise FedsimError(f"Flower's run ended as '{status}': {_last_error(log_path)} (see {log_path})")


def app_folder() -> Path:
    """Return the folder that is the Flower App: the one with fedsim's pyproject.toml.

    Raises:
        FedsimError: fedsim was installed without it.
    """
    folder = Path(fedsim.__file__).resolve().parent.parent
    if not (folder / "pyproject.toml").is_file():
        raise FedsimError(f"{folder} has no pyproject.toml: --engine ray needs fedsim's own checkout")
    return folder


@contextmanager
def _private_home(variables: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Give Flower a home folder of its own, switches that keep it quiet and offline, and ``variables``."""
    home = Path(tempfile.mkdtemp(prefix="fedsim-flower-"))
    scripts = str(Path(sys.executable).parent)
    try:
        yield {
            **os.environ,
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            **variables,
        }
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _superlink(environment: dict[str, str], log_path: Path) -> Iterator[str]:
    """Run a SuperLink in simulation mode on free ports; yield its address."""
    http_port, control_port = _free_ports(2)
    command = [
        *(_tool("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"),
        *("--control-api-address", f"127.0.0.1:{control_port}"),
        *("--host", "127.0.0.1", "--port", str(http_port)),
        *("--database", str(Path(environment["FLWR_HOME"]) / "state.db")),
    ]
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _await_health(process, http_port, log_path)
        yield f"127.0.0.1:{http_port}"
    finally:
        _end(process)


def _await_health(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    deadline = time.monotonic() + _STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise FedsimError(f"Flower's SuperLink did not start: {_last_error(log_path)} (see {log_path})")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the SuperLink and everything it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(timeout=10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _configure(environment: dict[str, str], address: str) -> None:
    config = (
        f'[superlink]\ndefault = "fedsim"\n\n[superlink.fedsim]\naddress = "{address}"\ninsecure = true\n'
    )
    (Path(environment["FLWR_HOME"]) / "config.toml").write_text(config, encoding="utf-8")


def _status(environment: dict[str, str]) -> str:
    answer = subprocess.run(
        [_tool("flwr"), "list", "fedsim", "--format", "json"],
        env=environment, cwd=environment["FLWR_HOME"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        runs: list[dict[str, Any]] = json.loads(answer.stdout)["runs"]
        return str(runs[0]["status"])
    except (ValueError, KeyError, IndexError):
        return "unknown"


def _last_error(log_path: Path) -> str:
    """Return the last line of the log that names an error."""
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    telling = [line.strip() for line in lines if "Error" in line or "Exception" in line]
    return plainly((telling or lines or ["no log"])[-1])


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as on_exit:
        sockets = [on_exit.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def _tool(name: str) -> str:
    """Return the path of a command that belongs to this Python, or that is on the PATH.

    Raises:
        FedsimError: there is none.
    """
    beside = Path(sys.executable).parent / name
    path = str(beside) if beside.exists() else shutil.which(name)
    if path is None:
        raise FedsimError(
            f"--engine ray needs the command '{name}', which comes with flwr; install flwr again"
        )
    return path
