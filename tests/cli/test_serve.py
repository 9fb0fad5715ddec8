"""`fedsim serve`, `keys` and `log`, as commands and as processes that are stopped and killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result
from support.serving import ROW, a_run, bearer

from fedsim.cli.main import main
from fedsim.core.run_directory import RunDirectory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return a_run(tmp_path_factory.mktemp("served"))


@pytest.fixture
def run(finished: RunDirectory, tmp_path: Path) -> str:
    return str(shutil.copytree(finished.path, tmp_path / "run"))


def fedsim(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def key(run: str, *options: str, name: str = "clinic") -> str:
    result = fedsim("keys", "add", run, name, "--per-minute", "0", *options)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def ask(url: str, text: str, client: httpx.Client | None = None, **changes: object) -> httpx.Response:
    post = (client or httpx).post
    return post(f"{url}/predict", json={"records": [ROW | changes]}, headers=bearer(text), timeout=30)


@pytest.fixture
def served(run: str) -> Iterator[list[tuple[str, subprocess.Popen[str]]]]:
    """Two processes that serve the same run."""
    processes = [start(run) for _ in range(2)]
    yield [(address(process), process) for process in processes]
    for process in processes:
        process.kill()
        process.wait(30)


def start(run: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedsim.cli", "serve", run, "--port", "0"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Serving ") and " on http://127.0.0.1:" in line, line
    return line.split()[-1]


def test_keys_are_added_listed_and_revoked(run: str) -> None:
    text = key(run, "--policy", "laplace", "--epsilon", "0.5", "--epsilon-budget", "2", "--expires", "30d")
    assert text.startswith("fedsim_") and len(text) > 40
    listed = fedsim("keys", "list", run).output
    assert "clinic  active  client  laplace" in listed and "ε 0 of 2" in listed and text not in listed
    (as_data,) = json.loads(fedsim("keys", "list", run, "--json").stdout)
    assert (as_data["name"], as_data["policy"]["policy"], as_data["asked"]) == ("clinic", "laplace", 0)
    assert fedsim("keys", "revoke", run, "clinic").exit_code == 0
    assert "clinic  revoked" in fedsim("keys", "list", run).output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policy", "labels"], "--policy labels: no such policy; did you mean 'label'?"),
        (["--policy", "laplace"], "give the key a budget of it"),
        (["--digits", "-1"], "--digits -1: "),
        (["--expires", "tomorrow"], "--expires tomorrow: a number and m, h or d"),
        (["--role", "admin"], "--role admin: no such role; valid: client, operator"),
    ],
)
def test_wrong_options_are_named(run: str, options: list[str], said: str) -> None:
    result = fedsim("keys", "add", run, "clinic", *options)
    assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1


def test_what_cannot_be_served_is_named(run: str, tmp_path: Path) -> None:
    assert "is not a run of fedsim" in fedsim("serve", str(tmp_path)).stderr
    (Path(run) / "models/game-000/round-003.safetensors").unlink()
    assert "round-003.safetensors is missing" in fedsim("serve", run).stderr
    (Path(run) / "schema.json").unlink()
    missing = fedsim("serve", run)
    assert (
        missing.exit_code == 2 and "schema.json is missing: an earlier fedsim made this run" in missing.stderr
    )


def test_a_port_in_use_is_named(run: str, served: list[tuple[str, subprocess.Popen[str]]]) -> None:
    port = served[0][0].rsplit(":", 1)[1]
    result = fedsim("serve", run, "--port", port)
    assert result.exit_code == 2 and f"cannot listen on 127.0.0.1, port {port}" in result.stderr


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_soon_and_stops_cleanly(run: str, how: signal.Signals) -> None:
    text = key(run)
    began = time.monotonic()
    process = start(run)
    url = address(process)
    assert ask(url, text).status_code == 200
    assert time.monotonic() - began < 20, "5 s on a machine of its own"
    process.send_signal(how)
    said = process.communicate(timeout=30)
    assert process.returncode == 0 and said[1].strip() == "Stopped" and "Traceback" not in said[1]
    assert fedsim("log", "verify", run).output.startswith("1 line(s) hold; the last mac is ")


def test_two_processes_and_fifty_clients_share_one_budget(
    run: str, served: list[tuple[str, subprocess.Popen[str]]]
) -> None:
    text = key(run, "--policy", "gaussian", "--epsilon", "0.5", "--epsilon-budget", "20", "--queries", "1000")

    def client(number: int) -> list[int]:
        url = served[number % 2][0]
        with httpx.Client() as own:
            return [ask(url, text, own, age=number + turn / 10).status_code for turn in range(4)]

    with ThreadPoolExecutor(50) as pool:
        statuses = [status for each in pool.map(client, range(50)) for status in each]
    assert statuses.count(200) == 40 and statuses.count(429) == 160
    assert "40 of 1000 records, ε 20 of 20" in fedsim("keys", "list", run).output
    assert fedsim("log", "verify", run).output.startswith("200 line(s) hold")


def test_a_kill_loses_no_line_and_forgets_no_spending(run: str) -> None:
    text = key(run, "--queries", "100000")
    process = start(run)
    url = address(process)
    answered: list[int] = []

    def client(number: int) -> None:
        with httpx.Client() as own:
            try:
                while True:
                    answered.append(ask(url, text, own, age=number).status_code)
            except httpx.HTTPError:
                return

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    process.kill()
    for thread in threads:
        thread.join()
    process.communicate(timeout=30)
    verified = fedsim("log", "verify", run)
    assert verified.exit_code == 0
    lines = int(verified.output.split()[0])
    spent = int(fedsim("keys", "list", run).output.split("client  full  ")[1].split()[0])
    assert set(answered) == {200} and len(answered) > 20
    assert len(answered) <= lines <= spent <= len(answered) + 8, "answered, then logged, then paid for"
    again = start(run)
    assert ask(address(again), text).status_code == 200
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=30)
    assert fedsim("log", "verify", run).output.startswith(f"{lines + 1} line(s) hold")


def test_a_changed_log_is_found_and_probing_is_named(run: str) -> None:
    text = key(run)
    process = start(run)
    url = address(process)
    with httpx.Client() as own:
        for number in range(40):
            ask(url, text, own, age=50 + number / 100)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    watched = fedsim("log", "watch", run)
    assert watched.exit_code == 0 and "clinic: 39 of 40 records lie next to an earlier one" in watched.output
    log = Path(run) / "serving" / "audit.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert json.loads(lines[0])["name"] == "clinic"
    log.write_text("".join([lines[1], lines[0], *lines[2:]]))
    wrong = fedsim("log", "verify", run)
    assert wrong.exit_code == 1 and "line 1 has the number 2" in wrong.stderr


def test_starting_imports_no_flower(run: str) -> None:
    program = "import sys; from fedsim.serving import service; print([m for m in sys.modules if m == 'flwr'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "[]"
