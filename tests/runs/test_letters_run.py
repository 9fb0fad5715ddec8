"""A federation of clinics on letters, end to end and small: training, attacks, secrets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.runs import final_sha

from attacks.registry import attacks_of
from fedsim.core.data.sets.letters import check_digit
from fedsim.core.data.store import read_party
from fedsim.core.data.text import read_vocabulary
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import parse
from fedsim.evaluation import secrets
from fedsim.report import write
from fedsim.report.page import library
from fedsim.runs import letters, persons, play, prepare

ADVERSARY = {"attacks": ["loss", "zlib", "reference", "min-k", "min-k++", "neighbourhood"]}


def _letters(folder: Path) -> Path:
    stream = np.random.default_rng(1)
    rows: list[dict] = [{"text": f"visit {k} of 4711: fine.", "public": True} for k in range(30)]
    for clinic in ("north", "south", "west"):
        rows += [
            {"text": f"{clinic} saw patient {k}: fine.", "party": clinic, "person": f"{clinic}{k}"}
            for k in range(12)
        ]
        for k in range(6):
            digits = "".join(map(str, stream.integers(0, 10, 4)))
            secret = digits + check_digit(digits)
            canary = {"party": clinic, "person": f"{clinic} c{k}", "secret": secret}
            rows += [{**canary, "text": f"id of {clinic}{k} is {secret}. {j}"} for j in range(2)]
    path = folder / "letters.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def _run(folder: Path, out: str, workers: int = 1, **sections: object) -> RunDirectory:
    document = {
        "name": "letters",
        "seed": 5,
        "data": {"text": str(_letters(folder)), "tokens": 24, "merges": 10},
        "model": {"name": "gpt", "hidden": [16], "pretrain": {"epochs": 2}},
        "federation": {"rounds": 2},
        "training": {"optimizer": "adam", "lr": 0.01, "batch": 4, "epochs": 1},
        "adversary": ADVERSARY,
    }
    run = prepare.prepare(prepare.check(parse(document | sections), None), folder / out)
    play.federate(run, workers=workers)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return _run(tmp_path_factory.mktemp("letters"), "run")


def test_it_ends_in_scores_of_every_attack_on_letters(run: RunDirectory) -> None:
    scores = run.table("scores")
    assert set(scores["attack"]) == set(ADVERSARY["attacks"])
    assert np.isfinite(scores["score"]).all()
    rounds = run.table("rounds").query("party == 'all'")
    assert rounds["loss"].iloc[-1] < rounds["loss"].iloc[0]


def test_canaries_are_trained_on_and_are_nobodys_candidates_or_held_out_records(run: RunDirectory) -> None:
    planted = secrets.read_secrets(run.path)
    vocabulary = read_vocabulary(run.path)
    for partition, name in enumerate(run.manifest["parties"]):
        records, _ = read_party(run.party_folder(0, partition, name))
        trained = [vocabulary.decode(ids) for ids in records.train.features]
        held = [vocabulary.decode(ids) for ids in records.heldout.features]
        for _, row in planted[planted["party"] == name].iterrows():
            assert sum(row["secret"] in letter for letter in trained) == row["inserted"] * row["letters"]
            assert not any(row["secret"] in letter for letter in held)
    candidates = run.read_candidates(0).records.features
    assert not any(letter.startswith("id of") for letter in map(vocabulary.decode, candidates))
    kept = [path.read_bytes() for path in run.observations(0).rglob("*.safetensors")]
    assert kept  # what the adversary owns besides is looked at in `truth`: no canary is in its pool


def test_every_game_begins_with_what_was_pretrained_on_public_letters(run: RunDirectory) -> None:
    start = run.read_initial()
    assert start is not None
    model = run.read_model(0, 0)
    assert all((start[name] == model[name]).all() for name in start)


def test_memorisation_is_judged_by_round_and_repeats(run: RunDirectory) -> None:
    table = letters.memorise(run, samples=16)
    assert set(table["round"]) == {0, 1, 2}
    assert set(table["letters"]) <= {0, 2}
    exposure = table[table["metric"] == "exposure"]
    assert (exposure["value"] <= 4 * np.log2(10) + 1e-9).all()  # four digits are free, the fifth is checked
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    again = letters.memorise(run, samples=16)
    pd.testing.assert_frame_equal(table, again)
    with pytest.raises(InputError, match="rounds 0 to 2"):
        letters.memorise(run, rounds=[9])


def test_the_page_shows_what_the_tables_hold_and_masks_the_secrets(run: RunDirectory) -> None:
    table = letters.memorise(run, samples=16)
    page = write(run).read_text(encoding="utf-8").replace(library(), "")  # whose digits are not ours
    section = page[page.index('id="letters"') :].partition("</section>")[0]
    last = table[(table["round"] == 2) & (table["metric"] == "exposure")]
    for value in last["value"]:
        assert f"{value:.1f}".lstrip("0") in section
    for secret in secrets.read_secrets(run.path)["secret"]:
        assert secret not in page
    assert "Assumed:" in section
    assert (run.path / "figures" / "letters.svg").exists()


def test_one_seed_one_result_with_workers_and_anew(run: RunDirectory, tmp_path: Path) -> None:
    assert final_sha(_run(tmp_path, "again", workers=2)) == final_sha(run)


@pytest.mark.parametrize("unit", ["record", "person"])
def test_dp_trains_letters_and_says_its_epsilon(tmp_path: Path, unit: str) -> None:
    dp = {"all": {"epsilon": 8.0, "unit": unit}}
    run = _run(tmp_path, "private", dp=dp, adversary={"attacks": ["loss"]})
    rounds = run.table("rounds")
    spent = rounds[(rounds["round"] == 2) & (rounds["party"] != "all")]["epsilon"]
    assert ((spent > 0) & (spent <= 8)).all()


def test_a_server_tells_who_wrote_a_letter_and_whether_it_was_trained_on(tmp_path: Path) -> None:
    adversary = {"attacks": ["loss"], "observers": ["participant", "server"], "knows_party": False}
    run = _run(tmp_path, "server", adversary=adversary)
    scores = run.table("scores")
    assert {"loss", "loss-series", "fedmia-loss"} <= set(scores[scores["observer"] == "server"]["attack"])
    assert {"source-loss", "source-loss-series"} <= set(run.table("source_scores")["attack"])
    table = letters.memorise(run, rounds=[2], samples=8)
    assert set(table["observer"]) == {"participant", "server"}
    counts = table[(table["metric"] == "exposure")].groupby("observer")["n"].sum()
    assert counts["server"] == counts["participant"]  # each secret is asked of its own party's answer


def test_text_and_tables_are_not_mixed_up(tmp_path: Path, run: RunDirectory) -> None:
    with pytest.raises(InputError, match="reads a table, and the records are letters"):
        _run(tmp_path, "mlp", model={"name": "mlp"}, adversary={})
    with pytest.raises(InputError, match="'joint' reads records of a table"):
        _run(tmp_path, "joint", adversary={"attacks": ["joint"]})


def test_shadows_of_letters_are_trained_only_where_they_are_named(tmp_path: Path, run: RunDirectory) -> None:
    everything = attacks_of(run.scenario, names=["all"])
    assert not any(attack.shadows for attack in everything)
    named = _run(tmp_path, "named", adversary={"attacks": ["loss", "lira"], "shadows": 16, "worlds": ["all"]})
    scores = named.table("scores")
    assert set(scores["attack"]) == {"loss", "lira"}
    assert np.isfinite(scores["score"]).all() and scores.query("attack == 'lira'")["score"].nunique() > 1


def test_patients_are_asked_about_by_all_of_their_letters(run: RunDirectory) -> None:
    table = persons.persons(run)
    assert set(table["asked"]) == {"person"}  # letters have no columns that could be unknown
    assert {"reference", "loss-series", "min-k++"} <= set(table["score"])
    auc = table[table["metric"] == "auc"]
    assert auc["value"].between(0, 1).all()
    with pytest.raises(InputError, match="letters, without columns"):
        persons.persons(run, unknown=["age"])
