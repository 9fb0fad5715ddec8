"""The Flower ClientApp: hands each message to the party's role."""

from __future__ import annotations

from types import ModuleType

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import accomplice, central, malicious, participant
from clients.isolation import contained
from clients.party import Party, party_of

app = ClientApp(mods=[contained])


@app.query("introduce")
def introduce(message: Message, context: Context) -> Message:
    """Before round 1: which party is this, and what does it plan?"""
    party = party_of(context)
    role = _role(party)
    return Message(role.introduce(party, context), reply_to=message)


@app.train(mods=[central.clip])
def train(message: Message, context: Context) -> Message:
    """One round of local training."""
    party = party_of(context)
    role = _role(party)
    return Message(role.train(party, message, context), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The global model on the party's held-out records."""
    party = party_of(context)
    role = _role(party)
    return Message(role.evaluate(party, message), reply_to=message)


@app.query("attack")
def attack(message: Message, context: Context) -> Message:
    """After the last round: the malicious party's findings."""
    return Message(malicious.attack(party_of(context), message), reply_to=message)


def _role(party: Party) -> ModuleType:
    if party.observations is not None:
        return malicious
    return participant if party.shared is None else accomplice
