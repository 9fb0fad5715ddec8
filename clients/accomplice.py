"""An accomplice of the adversary: an ordinary participant that also shares its records and its answers.

It writes them to a folder of its own; the coalition's attacks read all its members' folders (DESIGN §5).
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message, RecordDict

from attacks.views import observations
from clients import messages, participant
from clients.party import Party


def introduce(party: Party, context: Context) -> RecordDict:
    """Introduce itself like anyone else, and share its records."""
    observations.record_own(_shared(party), party.records)
    return participant.introduce(party, context)


def train(party: Party, message: Message, context: Context) -> RecordDict:
    """Train as asked, and share the answer."""
    answer = participant.train(party, message, context)
    if "arrays" in answer:
        reply = messages.to_numpy(messages.arrays_in(answer))
        observations.record_reply(_shared(party), messages.server_round(message), reply)
    return answer


def evaluate(party: Party, message: Message) -> RecordDict:
    """Evaluate as asked."""
    return participant.evaluate(party, message)


def _shared(party: Party) -> Path:
    if party.shared is None:
        raise PermissionError(f"{party.name} is in no coalition; it shares nothing")
    return party.shared
