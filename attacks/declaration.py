"""What is said of an attack beside its function: `@attack("loss", sees=…, needs=…, assumes=…, source=…)`.

What an attack's function is called with follows from how it is declared:

from                                                    called with                    returns
an observer 'participant' or 'coalition' (the default)  view, candidates, rng          (n,)
the same, with ``compares_with``                        signal matrix, rng             (n,), or (columns,)
the observer 'outsider'                                 outsider's view, candidates, rng   (n,)
the observer 'server'                                   server's measurements, rng     (n,)
any of them, with ``infers="source"``                   the matrix or measurements, victims, rng   (n, V)

Scores are float64, higher = member (or: held by that victim).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from fedsim.core.scenario.adversary import Observer

FEATURES = "features"
FEATURES_AND_LABEL = "features and label"
FINAL_MODEL = "the final model"
FINAL_LABELS = "the final model's labels only"
EVERY_MODEL = "the model of every round"
FIRST_MODELS = "the first models"
RELEASED_ANSWERS = "the final model's answers, as its output policy lets them out"
EVERY_UPDATE = "every party's own update of every round"
FITTED = "members are fitted better than records like them"
LIKE_ITS_OWN = "candidates are to the model what the adversary's own records are"
PULLED = "members turn the step towards themselves"
ALIKE_SHADOWS = "shadows repeat the federation: public settings, w_0, records like the parties' own"
ALIKE_ROUNDS = "parties of their public sizes train as the settings say, on records like the owned ones"
ALIKE_PARTIES = "parties are alike, so that others show how a record looks that is not there"

Kind = Literal["view", "matrix", "answers", "measurements"]
Shadows = Literal["whole", "early"]
Reads = Literal["table", "text", "any"]
Score = Callable[..., np.ndarray]
Function = TypeVar("Function", bound=Score)

_ARGUMENTS: dict[tuple[Kind, str], tuple[str, ...]] = {
    ("view", "membership"): ("view", "candidates", "rng"),
    ("answers", "membership"): ("view", "candidates", "rng"),
    ("matrix", "membership"): ("matrix", "rng"),
    ("measurements", "membership"): ("measurements", "rng"),
    ("matrix", "source"): ("matrix", "victims", "rng"),
    ("measurements", "source"): ("measurements", "victims", "rng"),
}
_ADVERSARY: tuple[Observer, ...] = ("participant", "coalition")


@dataclass(frozen=True)
class Attack:
    """One attack as it was declared; the pair of an observer and the name is its key in every table.

    score: see the module for its arguments and result
    observers: who can mount it: 'participant' and 'coalition', or 'outsider' or 'server' alone
    infers: 'membership', or 'source': which party holds a record
    needs: of the candidates; sees: of the federation; assumes: what must hold for it to work; source: paper
    compares_with: shadow federations that it compares the target with: of all rounds ('whole'), of the first
        rounds alone ('early') or both; empty where it reads the view
    inside: whether the candidates must be members of some shadows, so that the adversary must own them
    threshold: the score's own, where it has one (0 of a log-odds); else it is chosen on what the owner has
    active: what the adversary must have done in the federation; '' where it need only have watched
    isolates: whether it needs the parties' answers apart, which secure aggregation hides
    simulates: whether it simulates rounds of single parties by itself, without shadows
    by_round: whether it is asked of every round's model as well, which takes an attack that reads one model
    reads: the records that it can score: of a table, letters ('text'), or any
    beside: attacks on the view whose log-odds it is given with the matrix, as far as they can be run
    together: whether it explains all candidates at once, so that its owner must own them all
    variant: whether it is another reading of the same shadows, which 'all' leaves out: each more attack
        widens the interval of the strongest, and these are for whoever compares
    origin: 'module:callable' where a scenario named it so
    """

    name: str
    score: Score
    observers: tuple[Observer, ...] = _ADVERSARY
    infers: Literal["membership", "source"] = "membership"
    needs: str = FEATURES_AND_LABEL
    sees: str = ""
    assumes: str = ""
    source: str = ""
    compares_with: tuple[Shadows, ...] = ()
    inside: bool = False
    threshold: float | None = None
    active: str = ""
    isolates: bool = False
    simulates: bool = False
    reads: Reads = "table"
    by_round: bool = False
    beside: tuple[str, ...] = ()
    together: bool = False
    variant: bool = False
    origin: str = ""

    def __post_init__(self) -> None:
        alone = self.observers in (("outsider",), ("server",))
        if not self.observers or not (alone or set(self.observers) <= set(_ADVERSARY)):
            raise ValueError(
                f"attack '{self.name}': observers = {self.observers!r}; it must be 'participant' and "
                "'coalition' (or one of them), or ('outsider',) or ('server',)"
            )
        if self.compares_with and alone:
            raise ValueError(f"attack '{self.name}': {self.observers[0]} simulates no shadows")
        if (self.kind, self.infers) not in _ARGUMENTS:
            raise ValueError(f"attack '{self.name}': infers = 'source' needs shadows or the server's view")

    @property
    def kind(self) -> Kind:
        """What its function reads: the view, a signal matrix, answers or measurements."""
        if self.compares_with:
            return "matrix"
        if self.observers == ("outsider",):
            return "answers"
        return "measurements" if self.observers == ("server",) else "view"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of what its function is called with, by position."""
        return _ARGUMENTS[self.kind, self.infers]

    @property
    def shadows(self) -> bool:
        """Whether it compares the target with shadow federations."""
        return bool(self.compares_with)


def attack(
    name: str,
    *,
    observers: tuple[Observer, ...] = _ADVERSARY,
    infers: Literal["membership", "source"] = "membership",
    needs: str = FEATURES_AND_LABEL,
    sees: str = "",
    assumes: str = "",
    source: str = "",
    compares_with: tuple[Shadows, ...] = (),
    inside: bool = False,
    threshold: float | None = None,
    active: str = "",
    isolates: bool = False,
    simulates: bool = False,
    reads: Reads = "table",
    by_round: bool = False,
    beside: tuple[str, ...] = (),
    together: bool = False,
    variant: bool = False,
) -> Callable[[Function], Function]:
    """Declare the function below it as an attack; the arguments are the fields of `Attack`.

    The function itself is left as it is. One function may be declared more than once, as different attacks.

    Raises:
        ValueError: the observers do not go together, or cannot mount such an attack.
    """

    def declare(function: Function) -> Function:
        declared = Attack(
            name, function, observers, infers, needs, sees, assumes, source, compares_with, inside,
            threshold, active, isolates, simulates, reads, by_round, beside,
            together, variant,
        )  # fmt: skip
        function.__dict__["attacks"] = (declared, *declarations(function))
        return function

    return declare


def declarations(function: object) -> tuple[Attack, ...]:
    """Return the attacks that a function was declared to be, none where it was not."""
    return tuple(getattr(function, "__dict__", {}).get("attacks", ()))


def as_declared(function: Score, origin: str, name: str) -> tuple[Attack, ...]:
    """Return a user's function as attacks; one that was not declared reads the view, as attack ``name``."""
    declared = declarations(function) or (Attack(name, function, sees="not declared"),)
    return tuple(replace(one, origin=origin) for one in declared)
