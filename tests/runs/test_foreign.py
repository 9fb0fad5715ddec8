"""Runs that fedsim did not make: models of other software, attacked as its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from support.runs import document

from attacks.views.observations import load_candidates
from fedsim.cli.main import main
from fedsim.core.data.store import read_party
from fedsim.core.errors import InputError
from fedsim.core.models.weights import weights_of
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import parse, scenario_file
from fedsim.evaluation.truth import read_truth
from fedsim.runs import foreign, foreign_run, play, prepare

NET = """
import torch
from torch import nn

def make(input_shape, classes):
    return nn.Sequential(nn.Linear(input_shape[0], 8), nn.ReLU(), nn.Linear(8, classes))

def records():
    import pandas as pd
    return pd.read_csv("records.csv")

def answer(features):
    import numpy as np
    p = 1 / (1 + np.exp(-features[:, 0]))
    return np.stack([1 - p, p], axis=1)
"""

ATTACKS = ["loss", "gradient-norm", "update-cosine", "lira"]


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of fedsim's, of three hospitals whose records have no duplicates."""
    folder = tmp_path_factory.mktemp("own")
    sections = document(folder, 90, adversary={"attacks": ATTACKS, "shadows": 16, "knows_party": True})
    run = prepare.prepare(prepare.check(parse(sections), None), folder / "run")
    play.federate(run)
    return run


@pytest.fixture(scope="module")
def exported(own_run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run as another software would hand it over: models by round, one table, the members' ids."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(own_run.model_path(0, 0).parent, folder / "models")
    parts = []
    for k, name in enumerate(own_run.manifest["parties"]):
        party = read_party(own_run.party_folder(0, k, name))[0]
        for member, side in ((True, party.train), (False, party.heldout)):
            columns = {f"x{j}": side.features[:, j] for j in range(side.features.shape[1])}
            parts.append(pd.DataFrame({**columns, "ill": side.labels, "site": name, "member": member}))
    table = pd.concat(parts, ignore_index=True).rename_axis("id").reset_index()
    table.drop(columns="member").to_csv(folder / "records.csv", index=False, float_format="%.9g")
    table.loc[table["member"], ["id"]].to_csv(folder / "own.csv", index=False)
    (folder / "foreign_net.py").write_text(NET, encoding="utf-8")
    return folder


def brought(folder: Path, own_run: RunDirectory, **more: object) -> foreign.Brought:
    scenario = own_run.scenario.model_dump(exclude_none=True)
    scenario["data"] = {"path": str(folder / "records.csv"), "label": "ill", "party": "site"}
    scenario["adversary"]["attacks"] = ATTACKS
    given = {"key": "id", "described": True, **more}
    return foreign.read(parse(scenario), folder / "models", str(folder / "own.csv"), **given)  # type: ignore[arg-type]


def by_record(run: RunDirectory, attack: str) -> dict[bytes, float]:
    candidates = load_candidates(run.observations(0))
    scores = run.table("scores")
    scores = scores[scores["attack"] == attack].sort_values("candidate")["score"]
    return dict(zip(map(bytes, candidates.features.round(6)), scores, strict=True))


def test_a_run_handed_over_is_attacked_as_the_run_itself(
    own_run: RunDirectory, exported: Path, tmp_path: Path
) -> None:
    run = foreign_run.write(brought(exported, own_run), tmp_path / "run")
    foreign_run.attack(run)
    for attack in ("loss", "gradient-norm"):
        theirs, ours = by_record(run, attack), by_record(own_run, attack)
        assert theirs.keys() == ours.keys()
        np.testing.assert_allclose([theirs[k] for k in ours], list(ours.values()), rtol=1e-4, atol=1e-5)
    truth, own_truth = (read_truth(r.path).groupby(["party", "member"]).size() for r in (run, own_run))
    pd.testing.assert_series_equal(truth, own_truth)
    rounds, own_rounds = (r.table("rounds").set_index(["round", "party"])["loss"] for r in (run, own_run))
    np.testing.assert_allclose(rounds, own_rounds[rounds.index], rtol=1e-4)
    assert run.manifest["complete"] and run.has("leakage")


def test_shadows_start_from_the_w_0_that_was_saved_or_a_fresh_one(
    own_run: RunDirectory, exported: Path, tmp_path: Path
) -> None:
    with_start = brought(exported, own_run)
    assert with_start.start is None
    shutil.copytree(exported, tmp_path / "late")
    (tmp_path / "late" / "models" / "round-000.safetensors").unlink()
    without = brought(tmp_path / "late", own_run)
    assert without.start is not None and any("fresh init" in n for n in without.prepared.encoded.notices)


def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(main, ["attack", *arguments])
    return result.exit_code, result.output


@pytest.fixture
def central(exported: Path, tmp_path: Path) -> Path:
    """One central model of a net of the user's own, without parties."""
    for name in ("records.csv", "own.csv", "foreign_net.py"):
        shutil.copy(exported / name, tmp_path / name)
    torch.manual_seed(0)
    namespace: dict = {}
    exec(NET, namespace)
    torch.save(namespace["make"]((5,), 2).state_dict(), tmp_path / "model.pt")
    return tmp_path


CENTRAL = [
    "--models", "model.pt", "--model", "foreign_net:make", "--records", "records.csv", "--id", "id",
    "--members", "own.csv", "--label", "ill", "--set", 'data.ignore=["site"]', "--out", "run",
]  # fmt: skip


def test_one_central_model_is_a_federation_of_one(central: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = in_folder(central, monkeypatch, *CENTRAL)
    assert code == 0, output
    run = RunDirectory.open(central / "run")
    assert set(run.manifest["parties"]) == {"insider", "owner"}
    assert set(run.table("leakage")["party"]) == {"all", "owner"}
    reasons = run.table("not_run").set_index("attack")["reason"]
    assert reasons["lira"] == foreign.UNDESCRIBED and reasons["update-cosine"] == foreign.NO_STEP
    assert reasons["round-decoding"] == foreign.ALONE
    assert not set(reasons.index) & set(run.table("scores")["attack"])
    assert "an insider who knows of 18 of 90 records" in " ".join(output.split())
    with pytest.raises(InputError, match="did not make these models and cannot make them again"):
        scenario_file(central / "run")
    code, output = in_folder(central, monkeypatch, "run", "--attacks", "loss")
    assert code == 0, output


def test_a_federation_of_one_is_simulated_as_described(
    central: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (central / "how.toml").write_text(
        '[data]\npath="x.csv"\nlabel="ill"\n[federation]\nrounds=1\n[training]\nepochs=2\n'
        "[adversary]\nshadows=16\n",
        encoding="utf-8",
    )
    code, output = in_folder(
        central, monkeypatch, *CENTRAL, "--scenario", "how.toml", "--attacks", "loss,lira"
    )
    assert code == 0, output
    run = RunDirectory.open(central / "run")
    assert set(run.table("scores")["attack"]) == {"loss", "lira"}
    settings = (run.observations(0) / "settings.json").read_text(encoding="utf-8")
    assert '"parties": 1' in settings  # the owner's training alone is repeated, on as many records


def test_members_may_be_a_column_or_a_function_s_records(
    central: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.read_csv(central / "records.csv")
    frame["trained"] = frame["id"].isin(pd.read_csv(central / "own.csv")["id"])
    frame.drop(columns=["id", "site"]).to_csv(central / "records.csv", index=False)
    arguments = list(CENTRAL)
    for option, value in (("--members", "trained"), ("--records", "foreign_net:records")):
        arguments[arguments.index(option) + 1] = value
    del arguments[arguments.index("--set") : arguments.index("--set") + 2]
    del arguments[arguments.index("--id") : arguments.index("--id") + 2]
    code, output = in_folder(central, monkeypatch, *arguments, "--attacks", "loss")
    assert code == 0, output
    assert read_truth(central / "run")["member"].sum() > 10


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--members": "nobody.csv"}, "it is neither a file nor a column of records.csv"),
        ({"--model": "foreign_net:mkae"}, "no callable 'mkae'; did you mean 'make'?"),
        ({"--label": "sick"}, "data.label = 'sick': no such column"),
        ({"--set": "data.ignore=[]"}, "column 'site' of record 1 is 'hospital-1'; it must be the number"),
        ({"--set": 'data.ignore=["site","x4"]'}, "'0.weight' is (8, 5), the model's '0.weight' is (8, 4)"),
        ({"--attacks": "lira"}, "attack 'lira': it simulates the training, which nobody described"),
        ({"--models": "no.pt"}, "--models no.pt: there is no such file or folder"),
        ({"--id": "nr"}, "there is no column 'nr'"),
    ],
)
def test_what_does_not_go_together_is_said_in_a_sentence(
    changes: dict[str, str], says: str, central: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dict(zip(CENTRAL[::2], CENTRAL[1::2], strict=True)) | changes
    code, output = in_folder(central, monkeypatch, *[part for pair in given.items() for part in pair])
    assert code == 2 and says in output, output
    assert not (central / "run").exists()


def test_a_model_that_knows_nothing_of_its_records_is_doubted(
    central: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that name the rarer class always, as where the order of the classes is another."""
    members = pd.read_csv(central / "records.csv").merge(pd.read_csv(central / "own.csv"), on="id")
    rarer = int(members["ill"].mean() < 0.5)
    state = torch.load(central / "model.pt", weights_only=True)
    state["2.weight"].zero_()
    state["2.bias"] = torch.eye(2)[rarer]
    torch.save(state, central / "model.pt")
    code, output = in_folder(central, monkeypatch, *CENTRAL, "--attacks", "loss")
    assert code == 0 and "are the columns in the training's order" in " ".join(output.split())


def test_options_of_other_models_need_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_folder(tmp_path, monkeypatch, "--members", "own.csv")[0] == 2
    code, output = in_folder(tmp_path, monkeypatch, "--models", "m.pt")
    assert code == 2 and "--models needs --records" in output


def test_a_function_that_answers_is_attacked_from_outside(
    central: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("httpx")
    frame = pd.read_csv(central / "records.csv")
    frame["trained"] = frame["id"].isin(pd.read_csv(central / "own.csv")["id"])
    frame = frame.drop(columns=["id", "site"])
    others = frame[~frame["trained"]].iloc[:20]
    others.drop(columns="trained").to_csv(central / "others.csv", index=False)
    frame.drop(index=others.index).to_csv(central / "people.csv", index=False)
    asked = ["--label", "ill", "--candidates", "people.csv", "--known-outsiders", "others.csv"]
    more = ["--truth", "trained", "--shadows", "0", "--out", "found"]
    code, output = in_folder(central, monkeypatch, "--predict", "foreign_net:answer", *asked, *more)
    assert code == 0, output
    found = pd.read_csv(central / "found" / "accusations.csv")
    people = pd.read_csv(central / "people.csv")
    p = 1 / (1 + np.exp(-people["x0"].to_numpy(np.float32).astype(float)))
    sign = np.where(people["ill"] == 1, 1, -1)
    loss = found[found["attack"] == "loss"]["score"]
    np.testing.assert_allclose(loss, sign * (np.log(p) - np.log1p(-p)), rtol=1e-4, atol=1e-4)
    code, output = in_folder(central, monkeypatch, "--predict", "foreign_net:make", *asked, *more)
    assert code == 2 and "--predict foreign_net:make: asking about" in output


def test_an_architecture_of_fedsim_s_own_has_the_names_that_it_saves(own_run: RunDirectory) -> None:
    saved = load_file(own_run.model_path(0, 3))
    from fedsim.core.models import zoo

    shape = tuple(own_run.manifest["input_shape"])
    assert set(saved) == set(weights_of(zoo.build(own_run.scenario.model, shape, 2)))
