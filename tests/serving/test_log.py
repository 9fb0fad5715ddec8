"""The audit log: whatever is done to it shows, and no line is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.errors import InputError
from fedsim.serving import log, state
from fedsim.serving.log import AuditLog


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return state.folder(tmp_path)


@pytest.fixture
def secret(folder: Path) -> state.Secret:
    return state.secret(folder)


def write(folder: Path, secret: state.Secret, n: int) -> list[bytes]:
    made = AuditLog(folder, secret)
    for number in range(n):
        made.append({"key": "ab", "records": number, "name": "Ärztin"})
    made.close()
    return (folder / log.LOG).read_bytes().splitlines(keepends=True)


def problem(folder: Path, secret: state.Secret) -> str:
    return log.verify(folder, secret).problem or ""


def test_a_whole_log_holds(folder: Path, secret: state.Secret) -> None:
    write(folder, secret, 5)
    lines = write(folder, secret, 3)
    verdict = log.verify(folder, secret)
    assert verdict.problem is None and verdict.head.lines == 8
    assert verdict.head.mac == json.loads(lines[-1])["mac"]
    assert [entry["n"] for entry in log.read(folder)] == list(range(1, 9))
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


Tamper = Callable[[list[bytes]], list[bytes]]
TAMPERED: dict[str, tuple[Tamper, str]] = {
    "a value": (lambda ls: [*ls[:2], ls[2].replace(b'"records":2', b'"records":3'), *ls[3:]], "line 3 was"),
    "a blank": (lambda ls: [*ls[:2], ls[2].replace(b",", b", ", 1), *ls[3:]], "line 3 was changed"),
    "one removed": (lambda ls: ls[:2] + ls[3:], "line 3 has the number 4: lines were removed"),
    "two swapped": (lambda ls: [ls[0], ls[2], ls[1], *ls[3:]], "line 2 has the number 3"),
    "the first removed": (lambda ls: ls[1:], "line 1 has the number 2"),
    "one twice": (lambda ls: ls[:3] + ls[2:], "line 4 has the number 3"),
    "the last cut off": (lambda ls: ls[:-1], "1 line(s) were cut off the end"),
    "all cut off": (lambda ls: [], "5 line(s) were cut off the end"),
    "half a line": (lambda ls: [*ls[:-1], ls[-1][:20]], "line 5 was changed"),
    "rubbish": (lambda ls: [*ls, b"{}\n"], "line 6 was changed"),
    "a list": (lambda ls: [*ls, b"[1]\n"], "line 6 was changed"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_whatever_is_done_to_it_shows(folder: Path, secret: state.Secret, how: str) -> None:
    change, said = TAMPERED[how]
    lines = write(folder, secret, 5)
    (folder / log.LOG).write_bytes(b"".join(change(lines)))
    assert said in problem(folder, secret)


@given(data=st.data())
def test_any_changed_byte_shows(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = state.folder(tmp_path_factory.mktemp("log"))
    secret = state.secret(folder)
    content = bytearray(b"".join(write(folder, secret, 3)))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    (folder / log.LOG).write_bytes(content)
    assert problem(folder, secret)


def test_a_line_that_another_secret_wrote_shows(folder: Path, secret: state.Secret, tmp_path: Path) -> None:
    write(folder, secret, 2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = write(state.folder(elsewhere), state.Secret(b"z" * 32), 3)
    with (folder / log.LOG).open("ab") as file:
        file.write(other[2])
    assert "line 3 was changed" in problem(folder, secret)


def test_a_log_without_its_head_is_not_gone_on_with(folder: Path, secret: state.Secret) -> None:
    write(folder, secret, 3)
    (folder / log.HEAD).unlink()
    assert "audit.head is missing" in problem(folder, secret)
    with pytest.raises(InputError, match=r"is missing or altered; keep audit\.jsonl elsewhere"):
        AuditLog(folder, secret)


def test_a_cut_shows_after_the_service_went_on(folder: Path, secret: state.Secret) -> None:
    lines = write(folder, secret, 5)
    (folder / log.LOG).write_bytes(b"".join(lines[:3]))
    write(folder, secret, 2)
    assert "line 4 has the number 6" in problem(folder, secret)


def test_a_head_put_back_shows(folder: Path, secret: state.Secret) -> None:
    write(folder, secret, 3)
    old = (folder / log.HEAD).read_bytes()
    lines = write(folder, secret, 3)
    (folder / log.HEAD).write_bytes(old)
    assert log.verify(folder, secret).problem is None, "a killed process leaves just that: lines beyond it"
    (folder / log.LOG).write_bytes(b"".join(lines[:2]))
    assert "1 line(s) were cut off" in problem(folder, secret)


def test_what_a_killed_process_left_is_gone_on_with(folder: Path, secret: state.Secret) -> None:
    """A whole line before the head was noted stays; half a line, which was never answered, goes."""
    write(folder, secret, 2)
    head = (folder / log.HEAD).read_bytes()
    lines = write(folder, secret, 1)
    (folder / log.HEAD).write_bytes(head)
    (folder / log.LOG).write_bytes(b"".join(lines) + b'{"n":4,"key":"a')
    assert len(write(folder, secret, 1)) == 4
    assert log.verify(folder, secret).problem is None


WRITER = """
import sys
from pathlib import Path
from fedsim.serving import log, state
folder = Path(sys.argv[1])
made = log.AuditLog(folder, state.secret(folder))
print("ready", flush=True)
for number in range(100000):
    made.append({"who": sys.argv[2], "number": number})
    print(number, flush=True)
"""


def test_two_processes_append_and_a_kill_loses_no_line(folder: Path, secret: state.Secret) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder), who], stdout=subprocess.PIPE, text=True)
        for who in "ab"
    ]
    said: list[list[str]] = []
    for writer in writers:
        assert writer.stdout is not None
        said.append([writer.stdout.readline() for _ in range(100)])
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
    for writer, lines in zip(writers, said, strict=True):
        assert writer.stdout is not None
        lines += writer.stdout.read().splitlines()
        writer.wait(60)
    verdict = log.verify(folder, secret)
    assert verdict.problem is None
    entries = list(log.read(folder))
    for who, lines in zip("ab", said, strict=True):
        acknowledged = int([line for line in lines if line.strip().isdigit()][-1])
        logged = [entry["number"] for entry in entries if entry["who"] == who]
        assert logged == list(range(len(logged))) and acknowledged < len(logged) <= acknowledged + 2
    assert len(write(folder, secret, 1)) == len(entries) + 1
    assert log.verify(folder, secret).problem is None


def test_threads_share_a_log(folder: Path, secret: state.Secret) -> None:
    made = AuditLog(folder, secret)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: made.append({"number": number}), range(200)))
    assert log.verify(folder, secret).head.lines == 200
    assert sorted(entry["number"] for entry in log.read(folder)) == list(range(200))
