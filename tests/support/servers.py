"""What a server saw of the tiny federation."""

from __future__ import annotations

import numpy as np

from attacks.views.server import ServerView
from support.federation import Federation, train


def server_of(federation: Federation, lr: float = 0.5, epochs: int = 60, told: bool = False) -> ServerView:
    """What the server saw of `conftest.federate`, retrained: each party's answer in each round."""
    view, members = federation.view, federation.member
    own = {0: view.own_train}
    for k in sorted(set(federation.party)):
        own[int(k)] = federation.candidates.take(members & (federation.party == k))
    answers = {
        t: {k: train(view.settings, view.models[t - 1], records, epochs, lr) for k, records in own.items()}
        for t in view.trained_rounds
    }
    party = federation.party if told else np.full(len(federation.candidates), -1)
    return ServerView(view.settings, view.models, answers, {}, party, tuple(sorted(set(federation.party))))


def secure(view: ServerView) -> ServerView:
    sums = {
        t: {name: np.mean([each[name] for each in sent.values()], axis=0) for name in view.models[0]}
        for t, sent in view.answers.items()
    }
    return ServerView(view.settings, view.models, {}, sums, view.candidate_party, view.victims)
