"""Whether what a scenario releases can be made, and against whom it does nothing."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.core.data.records import Records
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import Scenario


def check_release(scenario: Scenario, names: Sequence[str], public: Records | None) -> None:
    """Check before any work starts that the release can be made.

    Raises:
        InputError: it cannot, in one sentence.
    """
    settings = scenario.release
    if settings.kind == "student" and public is None:
        raise InputError(
            "release.kind = 'student': there are no public records with a label; name a table that has the "
            "column of the label in data.public"
        )
    private = [name for name in names if scenario.dp_of(name) is not None]
    if settings.kind != "final" and settings.of == "parties" and private:
        raise InputError(
            f"release.of = 'parties': models that are trained apart are outside the accounting of "
            f"dp.{private[0]}; use of = 'federation', or switch its DP off"
        )
    if scenario.adversary.output.policy == "votes" and not settings.votes:
        raise InputError(
            "adversary.output.policy = 'votes': only models that the parties train apart can vote; set "
            "release = 'ensemble'"
        )
    if settings.of == "federation" and settings.members > scenario.federation.rounds:
        raise InputError(
            f"release.members = {settings.members}: there are {scenario.federation.rounds} global models; "
            "take as many at most"
        )


def release_notices(scenario: Scenario) -> tuple[str, ...]:
    """Return what a person has to know of the release."""
    told, kind = [], scenario.release.kind
    if kind != "final":
        what = "An ensemble" if kind == "ensemble" else "A student"
        told.append(
            f"{what} is released in place of the final model. Participants were sent the global models all "
            "the same: against them it protects nothing."
        )
    if scenario.adversary.output.policy == "memguard" and scenario.dp:
        told.append(
            "MemGuard learns what to hide from the parties' own records, without noise: its answers are "
            "outside the ε of DP-SGD (adversary.output.policy)."
        )
    return tuple(told)
