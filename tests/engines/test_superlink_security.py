"""Who may join a deployment: a registered key over TLS that its authority signed, and no one else."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedsim.engines import credentials, flower_cli, node, superlink
from fedsim.engines.flower_cli import FlowerHome

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flower")]

CONNECTED = superlink.LET_IN.decode()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FlowerHome, str, Path]]:
    """A SuperLink that knows the key ``node-0``: its home, its address and its authority."""
    log = tmp_path_factory.mktemp("deployment") / "flower.log"
    with flower_cli.private_home(log, {}) as home:
        tls = credentials.write_server(home.path, ["127.0.0.1"], days=1)
        public = credentials.write_node_key(home.path / "node-0")
        with flower_cli.superlink(home, [*tls.options, "--enable-supernode-auth"], tls.authority) as (at, _):
            superlink.register(home, [public])
            yield home, at, tls.authority


@contextlib.contextmanager
def joining(
    home: FlowerHome, log: Path, address: str, *options: str, seconds: float = 40.0
) -> Iterator[tuple[bool, str]]:
    """Start a node with these options; yield whether it was let in before it gave up, and what it said."""
    process = replace(home, log=log).start([
        "flower-supernode", "--superlink", address, "--max-retries", "1", "--max-wait-time", "5",
        "--port", str(flower_cli.free_ports(1)[0]), *options,
    ])  # fmt: skip
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline and CONNECTED not in log.read_text(errors="replace"):
            try:
                process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                continue
        said = log.read_text(errors="replace")
        yield CONNECTED in said, said
    finally:
        flower_cli.end(process)


def join(home: FlowerHome, log: Path, address: str, *options: str) -> tuple[bool, str]:
    """Start a node and end it again; return whether it was let in, and what it said."""
    with joining(home, log, address, *options) as outcome:
        return outcome


def test_only_a_registered_key_over_tls_is_let_in(
    deployment: tuple[FlowerHome, str, Path], tmp_path: Path
) -> None:
    home, address, authority = deployment
    trust = ("--root-certificates", str(authority))
    stranger = tmp_path / "stranger"
    credentials.write_node_key(stranger)
    other = credentials.write_server(tmp_path, ["127.0.0.1"], days=1).authority
    own_key = ("--auth-supernode-private-key", str(home.path / "node-0"))
    attempts = {
        "registered": (*trust, *own_key),
        "unregistered": (*trust, "--auth-supernode-private-key", str(stranger)),
        "no key": trust,
        "plain text": ("--insecure",),
        "another authority": ("--root-certificates", str(other), *own_key),
    }
    outcomes = {
        name: join(home, tmp_path / f"{name}.log", address, *options) for name, options in attempts.items()
    }
    assert {name for name, (let_in, _) in outcomes.items() if let_in} == {"registered"}, outcomes


def test_a_key_that_is_in_use_is_not_let_in_again(
    deployment: tuple[FlowerHome, str, Path], tmp_path: Path
) -> None:
    """Whoever copied a node's key cannot answer beside it, under its name."""
    home, address, authority = deployment
    own = ("--root-certificates", str(authority), "--auth-supernode-private-key", str(home.path / "node-0"))
    with joining(home, tmp_path / "first.log", address, *own) as (first, said):
        assert first, said
        again, said = join(home, tmp_path / "again.log", address, *own)
        assert not again, said


def test_a_node_that_was_stopped_may_come_back_at_once(
    deployment: tuple[FlowerHome, str, Path], tmp_path: Path
) -> None:
    """It tells the server that it leaves, which would else take its key to be in use for a minute."""
    home, address, authority = deployment
    (home.path / node.NODES).mkdir()
    key, log = home.path / "node-0", tmp_path / "first.log"
    process = superlink.start_nodes(replace(home, log=log), address, authority, {key: "partition-id=0"})
    deadline = time.monotonic() + 60
    while CONNECTED not in log.read_text(errors="replace"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    flower_cli.end(process)
    own = ("--root-certificates", str(authority), "--auth-supernode-private-key", str(key))
    let_in, said = join(home, tmp_path / "again.log", address, *own)
    assert let_in, said


def test_a_node_refuses_an_expired_certificate(
    deployment: tuple[FlowerHome, str, Path], tmp_path: Path
) -> None:
    home, _, _ = deployment
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=30)
    tls = credentials.write_server(tmp_path, ["127.0.0.1"], days=1, now=then)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    [port] = flower_cli.free_ports(1)
    handshakes: list[str] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                with context.wrap_socket(listener.accept()[0], server_side=True):
                    handshakes.append("done")
            except ssl.SSLError as error:
                handshakes.append(str(error))
            except OSError:
                return

    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        key = ("--auth-supernode-private-key", str(home.path / "node-0"))
        let_in, _ = join(
            home,
            tmp_path / "expired.log",
            f"127.0.0.1:{port}",
            "--root-certificates",
            str(tls.authority),
            *key,
        )
        listener.shutdown(socket.SHUT_RDWR)
    assert not let_in and handshakes and "done" not in handshakes
    assert all("CERTIFICATE_EXPIRED" in what.upper().replace(" ", "_") for what in handshakes), handshakes


def test_private_keys_are_their_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    credentials.write_node_key(tmp_path / "node")
    assert (tmp_path / "node").stat().st_mode & 0o777 == credentials.PRIVATE_FILE
    with pytest.raises(FileExistsError):
        credentials.write_node_key(tmp_path / "node")
