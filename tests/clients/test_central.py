"""The party's part in central DP, against Flower's own mods where these work."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from hypothesis import given
from hypothesis import strategies as st

from clients import central, messages
from fedsim.core.scenario.protection import CentralDPSettings
from fedsim.core.scenario.settings import FederationSettings
from fedsim.engines import flower_internals

CONTEXT = Context(1, 2, {}, RecordDict(), {})
Answer = Callable[[Message, Context], Message]


@pytest.fixture(autouse=True)
def _identity() -> None:
    flower_internals.assume_identity(1)


def request(norm: float | None) -> Message:
    config = {"server-round": 1} | ({} if norm is None else {"clipping_norm": norm})
    arrays = messages.to_arrays({"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)})
    return Message(RecordDict({"arrays": arrays, "config": ConfigRecord(config)}), 2, "train")


def answering(scale: float, names: str = "ab") -> Answer:
    def answer(message: Message, context: Context) -> Message:
        sent, stream = messages.global_model(message), np.random.default_rng(0)
        weights = {k: v + np.float32(scale) * stream.normal(size=v.shape).astype(np.float32)
                   for k, v in sent.items()}  # fmt: skip
        arrays = messages.to_arrays({name: weights[name] for name in names})
        metrics = messages.metrics({"num-examples": 3})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return answer


def clip_as(monkeypatch: pytest.MonkeyPatch, clipping: str) -> None:
    federation = FederationSettings(central_dp=CentralDPSettings(where="client", clipping=clipping))  # type: ignore[arg-type]
    party = SimpleNamespace(scenario=SimpleNamespace(federation=federation))
    monkeypatch.setattr(central, "party_of", lambda context: party)


@pytest.mark.parametrize("scale", [0.01, 5.0])
@pytest.mark.parametrize(("clipping", "flowers"), [("fixed", fixedclipping_mod),
                                                   ("adaptive", adaptiveclipping_mod)])  # fmt: skip
def test_it_does_what_flowers_mods_do(
    monkeypatch: pytest.MonkeyPatch, clipping: str, flowers: Callable, scale: float
) -> None:
    clip_as(monkeypatch, clipping)
    mine = central.clip(request(1.5), CONTEXT, answering(scale))
    theirs = flowers(request(1.5), CONTEXT, answering(scale))
    for name in "ab":
        ours = mine.content["arrays"][name].numpy()  # type: ignore[index, union-attr, call-overload]
        expected = theirs.content["arrays"][name].numpy()
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)
        assert ours.dtype == np.float32
    metrics = [dict(each.content.metric_records["metrics"]) for each in (mine, theirs)]
    assert metrics[0] == metrics[1] and (messages.NORM_BIT in metrics[0]) == (clipping == "adaptive")


def test_layers_in_another_order_and_updates_of_nothing_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    clip_as(monkeypatch, "adaptive")
    swapped = central.clip(request(1.5), CONTEXT, answering(5.0, "ba"))
    straight = central.clip(request(1.5), CONTEXT, answering(5.0))
    for name in "ab":
        np.testing.assert_array_equal(
            *(each.content.array_records["arrays"][name].numpy() for each in (swapped, straight))
        )
    still = central.clip(request(1.5), CONTEXT, answering(0.0))
    assert still.content.metric_records["metrics"][messages.NORM_BIT] == 0


def test_what_is_no_model_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clip_as(monkeypatch, "fixed")
    refused = central.clip(request(1.0), CONTEXT, lambda m, c: Message(messages.refusal("spent"), reply_to=m))
    assert refused.content.config_records["refusal"]["reason"] == "spent"
    failed = central.clip(request(1.0), CONTEXT, lambda m, c: Message(Error(1, "x"), reply_to=m))
    assert failed.has_error()
    plain = central.clip(request(None), CONTEXT, answering(5.0))
    np.testing.assert_array_equal(
        plain.content.array_records["arrays"]["a"].numpy(),
        answering(5.0)(request(None), CONTEXT).content.array_records["arrays"]["a"].numpy(),
    )


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6), st.floats(1e-3, 100))
def test_no_update_is_longer_than_the_norm_nor_turned(entries: list[float], norm: float) -> None:
    update = np.array(entries, np.float32)
    weights, clipped = central.to_norm({"a": update}, {"a": np.zeros_like(update)}, norm)
    length = math.hypot(*map(float, update))
    assert math.hypot(*map(float, weights["a"])) <= norm * (1 + 1e-6)
    assert clipped == (length > norm) or length == pytest.approx(norm, rel=1e-6)
    expected = update * min(1.0, norm / length if length else 1.0)
    np.testing.assert_allclose(weights["a"], expected, rtol=1e-5, atol=1e-30)


def test_a_federation_is_clipped_by_its_parties(tmp_path: Path) -> None:
    from support.runs import finished_run

    dp = {"where": "client", "noise_multiplier": 0.1, "clipping_norm": 0.05}
    run = finished_run(tmp_path, federation={"rounds": 2, "central_dp": dp}, adversary={"attacks": ["loss"]})
    norms = run.table("rounds").query("party != 'all' and round > 0")["update_norm"]
    np.testing.assert_allclose(norms, 0.05, rtol=1e-4)
