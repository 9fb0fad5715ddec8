"""The Flower ClientApp: hands each message to the party's role.

Under DP an error's text stays at the party: whoever wrote it may have put private values into it.
"""

from __future__ import annotations

import logging
from types import ModuleType

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from clients import accomplice, central, malicious, participant
from clients.deployed import party_of
from clients.isolation import contained
from clients.node import BudgetSpent, cluster_of
from clients.party import Party


def without_private_text(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let out only the kind of an error at a party under DP, not its text; a mod of the ClientApp.

    Raises:
        RuntimeError: in place of whatever was raised.
    """
    try:
        return call_next(message, context)
    except BudgetSpent:  # of plans and budgets, no records
        raise
    except (Exception, SystemExit) as error:
        if party_of(context).dp is None:
            raise
        logging.getLogger("fedsim").debug("an error under DP", exc_info=error)
        kind = type(error).__name__
    raise RuntimeError(f"{kind}; under DP its text stays at the party")


app = ClientApp(mods=[contained, without_private_text])


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
    findings = malicious.attack(party_of(context), message, cluster_of(context))
    return Message(findings, reply_to=message)


def _role(party: Party) -> ModuleType:
    if party.observations is not None:
        return malicious
    return participant if party.shared is None else accomplice
