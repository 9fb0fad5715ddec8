"""What is said of an attack that infers more than membership, beside its function: `@further(…)`.

Such an attack is asked of a finished run by a command of its own, and each has other arguments; what they
have in common is what a person must know before believing one: who can mount it, what it sees and assumes,
and which guess, made without the model or the update under attack, it has to beat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fedsim.core.scenario.adversary import Observer

Function = TypeVar("Function", bound=Callable[..., Any])

RECORD_BUT_ONE = "the record but one column"
IMPUTATION = "imputation from its own records"


@dataclass(frozen=True)
class FurtherAttack:
    """One attack as it was declared.

    command: of fedsim that mounts it; infers: what it finds out; observers: who can mount it
    needs: of the record asked about; sees: of the federation; assumes: what must hold for it to work
    baseline: what it has to beat, which never touches what is attacked; source: paper
    """

    command: str
    name: str
    infers: str
    observers: tuple[Observer, ...]
    needs: str
    sees: str
    assumes: str
    baseline: str
    source: str


def further(
    command: str,
    name: str,
    *,
    infers: str,
    sees: str,
    assumes: str,
    baseline: str,
    source: str,
    needs: str = "nothing",
    observers: tuple[Observer, ...] = ("participant",),
) -> Callable[[Function], Function]:
    """Declare the function below it as an attack beyond membership; it is left as it is.

    One function may be declared more than once, as different attacks.
    """

    def declare(function: Function) -> Function:
        declared = FurtherAttack(command, name, infers, observers, needs, sees, assumes, baseline, source)
        function.__dict__["further"] = (declared, *declarations(function))
        return function

    return declare


def declarations(function: object) -> tuple[FurtherAttack, ...]:
    """Return the attacks beyond membership that a function was declared to be, none where it was not."""
    return tuple(getattr(function, "__dict__", {}).get("further", ()))
