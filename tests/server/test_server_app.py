"""What the server does with parties that misbehave: DESIGN §10."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_ins_message as gone
from support.runs import BRIEF, final_sha, finished_run, prepared_run

from clients import client_app, messages
from clients.party import party_of
from fedsim.core.errors import FedsimError, InputError
from fedsim.core.privacy import gaussian
from fedsim.core.run_directory import Checkpoint, RunDirectory
from fedsim.engines.inprocess import InProcessGrid
from fedsim.runs import play
from fedsim.server import bookkeeping, server_app
from fedsim.server.federation import Federation

Twist = Callable[[Message], Message]


def federate_with(run: RunDirectory, twists: dict[str, Twist], rounds: tuple[int, ...] = (2,)) -> None:
    """Run the federation with clients whose training replies of some rounds are tampered with."""

    def client(message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        twist = twists.get(party_of(context).name)
        train = message.metadata.message_type == "train"
        return twist(reply) if twist and train and messages.server_round(message) in rounds else reply

    with InProcessGrid(run.path, 0, 3, client_app=client) as grid:
        server_app.federate(grid, run, 0)


def raises(reply: Message) -> Message:
    raise RuntimeError("disk on fire")


def sends_nan(reply: Message) -> Message:
    weights = messages.to_numpy(reply.content.array_records["arrays"])
    name = next(iter(weights))
    weights[name] = np.full_like(weights[name], np.nan)
    return with_weights(reply, weights)


def sends_wrong_shape(reply: Message) -> Message:
    weights = messages.to_numpy(reply.content.array_records["arrays"])
    name = next(iter(weights))
    return with_weights(reply, weights | {name: weights[name][:1]})


def sends_other_layers(reply: Message) -> Message:
    return with_weights(reply, {"x": np.zeros(2, dtype=np.float32)})


def sends_no_records(reply: Message) -> Message:
    reply.content.metric_records["metrics"]["num-examples"] = 0
    return reply


def sends_nothing(reply: Message) -> Message:
    reply.content = RecordDict()
    return reply


def sends_array(reply: Message, **claims: object) -> Message:
    """Answer with a first layer whose description is true but for ``claims``."""
    arrays = reply.content.array_records["arrays"]
    name, array = next(iter(arrays.items()))
    true = {"dtype": array.dtype, "shape": tuple(array.shape), "stype": array.stype, "data": array.data}
    arrays[name] = Array(**(true | claims))  # type: ignore[arg-type]
    return reply


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def sends_other_bytes_than_it_says(reply: Message) -> Message:
    return sends_array(reply, data=npy(np.zeros((2, 2), np.float32)))


def sends_a_header_of_terabytes(reply: Message) -> Message:
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return sends_array(reply, data=buffer.getvalue() + b"1234")


def sends_more_than_it_says(reply: Message) -> Message:
    array = next(iter(reply.content.array_records["arrays"].values()))
    return sends_array(reply, data=array.data + bytes(1 << 20))


def sends_a_pickle(reply: Message) -> Message:
    return sends_array(reply, dtype="object", data=npy(np.array([Bomb()], object), allow_pickle=True))


def sends_text(reply: Message) -> Message:
    return sends_array(reply, data=b"a model, honestly")


def sends_infinitely_many_records(reply: Message) -> Message:
    reply.content["metrics"] = messages.metrics({"num-examples": float("inf")})
    return reply


def sends_a_layer_more_that_is_huge(reply: Message) -> Message:
    weights = messages.to_numpy(reply.content.array_records["arrays"])
    return with_weights(reply, weights | {"more": np.zeros(10**6, dtype=np.float32)})


def sends_a_huge_text(reply: Message) -> Message:
    reply.content.config_records["diary"] = ConfigRecord({"of today": ["x" * 10**6, "y" * 10**6]})
    return reply


def sends_a_refusal_without_a_reason(reply: Message) -> Message:
    reply.content = RecordDict({"refusal": ConfigRecord({})})
    return reply


class Bomb:
    """Whoever unpickles it exits."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (66,)


def with_weights(reply: Message, weights: dict[str, np.ndarray]) -> Message:
    metrics = reply.content.metric_records["metrics"]
    reply.content = RecordDict({"arrays": messages.to_arrays(weights), "metrics": metrics})
    return reply


TWISTS: dict[Twist, tuple[str, str]] = {
    raises: ("failed", "RuntimeError: disk on fire"),
    sends_nan: ("invalid", "holds NaN or infinity"),
    sends_wrong_shape: ("invalid", "has shape"),
    sends_other_layers: ("invalid", "other layers"),
    sends_no_records: ("invalid", "num-examples = 0"),
    sends_nothing: ("invalid", "no model"),
    sends_other_bytes_than_it_says: ("invalid", "holds float32 of shape (2, 2) and says float32 of shape"),
    sends_a_header_of_terabytes: ("invalid", "of shape (1099511627776,)"),
    sends_more_than_it_says: ("invalid", "bytes, not"),
    sends_a_pickle: ("invalid", "not numbers"),
    sends_text: ("invalid", "is no .npy file"),
    sends_a_layer_more_that_is_huge: ("invalid", "4,00"),
    sends_a_huge_text: ("invalid", "bytes are more than a reply may hold, 1,0"),
    sends_infinitely_many_records: ("invalid", "num-examples = inf"),
    sends_a_refusal_without_a_reason: ("refused", ""),
}


@pytest.mark.parametrize("twist", TWISTS, ids=lambda twist: twist.__name__)
def test_a_bad_client_is_dropped_and_named_and_the_run_goes_on(tmp_path: Path, twist: Twist) -> None:
    run = prepared_run(tmp_path, adversary=BRIEF)
    federate_with(run, {"hospital-2": twist})
    rounds = run.table("rounds").set_index(["round", "party"])
    status, detail = TWISTS[twist]
    assert rounds.loc[(2, "hospital-2"), "status"] == status
    assert detail in rounds.loc[(2, "hospital-2"), "detail"]
    assert rounds.loc[(3, "hospital-2"), "status"] == "ok"
    assert run.last_round(0) == 3 and run.has("scores")
    # The round was averaged without it: the result is that of the two others.
    assert np.isfinite(run.table("rounds").query("party == 'all'")["loss"]).all()


def test_the_average_without_a_dropped_client_is_that_of_the_others(tmp_path: Path) -> None:
    sent: dict[str, dict[str, np.ndarray]] = {}

    def keep(name: str) -> Twist:
        def twist(reply: Message) -> Message:
            sent[name] = messages.to_numpy(reply.content.array_records["arrays"])
            return reply

        return twist

    run = prepared_run(tmp_path, adversary=BRIEF)
    names = {"hospital-1": keep("1"), "hospital-2": sends_nan, "hospital-3": keep("3")}
    federate_with(run, names, rounds=(3,))
    final = run.read_model(0, 3)
    for name, value in final.items():
        np.testing.assert_allclose(value, (sent["1"][name] + sent["3"][name]) / 2, rtol=1e-5, atol=1e-7)


def test_a_second_answer_counts_for_nothing(tmp_path: Path) -> None:
    class Echo(InProcessGrid):
        """Delivers every reply twice."""

        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            replies = tuple(super().send_and_receive(messages, timeout=timeout))
            return [*replies, *replies]

    plain, echoed = (
        finished_run(tmp_path, out="a", adversary=BRIEF),
        prepared_run(tmp_path, out="b", adversary=BRIEF),
    )
    with Echo(echoed.path, 0, 3) as grid:
        server_app.federate(grid, echoed, 0)
    assert echoed.model_path(0, 3).read_bytes() == plain.model_path(0, 3).read_bytes()
    pd.testing.assert_frame_equal(echoed.table("scores"), plain.table("scores"))


def test_a_node_that_is_gone_sends_no_reply_and_may_come_back(tmp_path: Path) -> None:
    class Gone(InProcessGrid):
        """hospital-2 is unplugged in round 2 and comes back in round 3."""

        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            sent = list(messages)
            for message, reply in zip(sent, super().send_and_receive(sent, timeout=timeout), strict=True):
                config = message.content.config_records.get("config", {})
                node = message.metadata.dst_node_id
                second = self._contexts[node].node_config["partition-id"] == 1
                unplugged = second and config.get("server-round") == 2
                yield gone(message.metadata.message_id, 1) if unplugged else reply

    run = prepared_run(tmp_path, adversary=BRIEF)
    with Gone(run.path, 0, 3) as grid:
        server_app.federate(grid, run, 0)
    status = run.table("rounds").query("party == 'hospital-2'").set_index("round")["status"]
    assert dict(status) == {0: "ok", 1: "ok", 2: "no reply", 3: "ok"}


def test_an_evaluation_that_measures_nothing_is_left_out_of_the_mean(tmp_path: Path) -> None:
    def client(message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        if message.metadata.message_type == "evaluate" and party_of(context).name == "hospital-2":
            reply.content["metrics"] = messages.metrics({"loss": 0.0, "num-examples": float("inf")})
        return reply

    run = prepared_run(tmp_path, adversary=BRIEF)
    with InProcessGrid(run.path, 0, 3, client_app=client) as grid:
        server_app.federate(grid, run, 0)
    last = run.table("rounds").query("round == 3").set_index("party")
    two = last.loc[["hospital-1", "hospital-3"]]
    assert last.loc["all", "loss"] == pytest.approx(np.average(two["loss"], weights=two["n_heldout"]))
    assert np.isnan(last.loc["hospital-2", "loss"])


def test_too_few_parties_is_a_clear_end(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, federation={"rounds": 3, "min_parties": 3}, adversary=BRIEF)
    with pytest.raises(FedsimError) as caught:
        federate_with(run, {"hospital-3": raises})
    message = str(caught.value)
    assert message.startswith("round 2 ended with 2 usable replies of at least 3: hospital-3: failed")
    assert run.last_round(0) == 1, "the whole rounds are kept"


def test_a_slow_client_is_left_out(tmp_path: Path) -> None:
    import time

    def slow(reply: Message) -> Message:
        time.sleep(0.6)
        return reply

    quick = {"attacks": ["loss"]}  # the adversary's findings have to come within the timeout as well
    run = prepared_run(tmp_path, federation={"rounds": 3, "timeout": 0.5}, adversary=quick)
    federate_with(run, {"hospital-2": slow})
    rounds = run.table("rounds").set_index(["round", "party"])
    assert rounds.loc[(2, "hospital-2"), "status"] == "no reply"


def test_a_spent_budget_is_an_explicit_refusal_and_the_others_go_on(tmp_path: Path) -> None:
    dp = {"hospital-2": {"noise_multiplier": 1.0, "budget": 9.0}}
    run = finished_run(tmp_path, dp=dp, federation={"rounds": 5}, adversary=BRIEF)
    rows = run.table("rounds").query("party == 'hospital-2'").set_index("round")
    refused = rows[rows["status"] == "refused"]
    assert len(refused) and rows.loc[1, "status"] == "ok"
    assert (rows["epsilon"] <= 9.0).all()
    assert refused["epsilon"].nunique() == 1 and "is spent" in refused["detail"].iloc[0]
    assert run.last_round(0) == 5


def test_when_every_budget_is_spent_training_ends_and_the_attack_still_runs(tmp_path: Path) -> None:
    dp = {"all": {"noise_multiplier": 1.0, "budget": 9.0}}
    run = finished_run(tmp_path, dp=dp, federation={"rounds": 30}, adversary=BRIEF)
    assert 1 <= run.last_round(0) < 30
    assert run.has("leakage") and final_sha(run)


def test_partial_participation_is_noted(tmp_path: Path) -> None:
    run = finished_run(tmp_path, federation={"rounds": 6, "fraction": 0.67}, adversary=BRIEF)
    rows = run.table("rounds").query("party != 'all' and round > 0")
    assert (rows.groupby("round")["status"].apply(lambda s: (s == "ok").sum()) == 2).all()
    assert set(rows["status"]) == {"ok", "not drawn"}


@pytest.mark.parametrize("name", ["fedprox", "fedadam", "fedmedian", "krum", "qfedavg"])
def test_strategies_run_end_to_end(tmp_path: Path, name: str) -> None:
    options = {"proximal_mu": 0.5} if name == "fedprox" else {}
    federation = {"rounds": 2, "strategy": name, "options": options}
    changed = finished_run(
        tmp_path, out="a", federation=federation, adversary={"attacks": ["loss", "update-regression"]}
    )
    assert final_sha(changed) != final_sha(
        finished_run(
            tmp_path, out="b", federation={"rounds": 2}, adversary={"attacks": ["loss", "update-regression"]}
        )
    )


def test_evaluation_is_that_of_the_global_model_on_held_out_records(tmp_path: Path) -> None:
    import torch
    from sklearn.metrics import roc_auc_score

    from fedsim.core.data.store import read_party
    from fedsim.core.models import zoo
    from fedsim.core.models.weights import load_weights

    run = finished_run(tmp_path, adversary=BRIEF)
    rows = run.table("rounds").query("round == 3").set_index("party")
    correct = total = 0
    for partition, name in enumerate(run.manifest["parties"]):
        records, _ = read_party(run.party_folder(0, partition, name))
        module = zoo.build(run.scenario.model, records.heldout.shape, 2)
        load_weights(module, run.read_model(0, 3))
        with torch.no_grad():
            logits = module(torch.from_numpy(records.heldout.features)).double()
        labels = torch.from_numpy(records.heldout.labels)
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        assert rows.loc[name, "loss"] == pytest.approx(loss, rel=1e-4)
        assert rows.loc[name, "auc"] == pytest.approx(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
        correct, total = correct + int((logits.argmax(1) == labels).sum()), total + len(labels)
    assert rows.loc["all", "accuracy"] == pytest.approx(correct / total)


def test_a_run_config_without_a_run_says_what_to_set() -> None:
    from clients.party import run_folder

    with pytest.raises(InputError, match=r"flwr run \. --run-config"):
        run_folder(Context(1, 1, {}, RecordDict(), {"run": "", "game": 0}))


# Central DP

CENTRAL = {"noise_multiplier": 0.5, "clipping_norm": 0.5}
WHERE = [
    {"where": where, "clipping": kind} for where in ("server", "client") for kind in ("fixed", "adaptive")
]


def private(folder: Path, out: str = "run", rounds: int = 3, **settings: object) -> RunDirectory:
    federation = {"rounds": rounds, "central_dp": CENTRAL | settings}
    return prepared_run(folder, out=out, federation=federation, adversary={"attacks": ["loss"]})


@pytest.mark.parametrize("kind", WHERE, ids=lambda kind: "-".join(kind.values()))
def test_central_dp_is_repeatable_also_after_a_stop_and_with_workers(tmp_path: Path, kind: dict) -> None:
    runs = [private(tmp_path, out, **kind) for out in ("a", "b", "c")]
    play.federate(runs[0])
    np.random.random(5)  # Flower draws its noise from this global state
    play.federate(runs[1], workers=2)
    with pytest.raises(FedsimError):
        federate_with(runs[2], dict.fromkeys(("hospital-1", "hospital-2", "hospital-3"), raises))
    assert runs[2].last_round(0) == 1
    play.federate(runs[2])
    assert final_sha(runs[0]) == final_sha(runs[1]) == final_sha(runs[2])
    assert final_sha(runs[0]) != final_sha(
        finished_run(tmp_path, out="open", adversary={"attacks": ["loss"]})
    )


@pytest.mark.parametrize("clipping", ["fixed", "adaptive"])
def test_who_clips_makes_no_difference_to_the_model(tmp_path: Path, clipping: str) -> None:
    runs = [private(tmp_path, where, where=where, clipping=clipping) for where in ("server", "client")]
    for run in runs:
        play.federate(run)
    assert final_sha(runs[0]) == final_sha(runs[1])


def test_a_partys_epsilon_counts_the_rounds_in_which_its_update_was_used(tmp_path: Path) -> None:
    run = private(tmp_path)
    federate_with(run, {"hospital-3": raises})
    rounds = run.table("rounds").set_index(["party", "round"])["party_epsilon"]
    expected = [gaussian.epsilon_of(1e-5, 0.5, k) for k in range(4)]
    assert rounds["hospital-2"].tolist() == pytest.approx(expected)
    assert rounds["hospital-3"].tolist() == pytest.approx([expected[k] for k in (0, 1, 1, 2)])
    assert run.manifest["central_dp"]["epsilon_of_all_rounds"] == pytest.approx(expected[3])
    assert run.manifest["central_dp"]["unit"] == "party"


def test_without_central_dp_no_party_level_epsilon_is_promised(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary={"attacks": ["loss"]})
    parties = run.table("rounds").query("party != 'all'")
    assert np.isinf(parties["party_epsilon"]).all() and "central_dp" not in run.manifest


def test_parties_weigh_the_same_and_fewer_replies_get_more_noise(tmp_path: Path) -> None:
    """Three hospitals of unequal size, one of which fails: the mean of the two others, plus σC/2."""
    sent: dict[str, dict[str, np.ndarray]] = {}

    def keep(name: str) -> Twist:
        def note(reply: Message) -> Message:
            sent[name] = messages.to_numpy(reply.content.array_records["arrays"])
            return reply

        return note

    federation = {"rounds": 1, "central_dp": {"noise_multiplier": 0.5, "clipping_norm": 1e6}}
    parties = {"count": 3, "partition": "linear"}
    run = prepared_run(tmp_path, federation=federation, parties=parties, adversary={"attacks": ["loss"]})
    sizes = run.manifest["parties"]
    assert len(set(sizes.values())) == 3
    twists = {"hospital-1": keep("1"), "hospital-2": keep("2"), "hospital-3": raises}
    federate_with(run, twists, rounds=(1,))
    model = run.read_model(0, 1)
    noise = np.concatenate([(model[k] - (sent["1"][k] + sent["2"][k]) / 2).ravel() for k in model])
    assert np.std(noise) == pytest.approx(0.5 * 1e6 / 2, rel=0.25)  # 82 draws: three standard errors
    assert abs(np.mean(noise)) < 3 * 0.25e6 / np.sqrt(len(noise))


def unchanged(reply: Message) -> Message:
    weights = messages.to_numpy(reply.content.array_records["arrays"])
    return with_weights(reply, {name: SENT[name] for name in weights})


SENT: dict[str, np.ndarray] = {}


def test_an_update_of_nothing_is_no_crash(tmp_path: Path) -> None:
    run = private(tmp_path)
    federate_with(run, {}, rounds=())
    SENT.update(run.read_model(0, 1))
    again = private(tmp_path, "again")
    federate_with(again, {"hospital-2": unchanged})
    row = again.table("rounds").set_index(["round", "party"]).loc[(2, "hospital-2")]
    assert row["status"] == "invalid" and "the update is 0" in row["detail"]
    assert again.last_round(0) == 3


def test_what_central_dp_and_secure_aggregation_do_not_hide_is_said(tmp_path: Path) -> None:
    said = " ".join(private(tmp_path, where="client").manifest["notices"])
    assert "hides nothing of a record beyond what that noise hides" in said and "left out" not in said
    federation = {"rounds": 1, "central_dp": CENTRAL | {"where": "client"}}
    adversary = {"attacks": ["all"], "secure_aggregation": True}
    run = prepared_run(tmp_path, out="all", federation=federation, adversary=adversary)
    said = " ".join(run.manifest["notices"])
    assert "Attacks on shadow federations are left out" in said and "hides nothing of any record" in said


def test_attacks_that_cannot_follow_central_dp_are_left_out_or_refused(tmp_path: Path) -> None:
    federation = {"rounds": 2, "central_dp": CENTRAL}
    run = finished_run(tmp_path, federation=federation, adversary={"attacks": ["all"]})
    found = set(run.table("scores")["attack"])
    assert "loss-series" in found and not found & {"lira", "joint", "first-update", "rmia"}
    for names in (["lira"], ["all", "lira"]):
        with pytest.raises(InputError, match=r"'lira' simulates the federation.*federation\.central_dp"):
            prepared_run(tmp_path, out="no", federation=federation, adversary={"attacks": names})
    with pytest.raises(InputError, match="where = 'server' clips each party's own update"):
        adversary = {"attacks": ["loss"], "secure_aggregation": True}
        prepared_run(tmp_path, out="no", federation=federation, adversary=adversary)


def test_updates_looked_at_one_by_one_are_those_of_all_at_once(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, adversary=BRIEF)
    answers: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in run.manifest["parties"]}

    def keep(name: str) -> Twist:
        def kept(reply: Message) -> Message:
            answers[name].append(messages.to_numpy(reply.content.array_records["arrays"]))
            return reply

        return kept

    federate_with(run, {name: keep(name) for name in answers}, rounds=(1, 2, 3))
    rounds = run.table("rounds").set_index(["round", "party"])
    for t in (1, 2, 3):
        sent = run.read_model(0, t - 1)
        flat = {name: flattened(answer[t - 1], sent) for name, answer in answers.items()}
        for name, update in flat.items():
            others = np.sum([other for who, other in flat.items() if who != name], axis=0)
            cosine = update @ others / (np.linalg.norm(update) * np.linalg.norm(others))
            assert rounds.loc[(t, name), "update_norm"] == pytest.approx(np.linalg.norm(update), rel=1e-12)
            assert rounds.loc[(t, name), "update_cosine"] == pytest.approx(cosine, rel=1e-9)


def flattened(weights: dict[str, np.ndarray], sent: dict[str, np.ndarray]) -> np.ndarray:
    parts = [np.ravel(weights[name].astype(float) - sent[name]) for name in sorted(sent)]
    return np.concatenate(parts)


def test_how_often_rounds_are_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin writes its table and checkpoint after every round; this one at the first and in the end."""
    settings = {"federation": {"rounds": 6, "strategy": "fedadam"}, "adversary": BRIEF}
    monkeypatch.setattr(bookkeeping, "WRITE_EVERY", 0.0)
    monkeypatch.setattr(bookkeeping, "WRITING_SHARE", math.inf)
    twin = finished_run(tmp_path, out="twin", **settings)
    monkeypatch.setattr(bookkeeping, "WRITE_EVERY", math.inf)
    written: list[int] = []
    write = RunDirectory.write_checkpoint

    def count(self: RunDirectory, game: int, checkpoint: Checkpoint) -> None:
        written.append(checkpoint.round)
        write(self, game, checkpoint)

    monkeypatch.setattr(RunDirectory, "write_checkpoint", count)
    run = prepared_run(tmp_path, out="rare", **settings)
    evaluate = server_app.evaluate_everywhere

    def stop(federation: Federation, weights: ArrayRecord, round: int) -> None:
        if round == 4:
            raise KeyboardInterrupt
        evaluate(federation, weights, round)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(server_app, "evaluate_everywhere", stop)
        play.federate(run)
    assert written == [0, 3] and run.table("rounds")["round"].max() == 3, "the last whole round is kept"
    play.federate(RunDirectory.open(run.path))
    assert written == [0, 3, 4, 6]
    assert final_sha(run) == final_sha(twin)
    pd.testing.assert_frame_equal(
        run.table("rounds").drop(columns="seconds"), twin.table("rounds").drop(columns="seconds")
    )
