from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attacks.views import observations, participant
from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings
from fedsim.core import files
from fedsim.core.data.records import Pool, Records
from fedsim.core.data.store import PartyRecords
from fedsim.core.errors import InputError
from fedsim.core.scenario.training import ModelSettings, TrainingSettings


def write(folder: Path, view: ParticipantView, candidates: Records) -> None:
    observations.record_settings(folder, view.settings, PartyRecords("own", view.own_train, view.own_heldout))
    for t, weights in view.models.items():
        observations.record_model(folder, t, weights)
    for t, weights in view.own_replies.items():
        observations.record_reply(folder, t, weights)
    observations.record_candidates(folder, Pool(candidates, np.full(len(candidates), -1)))


def same(left: Records, right: Records) -> bool:
    return np.array_equal(left.features, right.features) and np.array_equal(left.labels, right.labels)


def test_a_view_survives_the_disk(tmp_path: Path, overfitted: Any) -> None:
    write(tmp_path, overfitted.view, overfitted.candidates)
    view = observations.load_view(tmp_path)
    assert view.settings == overfitted.view.settings
    assert list(view.models) == list(range(13)) and list(view.own_replies) == list(range(1, 13))
    np.testing.assert_equal(view.models, overfitted.view.models)
    np.testing.assert_equal(view.own_replies, overfitted.view.own_replies)
    assert same(view.own_train, overfitted.view.own_train)
    assert same(view.own_heldout, overfitted.view.own_heldout)
    assert same(observations.load_candidates(tmp_path), overfitted.candidates)


def test_the_files_are_named_by_round_and_nothing_is_a_pickle(tmp_path: Path, overfitted: Any) -> None:
    write(tmp_path, overfitted.view, overfitted.candidates)
    names = {path.name for path in tmp_path.iterdir()}
    rounds = {f"round-{t:03d}.safetensors" for t in range(13)}
    replies = {f"reply-{t:03d}.safetensors" for t in range(1, 13)}
    others = {"settings.json", "own.safetensors", "candidates.safetensors"}
    others |= {"assumptions.json", "auxiliary.safetensors"}
    assert names == rounds | replies | others


def test_writing_a_round_again_changes_no_byte(tmp_path: Path, overfitted: Any) -> None:
    write(tmp_path, overfitted.view, overfitted.candidates)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write(tmp_path, overfitted.view, overfitted.candidates)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_all_public_settings_survive_the_disk(tmp_path: Path, records: Callable[..., Records]) -> None:
    settings = PublicSettings(
        ModelSettings(name="mine:build", hidden=[3], folder="elsewhere"), (1, 28, 28), 10, 7, 5, 2,
        TrainingSettings(optimizer="adam", lr=0.003, steps=4), "fedadam",
    )  # fmt: skip
    own = records(np.random.default_rng(0), 4)
    observations.record_settings(tmp_path, settings, PartyRecords("own", own, own))
    observations.record_model(tmp_path, 1, {"w": np.zeros(2, np.float32)})
    assert observations.load_view(tmp_path).settings == settings


def test_the_logits_are_the_models_and_are_computed_once(
    overfitted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = overfitted.view
    with torch.no_grad():
        expected = view.module(view.final_model)(torch.tensor(overfitted.candidates.features)).numpy()
    np.testing.assert_allclose(view.logits(12, overfitted.candidates), expected, rtol=1e-6)
    monkeypatch.setattr(participant.outputs, "logits", lambda *_: pytest.fail("computed twice"))
    again = view.as_outsider_of_itself().logits(12, overfitted.candidates)
    again += 1  # a caller may do with its copy what it likes
    np.testing.assert_allclose(view.logits(12, overfitted.candidates), expected, rtol=1e-6)


def hand_made(**changes: Any) -> ParticipantView:
    """Three parties step by 3, 6, 9 from w_0 = 1, so that w_1 = 7; the others' part is (6 + 9) / 3 = 5."""
    settings = PublicSettings(
        ModelSettings(), (1,), 2, 1, 3, 3, TrainingSettings(), changes.pop("strategy", "fedavg")
    )
    none = Records(np.zeros((0, 1), np.float32), np.zeros(0, np.int64))
    models = {0: {"w": np.float32([1.0])}, 1: {"w": np.float32([7.0])}}
    replies = {1: {"w": np.float32([4.0])}}
    return ParticipantView(settings, **{"models": models, "own_replies": replies, **changes}, own_train=none,
                           own_heldout=none)  # fmt: skip


def test_the_own_part_is_taken_out_exactly() -> None:
    update = hand_made().others_update(1)
    assert update is not None and update["w"].dtype == np.float64
    assert update["w"] == [5.0]


@pytest.mark.parametrize(
    "view",
    [hand_made(own_replies={}), hand_made(strategy="fedadam"), hand_made().as_outsider_of_itself()],
    ids=["no own reply", "no average", "calibration"],
)
def test_the_whole_step_where_there_is_nothing_to_take_out(view: ParticipantView) -> None:
    update = view.others_update(1)
    assert update is not None and update["w"] == [6.0]


@pytest.mark.parametrize("t", [0, 2])
def test_no_step_where_a_model_was_not_seen(t: int) -> None:
    assert hand_made().others_update(t) is None


def test_three_real_parties_leave_the_mean_of_the_others(overfitted: Any) -> None:
    """The others' updates, recomputed by training them, are what is left in the first round."""
    view, settings = overfitted.view, overfitted.view.settings
    found = view.others_update(1)
    members = overfitted.candidates.take(overfitted.member)
    party = overfitted.party[overfitted.member]
    module = view.module(view.models[0])
    expected = {name: np.zeros(array.shape) for name, array in view.models[0].items()}
    for victim in (1, 2):
        records = members.take(party == victim)
        module.load_state_dict({name: torch.tensor(array) for name, array in view.models[0].items()})
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        for _ in range(60):
            optimizer.zero_grad()
            output = module(torch.tensor(records.features))
            torch.nn.functional.cross_entropy(output, torch.tensor(records.labels)).backward()
            optimizer.step()
        for name, value in module.state_dict().items():
            expected[name] += (value.numpy() - view.models[0][name]) / settings.participants
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=2e-6)


def test_missing_rounds_stay_missing(tmp_path: Path, overfitted: Any) -> None:
    write(tmp_path, overfitted.view, overfitted.candidates)
    for t in (3, 12):
        (tmp_path / f"round-{t:03d}.safetensors").unlink()
    view = observations.load_view(tmp_path)
    assert view.trained_rounds == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert view.final_round == 11
    assert [t for t in range(1, 13) if view.others_update(t) is None] == [3, 4, 12]


@pytest.mark.parametrize("damage", ["missing", "text", "key", "value"])
@pytest.mark.parametrize("name", ["settings.json", "own.safetensors"])
def test_a_damaged_file_is_named_in_one_sentence(
    tmp_path: Path, overfitted: Any, name: str, damage: str
) -> None:
    write(tmp_path, overfitted.view, overfitted.candidates)
    file = tmp_path / name
    if damage == "missing":
        file.unlink()
    elif damage == "text":
        file.write_text("not what it was")
    elif name.endswith(".json"):
        value = json.loads(file.read_text())
        value = {**value, "classes": "two"} if damage == "value" else {"rounds": 3}
        file.write_text(json.dumps(value))
    else:
        arrays = {"train_features": np.zeros((2, 3))} if damage == "key" else {"train_labels": np.zeros(2)}
        files.write_arrays(file, arrays)
    with pytest.raises(InputError, match=name) as caught:
        observations.load_view(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_view_of_no_finished_round_is_refused(tmp_path: Path, overfitted: Any) -> None:
    write(tmp_path, overfitted.view, overfitted.candidates)
    for path in tmp_path.glob("round-*"):
        if path.name != "round-000.safetensors":
            path.unlink()
    with pytest.raises(InputError, match="no model of a finished round"):
        observations.load_view(tmp_path)
