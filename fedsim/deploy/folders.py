"""`fedsim deploy init`: what the server and each party need, in a folder each, and nothing of one another's.

The server's folder fixes what is public: the scenario, how records are encoded, and which keys are let in. A
node's has its own key, the authority's certificate and its own settings.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined

from clients.deployed import NODE, SCENARIO, NodeSettings
from fedsim.core import rng, trust
from fedsim.core.data import catalogue, released
from fedsim.core.data.table import Table
from fedsim.core.errors import InputError, suggestion
from fedsim.core.files import cannot_write, write_text
from fedsim.core.run_directory import PRIVATE, RunDirectory
from fedsim.core.scenario import reading
from fedsim.core.scenario.base import Settings
from fedsim.core.scenario.settings import Scenario
from fedsim.deploy import names
from fedsim.engines import credentials
from fedsim.runs import integrity
from fedsim.runs.prepare import Prepared, machine

SERVER, RUN, SETTINGS, KEY, AUTHORITY = "server", "run", "server.toml", "node.key", "ca.crt"

ALWAYS = ("127.0.0.1", "localhost")
"""Names that the server's certificate is always for: it asks itself how it is."""


class ServerSettings(Settings):
    """``server.toml``: where nodes reach the server, and how long it waits for all of them."""

    host: str = "0.0.0.0"
    port: int = 9092
    wait: float = 3600.0


@dataclass(frozen=True)
class Wanted:
    """What is asked of a deployment.

    hosts: names and addresses of the server, the one that nodes use first
    days: how long its certificates are valid
    budgets: party → its node's own budget of ε
    malicious: the party whose node keeps what it is sent, None for no one
    with_records: whether each party's own rows of the scenario's table are put into its folder, to try it out
    """

    hosts: Sequence[str] = ALWAYS
    port: int = 9092
    days: float = 365.0
    budgets: Mapping[str, float] | None = None
    malicious: str | None = None
    with_records: bool = False


def write(prepared: Prepared, out: Path, wanted: Wanted, data_dir: Path | None = None) -> dict[str, Path]:
    """Write the folders of a checked scenario's deployment; return 'server' and each party's, by name.

    data_dir: where named data sets are

    Raises:
        InputError: the folder is taken, or the scenario is one that cannot be deployed.
    """
    _check(prepared, wanted)
    try:
        out.mkdir(PRIVATE, parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError(f"{out} is not empty; choose another folder with --out")
    except OSError as error:
        raise cannot_write(out, error) from error
    parties = list(prepared.rows)
    folders = {SERVER: out / SERVER} | {name: out / slug for name, slug in names.slugs(parties).items()}
    for folder in folders.values():
        folder.mkdir(PRIVATE)
    table = catalogue.open_table(prepared.scenario.data, data_dir)
    scenario = _agreed(prepared, table)
    _write_server(prepared, scenario, folders[SERVER], wanted)
    for name in parties:
        _write_node(prepared, scenario, folders[name], name, wanted)
        (folders[SERVER] / "nodes" / f"{folders[name].name}.pub").write_bytes(
            (folders[name] / f"{KEY}.pub").read_bytes()
        )
    if wanted.with_records:
        _deal(table, scenario.seed, {name: folders[name] for name in parties})
    return folders


def _check(prepared: Prepared, wanted: Wanted) -> None:
    scenario, parties = prepared.scenario, list(prepared.rows)
    if prepared.encoded.schema is None or prepared.encoded.vocabulary:
        raise InputError("deploy: only tables can be deployed so far, no letters")
    if scenario.adversary.active is not None:
        raise InputError("deploy: adversary.active acts on candidates that no node has; leave it out")
    own = [name for name, _ in trust.references(scenario)]
    if own:  # whose file is on the organiser's disk alone
        raise InputError(
            f"deploy: '{own[0]}' is code of your own, which no node has; deploy a model that fedsim brings"
        )
    if scenario.model.pretrain is not None or scenario.federation.patience is not None:
        key = "model.pretrain" if scenario.model.pretrain is not None else "federation.patience"
        raise InputError(f"deploy: {key} needs public records at the server; leave it out")
    for name in (*(wanted.budgets or {}), *filter(None, [wanted.malicious])):
        if name not in parties:
            raise InputError(f"'{name}': no such party{suggestion(name, parties)}")


def _agreed(prepared: Prepared, table: Table) -> Scenario:
    """Return the scenario as everyone gets it: without where the organiser's own table is."""
    elsewhere = {"name": None, "path": "records.csv", "public": None, "party": None}
    columns = {"label": table.schema.label, "person": table.schema.person}
    data = prepared.scenario.data.model_copy(update=elsewhere | columns)
    adversary = prepared.scenario.adversary.model_copy(update={"candidates": None})
    return prepared.scenario.model_copy(update={"data": data, "adversary": adversary, "games": 1})


def _write_server(prepared: Prepared, scenario: Scenario, folder: Path, wanted: Wanted) -> None:
    (folder / "nodes").mkdir()
    credentials.write_server(folder, [*dict.fromkeys([*wanted.hosts, *ALWAYS])], wanted.days)
    write_text(folder / SETTINGS, tomli_w.dumps(ServerSettings(port=wanted.port).model_dump()))
    run = RunDirectory.create(folder / RUN, scenario)
    _write_schema(prepared, run.path)
    run.update_manifest(
        adversary=prepared.adversary,
        deployed=True,
        parties=dict.fromkeys(prepared.rows, 0),  # how many records a node has is its own affair
        input_shape=list(prepared.encoded.features.shape[1:]),
        classes=list(prepared.encoded.classes),
        notices=[],
        seed=scenario.seed,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        prepared=True,
        **machine(),
    )
    integrity.note(run, "scenario.toml", released.FILE)
    _write_texts(folder, ("README.md.j2", "fedsim-server.service.j2", "Containerfile.j2", "start.sh.j2"), {
        "kind": SERVER, "parties": list(prepared.rows), "port": wanted.port, "days": wanted.days,
        "host": wanted.hosts[0],
    })  # fmt: skip


def _write_schema(prepared: Prepared, folder: Path) -> None:
    encoded = prepared.encoded
    assert encoded.schema is not None  # `_check` has seen to it
    schema = released.release_schema(encoded.schema, prepared.scenario.data, encoded.readings)
    released.write_schema(folder, schema)


def _write_node(prepared: Prepared, scenario: Scenario, folder: Path, name: str, wanted: Wanted) -> None:
    credentials.write_node_key(folder / KEY)
    authority = folder.parent / SERVER / AUTHORITY
    (folder / AUTHORITY).write_bytes(authority.read_bytes())
    reading.save(scenario, folder / SCENARIO)
    _write_schema(prepared, folder)
    settings = NodeSettings(
        party=name,
        parties=list(prepared.rows),
        server=f"{wanted.hosts[0]}:{wanted.port}",
        epsilon_budget=(wanted.budgets or {}).get(name),
        role="malicious" if name == wanted.malicious else "honest",
    )
    write_text(folder / NODE, tomli_w.dumps(settings.model_dump(exclude_none=True)))
    dp = scenario.dp_of(name)
    _write_texts(folder, ("README.md.j2", "fedsim-node.service.j2", "Containerfile.j2", "start.sh.j2"), {
        "kind": "node", "node": settings, "dp": dp, "rounds": scenario.federation.rounds,
        "columns": prepared.encoded.schema.names if prepared.encoded.schema else (),
        "label": prepared.encoded.label, "person": scenario.data.person,
        "classes": prepared.encoded.classes, "slug": folder.name,
    })  # fmt: skip


def _write_texts(folder: Path, templates: Sequence[str], values: Mapping[str, object]) -> None:
    environment = Environment(  # nothing here is HTML
        loader=PackageLoader("fedsim.deploy"), undefined=StrictUndefined, autoescape=False,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    for name in templates:
        text = environment.get_template(name).render(**values)
        write_text(folder / name.removesuffix(".j2"), text)
        if name.endswith(".sh.j2"):
            (folder / name.removesuffix(".j2")).chmod(0o700)


def _deal(table: Table, seed: int, folders: Mapping[str, Path]) -> None:
    """Put each party's own rows of the scenario's table into its folder, as a trial without organisations."""
    frame, column = table.frame, table.schema.party
    if column is not None and set(folders) <= set(frame[column].astype(str)):
        shares = {name: frame[frame[column].astype(str) == name].drop(columns=column) for name in folders}
    else:
        order = rng.generator(seed, "records of a trial deployment").permutation(len(frame))
        parts = np.array_split(order, len(folders))
        shares = {name: frame.iloc[np.sort(part)] for name, part in zip(folders, parts, strict=True)}
    for name, share in shares.items():
        path = folders[name] / "records.csv"
        share.to_csv(path, index=False)
        path.chmod(0o600)
