"""A party's randomness: streams of its own, keyed by seed, game, party and round."""

from __future__ import annotations

import torch

from clients.party import Party
from fedsim.core import rng
from fedsim.core.training.draws import PartyDraws


def draws_of(party: Party, round: int) -> PartyDraws:
    """Return what chance decides for ``party`` in ``round``.

    The streams of a private party are not those that it would have without DP. Where its DP is 'secure',
    batches and noise come from the operating system instead.
    """
    seed = party.scenario.seed
    rounding = None
    if party.defence.quantise is not None:
        rounding = rng.generator(seed, "quantisation", game=party.game, party=party.name, round=round)
    if party.dp is None:
        return PartyDraws(_stream(party, "training", round), None, rounding)
    if party.dp.secure:
        return PartyDraws(None, None, rounding)
    return PartyDraws(_stream(party, "poisson sampling", round), _stream(party, "dp noise", round), rounding)


def _stream(party: Party, purpose: str, round: int) -> torch.Generator:
    seed = party.scenario.seed
    return rng.torch_generator(seed, purpose, game=party.game, party=party.name, round=round)
