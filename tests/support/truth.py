"""Changing the truth of a run, and watching what the adversary's process opens."""

from __future__ import annotations

from fedsim.core import files
from fedsim.core.run_directory import RunDirectory
from fedsim.runs import integrity

WATCH = """
import json, sys
from pathlib import Path
opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
from flwr.app import RecordDict, ConfigRecord, Message
from clients import messages
from clients.client_app import app
from fedsim.engines.inprocess import InProcessGrid
from fedsim.core.files import read_arrays
run = Path(sys.argv[1])
candidates, worlds = (read_arrays(run / f"{name}-000.safetensors") for name in ("candidates", "worlds"))
opened.clear()
with InProcessGrid(run, 0, 3) as grid:
    adversary = min(grid.get_node_ids())
    config = ConfigRecord({"workers": 1})
    sent = {"candidates": messages.to_arrays(candidates), "worlds": messages.to_arrays(worlds)}
    content = RecordDict({**sent, "config": config})
    [reply] = grid.send_and_receive([Message(content, adversary, "query.attack")])
assert reply.has_content(), reply.error
print(json.dumps(sorted(path for path in opened if path.startswith(str(run)))))
"""


def flip(run: RunDirectory) -> None:
    path = run.path / "truth.parquet"
    truth = files.read_table(path)
    files.write_table(path, truth.assign(member=~truth["member"]))
    integrity.note(run, path.name)
