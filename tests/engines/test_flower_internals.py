"""One test that fails loudly when an upgrade of Flower changes a name that is not public."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.engines import flower_internals as internals


def test_what_a_grid_of_ones_own_needs_from_flower() -> None:
    internals.assume_identity(run_id=5)
    message = Message(RecordDict(), 3, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (5, internals.SERVER_NODE_ID)
    internals.set_message_id(message, "m1")
    reply = internals.failure(message, ValueError("broken"))
    assert reply.metadata.reply_to_message_id == "m1" and reply.metadata.src_node_id == 3
    assert reply.error.reason == "ValueError: broken"
    assert internals.empty_run(5).run_id == 5


def test_a_state_survives_serialisation() -> None:
    state = RecordDict(
        {
            "ledger": ConfigRecord({"noise_multiplier": [1.0, 0.5], "steps": [3, 4], "name": "x"}),
            "metrics": MetricRecord({"a": 1, "b": 0.1}),
            "arrays": ArrayRecord(),
        }
    )
    again = internals.from_bytes(internals.to_bytes(state))
    assert dict(again.config_records["ledger"]) == dict(state.config_records["ledger"])
    assert dict(again.metric_records["metrics"]) == {"a": 1, "b": 0.1}
