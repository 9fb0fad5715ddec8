"""Looking at the models of some rounds only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from attacks.views.participant import ParticipantView
from fedsim.core.errors import InputError


def over(view: ParticipantView, rounds: Sequence[int]) -> ParticipantView:
    """Return the view of one who kept w_t of these rounds only; the last of them counts as the final model.

    An update is the step between two neighbouring rounds: attacks on updates need both t − 1 and t.

    Raises:
        InputError: no round is chosen, or one was not seen.
    """
    for t in rounds:
        if t not in view.models:
            seen = f"{min(view.models)} … {view.final_round}"
            raise InputError(f"rounds = {list(rounds)}: no model of round {t} was seen; valid: {seen}")
    if not any(t > 0 for t in rounds):
        raise InputError(f"rounds = {list(rounds)}: choose at least one round above 0")
    start = view.models.get(0, view.start)
    return replace(view, models={t: view.models[t] for t in sorted(set(rounds))}, start=start)


def as_assumed(view: ParticipantView) -> ParticipantView:
    """Return the view of the rounds that attacks may look at, as far as they were seen (adversary.rounds).

    Its settings are what the adversary believes: the parties' sizes and learning rate may not be known.

    Raises:
        InputError: none of the rounds was seen.
    """
    assumed, settings = view.assumptions, view.settings
    if not assumed.knows_sizes:
        settings = replace(settings, sizes=(len(view.own_train),) * settings.parties)
    if assumed.assumed_lr is not None:
        training = settings.training.model_copy(update={"lr": assumed.assumed_lr})
        settings = replace(settings, training=training)
    wanted = assumed.rounds
    seen = over(view, [t for t in wanted if t in view.models]) if wanted else view
    return seen if settings is view.settings else replace(seen, settings=settings, _kept={})


def check_rounds(rounds: Sequence[int], last: int) -> None:
    """Check adversary.rounds against a federation of ``last`` rounds.

    Raises:
        InputError: a round does not exist, or only round 0 is named.
    """
    beyond = [t for t in rounds if not 0 <= t <= last]
    if beyond:
        raise InputError(f"adversary.rounds: there is no model of round {beyond[0]}; valid: 0 … {last}")
    if rounds and not any(rounds):
        raise InputError("adversary.rounds = [0]: w_0 has seen no record; choose at least one round above 0")


def parse_rounds(text: str, last: int) -> list[int]:
    """Return the rounds of a text such as '1,5,10-20,last', increasing.

    Raises:
        InputError: a part that is no round or range of rounds, or see `check_rounds`.
    """
    chosen: set[int] = set()
    for part in text.replace("last", str(last)).split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise InputError(
                f"rounds '{text:.60}': '{part.strip():.40}' is no round; write for example 1,5,10-20,last"
            )
        start, end = int(match[1]), int(match[2] or match[1])
        check_rounds([end or last], last)  # before a range that no memory holds
        chosen |= set(range(start, end + 1))
    check_rounds(sorted(chosen), last)
    return sorted(chosen)
