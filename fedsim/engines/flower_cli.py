"""Flower's own commands, run from a private home: what `--engine ray` and `--engine superlink` share.

Flower keeps a SuperLink running after ``flwr run``, reuses it with the first starter's environment, and
answers 0 even where a run failed. Here every game has a SuperLink of its own, in a private home and on free
ports, which ends with it; success is what ``flwr list`` says. Its SuperExec is a session of its own, which no
signal to the SuperLink's reaches: every process is known by a mark in its environment instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.core.errors import FedsimError, plainly

CONNECTION = "fedsim"
"""What the private home calls its SuperLink."""

MARK = "FEDSIM_ENGINE"
"""Environment variable that all processes of one game share, and no others."""

APP = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "fedsim-engine"
version = "1.0.0"

[tool.flwr.app]
publisher = "fedsim"

[tool.flwr.app.components]
serverapp = "{server_app}"
clientapp = "clients.client_app:app"

[tool.flwr.app.config]
run = ""
game = 0
"""

_STARTUP_SECONDS = 120.0
_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1  # of Linux' prctl


@dataclass(frozen=True)
class FlowerHome:
    """A home folder for Flower, readable by its owner alone, and what its commands need.

    log: file that takes all that they print
    """

    path: Path
    environment: Mapping[str, str]
    log: Path

    def start(self, command: Sequence[str], **variables: str) -> subprocess.Popen[bytes]:
        """Start a command that stays, which ends when this process does."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [tool(command[0]), *command[1:]], env={**self.environment, **variables}, cwd=self.path,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip

    def call(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, and keep what it prints."""
        # The home is where no folder is called as the connection is: `flwr list NAME` would take that.
        done = subprocess.run(
            [tool(command[0]), *command[1:]], env=dict(self.environment), cwd=self.path, check=False,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        with self.log.open("a", encoding="utf-8") as log:
            log.write(done.stdout + done.stderr)
        return done


def write_app(home: FlowerHome, server_app: str = "fedsim.runs.flower_app:app") -> Path:
    """Write the Flower App of fedsim's own engines into the home; return its folder.

    Flower sends it along with every message: it names what is installed and brings no code of its own.
    """
    folder = home.path / "app"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(APP.format(server_app=server_app), encoding="utf-8")
    return folder


@contextmanager
def private_home(log: Path, variables: Mapping[str, str], owner: Path | None = None) -> Iterator[FlowerHome]:
    """Give Flower a home of its own, switches that keep it quiet and offline, and ``variables``.

    Whatever was started from it, and all that this started, is gone when it ends.

    owner: folder whose lock this process holds. What an earlier owner left running when it was killed ends
        first: its ServerApp goes on for seconds, keeps the run's folder and speaks to whoever has its port.
    """
    mark = uuid.uuid4().hex if owner is None else uuid.uuid5(uuid.NAMESPACE_URL, owner.as_uri()).hex
    end_all(mark, [signal.SIGKILL])
    home = Path(tempfile.mkdtemp(prefix="fedsim-flower-"))
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "FLWR_HOME": str(home),
        "TMPDIR": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        MARK: mark,
        **variables,
    }
    try:
        yield FlowerHome(home, environment, log)
    finally:
        end_all(mark)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def superlink(
    home: FlowerHome,
    options: Sequence[str],
    authority: Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    on_disk: bool = False,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a guarded SuperLink; yield its address here and its process, and configure ``flwr`` for it.

    authority: certificate by which its TLS is checked; None where it has none
    host, port: where nodes reach it; default: a free port of the loopback
    on_disk: whether messages lie on the disk until they are fetched, at twice the cost of a round, so that no
        node can fill the memory

    Raises:
        FedsimError: it did not start; the text names the log and its last error.
    """
    tool("flower-superlink")  # where Flower's commands are missing this says so
    free, control_port = free_ports(2)
    port = port or free
    database = ["--database", str(home.path / "state.db")] if on_disk else []
    process = home.start([
        sys.executable, "-m", "fedsim.engines.guarded_superlink", *options, "--isolation", "subprocess",
        "--host", host, "--port", str(port),
        "--control-api-address", f"127.0.0.1:{control_port}", *database,
    ])  # fmt: skip
    try:
        address = f"127.0.0.1:{port}"
        _configure(home, address, authority)
        _await_health(process, address, authority, home.log)
        yield address, process
    finally:
        end(process)


def run_app(
    home: FlowerHome,
    app: Path,
    config: str,
    federation: str = "",
    watched: Mapping[str, subprocess.Popen[bytes]] = {},
) -> None:
    """Run a Flower App on the home's SuperLink, until it ends.

    app: its folder
    config, federation: as for ``flwr run --run-config`` and ``--federation-config``
    watched: processes that have to live as long, by what they are called

    Raises:
        FedsimError: the run did not complete, or one of ``watched`` ended before it.
    """
    command = ["flwr", "run", str(app), CONNECTION, "--stream"]
    command += ["--run-config", config] if config else []
    running = home.start([*command, *(["--federation-config", federation] if federation else [])])
    try:
        while running.poll() is None:
            time.sleep(_POLL_SECONDS)
            for name, process in watched.items():
                if process.poll() is not None:
                    raise FedsimError(
                        f"{name} ended with code {process.returncode}: {last_error(home.log)} "
                        f"(see {home.log})"
                    )
    finally:
        end(running)
    status = _status(home)
    if status != "finished:completed":
        raise FedsimError(f"Flower's run ended as '{status}': {last_error(home.log)} (see {home.log})")


def _status(home: FlowerHome) -> str:
    answer = home.call(["flwr", "list", CONNECTION, "--format", "json"])
    try:
        runs: list[dict[str, Any]] = json.loads(answer.stdout)["runs"]
        return str(runs[0]["status"])
    except (ValueError, KeyError, IndexError):
        return "unknown"


def _configure(home: FlowerHome, address: str, authority: Path | None) -> None:
    trust = "insecure = true" if authority is None else f"root-certificates = {json.dumps(str(authority))}"
    lines = ["[superlink]", f'default = "{CONNECTION}"', "", f"[superlink.{CONNECTION}]"]
    lines += [f'address = "{address}"', trust, ""]
    (home.path / "config.toml").write_text("\n".join(lines), encoding="utf-8")


def _await_health(
    process: subprocess.Popen[bytes], address: str, authority: Path | None, log_path: Path
) -> None:
    trust = None if authority is None else ssl.create_default_context(cafile=str(authority))
    url = f"{'http' if authority is None else 'https'}://{address}/health"
    deadline = time.monotonic() + _STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1, context=trust):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_SECONDS)
    raise FedsimError(f"Flower's SuperLink did not start: {last_error(log_path)} (see {log_path})")


def last_error(log_path: Path) -> str:
    """Return what the log last says of an error."""
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines() if log_path.exists() else []
    boxed = [number for number, line in enumerate(lines) if line.startswith("╭─ Error")]
    if boxed:  # of the command flwr itself
        rows = itertools.takewhile(lambda line: line.startswith("│"), lines[boxed[-1] + 1 :])
        return plainly(" ".join(row.strip("│ ") for row in rows))
    telling = [line.strip() for line in lines if "Error" in line or "Exception" in line]
    return plainly((telling or lines or ["no log"])[-1])


# ------------------------------------------------------------------- processes
def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started here with all of its session: asked first, then killed."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(timeout=_GRACE_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def end_all(mark: str, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGKILL)) -> None:
    """End every process whose environment holds this mark, by one signal after the other."""
    for how in signals:
        deadline = time.monotonic() + _GRACE_SECONDS
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, how)
        while marked(mark) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def marked(mark: str) -> list[int]:
    """Return the processes, but this one, whose environment holds the mark; none where there is no /proc."""
    entry, pids = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (OSError, IndexError):
            continue
        if entry in environment and not zombie and int(folder.name) != os.getpid():
            pids.append(int(folder.name))
    return pids


def end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent is gone, however that ends; runs in the child."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_starter() -> None:
    """Have this process end with the SuperExec that started it, where fedsim started that one.

    Else a ServerApp goes on asking a SuperLink that has been killed, for minutes.
    """
    if MARK in os.environ:
        end_with_parent()


def free_ports(count: int) -> list[int]:
    """Return ports of this machine's loopback that nothing listens on."""
    with contextlib.ExitStack() as on_exit:
        sockets = [on_exit.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def tool(name: str) -> str:
    """Return the path of a command that belongs to this Python, or that is on the PATH.

    Raises:
        FedsimError: there is none.
    """
    if Path(name).is_absolute():
        return name
    beside = Path(sys.executable).parent / name
    path = str(beside) if beside.exists() else shutil.which(name)
    if path is None:
        raise FedsimError(f"the command '{name}' is missing, which comes with flwr; install flwr again")
    return path
