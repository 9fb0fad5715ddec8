"""What `fedsim deploy init` writes: a folder each, with nothing of one another's, and a node's word last."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from flwr.app import ConfigRecord, Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from support.runs import scenario

from clients import node, participant
from clients.deployed import load, own_table, party_of, read_node, scenario_of
from fedsim.cli.main import main
from fedsim.core.errors import InputError
from fedsim.deploy import checking, folders, names
from fedsim.deploy.folders import Wanted
from fedsim.runs import prepare

PRIVATE = {"node.key", "node.toml", "scenario.toml", "records.csv"}


def forget() -> None:
    """As in a node's next process: what was read of its folder is read again."""
    load.cache_clear()
    own_table.cache_clear()


def deployment(tmp_path: Path, **sections: object) -> dict[str, Path]:
    prepared = prepare.check(scenario(tmp_path, **({"dp": {"all": {"epsilon": 8}}} | sections)), None)
    wanted = Wanted(
        hosts=["fl.example.org"], budgets={"hospital-2": 9.0}, malicious="hospital-1", with_records=True
    )
    return folders.write(prepared, tmp_path / "federation", wanted)


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Path]:
    return deployment(tmp_path)


def test_each_party_has_its_own_key_and_records_and_no_one_elses(written: dict[str, Path]) -> None:
    parties = {name: path for name, path in written.items() if name != "server"}
    assert list(parties) == ["hospital-1", "hospital-2", "hospital-3"]
    keys = {(path / "node.key").read_bytes() for path in parties.values()}
    assert len(keys) == 3
    tables = [pd.read_csv(path / "records.csv") for path in parties.values()]
    assert sum(map(len, tables)) == 60
    for path in parties.values():
        for name in PRIVATE:
            assert stat.S_IMODE((path / name).stat().st_mode) == 0o600, name
    server = written["server"]
    assert not list(server.rglob("node.key")) and not list(server.rglob("records.csv"))
    assert len(list((server / "nodes").glob("*.pub"))) == 3
    texts = [p.read_text(errors="replace") for f in written.values() for p in f.rglob("*") if p.is_file()]
    assert not any("patients.csv" in text for text in texts)  # the organiser's table is nobody's business


def test_settings_say_who_it_is_and_what_it_allows(written: dict[str, Path]) -> None:
    two = read_node(written["hospital-2"])
    assert (two.party, two.partition, two.server) == ("hospital-2", 1, "fl.example.org:9092")
    assert two.epsilon_budget == 9.0 and two.role == "honest"
    assert read_node(written["hospital-1"]).role == "malicious"
    path = written["hospital-2"] / "node.toml"
    path.write_text(path.read_text().replace('role = "honest"', 'role = "helpful"'))
    with pytest.raises(InputError, match=r"node\.toml: role = 'helpful'"):
        read_node(written["hospital-2"])


def test_a_node_encodes_by_the_public_schema_and_holds_the_same_records_out_each_time(
    written: dict[str, Path],
) -> None:
    one = load(written["hospital-3"].resolve())
    forget()
    again = load(written["hospital-3"].resolve())
    np.testing.assert_array_equal(one.records.heldout.features, again.records.heldout.features)
    assert len(one.records) == 20 and len(one.records.heldout) == 4
    assert one.observations is None and one.names == ("hospital-1", "hospital-2", "hospital-3")
    switch = scenario_of(written["hospital-3"]).dp_of("hospital-3")
    assert switch is not None and switch.secure  # noise from the operating system, not from the agreed seed


def introduced(folder: Path, config: dict) -> ConfigRecord:
    """What a node says of itself to a server whose run config names a run of its own."""
    context = Context(1, 1, {"folder": str(folder), **config}, RecordDict(), {"run": "/no/run"})
    return participant.introduce(party_of(context), context).config_records["introduction"]


def test_the_folder_decides_and_not_the_server(written: dict[str, Path], tmp_path: Path) -> None:
    forget()
    folder, ledger = written["hospital-2"].resolve(), {"epsilon-ledger": str(tmp_path / "ledger.json")}
    introduction = introduced(folder, ledger)
    assert introduction["party"] == "hospital-2" and 7 < float(str(introduction["epsilon"])) <= 8
    with pytest.raises(node.BudgetSpent, match="exceeds this node's own epsilon-budget of 2"):
        introduced(folder, {**ledger, "epsilon-budget": 2.0})
    forget()
    open_one = deployment_without_dp(tmp_path)
    with pytest.raises(node.BudgetSpent, match="trains under DP-SGD only"):
        introduced(open_one, {**ledger, "epsilon-budget": 2.0})


def deployment_without_dp(tmp_path: Path) -> Path:
    folder = tmp_path / "open"
    folder.mkdir()
    return deployment(folder, dp={})["hospital-2"].resolve()


def test_check_says_what_the_node_will_do(written: dict[str, Path]) -> None:
    forget()
    said = checking.facts(written["hospital-2"])
    assert said["records"] == "16 to train on, 4 held out" and "ε = 9" in said["budget"]
    path = written["hospital-2"] / "node.toml"
    path.write_text(path.read_text().replace("epsilon_budget = 9.0", "epsilon_budget = 3.0"))
    with pytest.raises(InputError, match=r"beyond epsilon_budget = 3 of node\.toml"):
        checking.facts(written["hospital-2"])


def test_what_cannot_be_deployed_is_refused(tmp_path: Path, written: dict[str, Path]) -> None:
    prepared = prepare.check(scenario(tmp_path), None)
    with pytest.raises(InputError, match="is not empty"):
        folders.write(prepared, tmp_path / "federation", Wanted())
    with pytest.raises(InputError, match="'hospital-9': no such party"):
        folders.write(prepared, tmp_path / "new", Wanted(malicious="hospital-9"))
    active = scenario(tmp_path, adversary={"active": "poisoning", "attacks": ["loss"]})
    with pytest.raises(InputError, match=r"adversary\.active"):
        folders.write(prepare.check(active, None), tmp_path / "new", Wanted())
    (tmp_path / "net.py").write_text("from torch import nn\ndef make(s, c):\n    return nn.Linear(s[0], c)\n")
    own = scenario(tmp_path, model={"name": "net:make", "folder": str(tmp_path)})
    with pytest.raises(InputError, match="'net:make' is code of your own"):
        folders.write(prepare.check(own, None), tmp_path / "new", Wanted())
    (written["hospital-2"] / "records.csv").write_text("age,pressure,ward,ill\n50,120,A,yes\n")
    forget()
    with pytest.raises(InputError, match="needs at least 4"):
        load(written["hospital-2"].resolve())
    done = CliRunner().invoke(main, ["deploy", "attack", str(written["hospital-2"]), "--candidates", "x.csv"])
    assert done.exit_code == 2 and "role = 'honest'" in done.output


@given(st.lists(st.text(min_size=1, max_size=30), min_size=2, max_size=8, unique=True))
def test_every_party_gets_a_folder_of_its_own(parties: list[str]) -> None:
    slugs = names.slugs(parties)
    assert list(slugs) == parties
    folded = [slug.casefold() for slug in slugs.values()]
    assert len(set(folded)) == len(parties) and "server" not in folded
    assert all(slug and "/" not in slug and slug not in (".", "..") for slug in slugs.values())
