"""A federation between addresses: server and parties in a network namespace each, with a folder each."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.deployments import started, written
from support.long import LONG
from support.networks import machines

from fedsim.core.run_directory import RunDirectory
from fedsim.deploy.running import LOG

pytestmark = [pytest.mark.slow, LONG, pytest.mark.xdist_group("flower")]

SECONDS = 300
PORT = 9092
ADDRESSES = {
    name: f"10.77.0.{k + 1}" for k, name in enumerate(("server", "hospital-1", "hospital-2", "hospital-3"))
}

ORDER = """
import ssl, sys, urllib.error, urllib.request
url, authority = sys.argv[1:]
request = urllib.request.Request(url, data=b"", headers={"Content-Type": "application/protobuf"})
try:
    with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=authority)) as answer:
        print(answer.status)
except urllib.error.HTTPError as error:
    print(error.code)
except urllib.error.URLError as error:
    print(error.reason)
"""


def ordered(inside: list[str], path: str, authority: Path) -> str:
    """Send an empty order to the server from a machine; return its answer's status, or what went wrong."""
    url = f"https://{ADDRESSES['server']}:{PORT}{path}"
    command = [*inside, sys.executable, "-c", ORDER, url, str(authority)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_organisations_at_addresses_of_their_own_train_a_model(tmp_path: Path) -> None:
    settings = {"federation": {"rounds": 1}, "dp": {"hospital-2": {"epsilon": 8}}}
    folders = written(tmp_path, settings, hosts=(ADDRESSES["server"],), port=PORT)
    homes = {}
    for name, folder in folders.items():
        (tmp_path / f"home-{name}").mkdir(mode=0o700)
        homes[name] = folder.rename(tmp_path / f"home-{name}" / folder.name)
    with ExitStack() as stack:
        inside = dict(
            zip(
                homes, stack.enter_context(machines([f"{ADDRESSES[name]}/24" for name in homes])), strict=True
            )
        )
        server = stack.enter_context(started("server", homes["server"], inside["server"]))
        authority, deadline = homes["hospital-1"] / "ca.crt", time.monotonic() + SECONDS
        while not (said := ordered(inside["hospital-1"], "/v1/control/register-node", authority)).isdigit():
            assert server.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.5)
        assert said == "403"  # who may reach the server's port may not let in a key
        assert ordered(inside["hospital-1"], "/v1/fleet/pull-messages", authority) == "401"
        for name in list(homes)[1:]:
            stack.enter_context(started("node", homes[name], inside[name]))
        output, _ = server.communicate(timeout=SECONDS)
    assert server.returncode == 0, output
    run = RunDirectory.open(homes["server"] / "run")
    rounds = run.table("rounds").query("round == 1 and party != 'all'")
    assert run.manifest["complete"] and list(rounds["status"]) == ["ok"] * 3
    log = (homes["server"] / LOG).read_text(errors="replace")
    assert all(f"{ADDRESSES[name]}:" in log for name in homes if name != "server")
    assert (homes["hospital-2"] / "ledger.json").exists()
