"""Settings of the adversary."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from fedsim.core.imports import is_reference
from fedsim.core.scenario.base import Positive, Settings, Share
from fedsim.core.scenario.protection import OutputPolicy

Observer = Literal["outsider", "participant", "coalition", "server"]
OBSERVERS: tuple[Observer, ...] = get_args(Observer)
"""Who mounts attacks, in the order in which they see more."""


WorldName = Literal["all", "half", "few", "none", "own"]
"""What an adversary owns beside its own records, from most to least."""

OWNED_AS: dict[str, Literal["population", "disjoint", "own"]] = {
    "all": "population", "half": "population", "few": "population", "none": "disjoint", "own": "own",
}  # fmt: skip
"""What the records owned in a world are to its candidates: see `AdversarySettings.auxiliary`."""


OWNS: dict[str, str] = {
    "all": "every candidate's record, among all others of the parties",
    "half": "half of the parties' records: half of the members are unknown to it",
    "few": "one in ten of the parties' records: most members are unknown to it",
    "none": "no candidate's record but the one it asks about, and others that are nobody's",
    "own": "its own records alone, and the one it asks about",
}
"""What an adversary owns in a world, in words."""

WHERE: dict[str, str] = {
    "all": "where it owns every candidate's record",
    "half": "where half of the members are unknown to it",
    "few": "where nine in ten members are unknown to it",
    "none": "where it owns no candidate's record but the one it asks about",
    "own": "where it owns its own records alone",
}
"""A world, as a sentence names it."""


def parse_attack(text: str) -> tuple[Observer | None, str]:
    """Split the name of an attack as a person writes it: 'server:fedmia' is ('server', 'fedmia').

    A bare name and a user's 'module:callable' name no observer: they are (None, text).
    """
    prefix, _, name = text.partition(":")
    observer = next((observer for observer in OBSERVERS if observer == prefix and name), None)
    return (observer, name) if observer else (None, text)


def attack_key(text: str) -> tuple[Observer, str]:
    """Return observer and name, as in the tables, of an attack's name; a bare one is the participant's."""
    observer, name = parse_attack(text)
    return observer or "participant", name


def is_own(text: str) -> bool:
    """Tell whether the name of an attack is 'module:callable', a function of the user's own."""
    return is_reference(text) and parse_attack(text)[0] is None


class AdversarySettings(Settings):
    """The malicious client, what it is assumed to own, and who else is scored beside it."""

    party: str | None = Field(None, description="the malicious party; default: the first one")
    attacks: list[str] = Field(
        ["all"],
        description="attacks by name (`fedsim attacks list`), 'server:fedmia' where one of another observer "
        "is meant, or your own as 'module:callable'; outsider and server mount all of theirs, unless one of "
        "those is named",
    )
    folder: str | None = Field(
        None, description="where to import 'module:callable' from; default: the scenario's folder"
    )
    candidates: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="at most this many candidates, drawn at random; default: all records (one a person, "
        "where persons have several); 20 if active",
    )
    knows_party: bool | None = Field(
        None,
        description="whether it knows which party a candidate would be a member of; "
        "default: only where parties are natural",
    )
    rounds: list[Annotated[int, Field(ge=0)]] = Field(
        [], description="rounds t whose models w_t attacks may look at, 0 being the start; default: all"
    )
    worlds: list[WorldName] | None = Field(
        None,
        description="what it owns of the others' records, each attacked on the same federation: 'all' every "
        "candidate's, 'half' half of the members' and of the others', 'few' one in ten, 'none' only the "
        "record asked about, with held-out ones that are nobody's, 'own' nothing but its own; the first is "
        "the headline's; default: 'all' and 'half', or what auxiliary says",
    )
    auxiliary: Literal["population", "disjoint", "own"] = Field(
        "population",
        description="records it owns to simulate with: 'population' overlaps the candidates, 'disjoint' is "
        "held-out records that are no candidates, 'own' is nothing but its own records",
    )
    auxiliary_size: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="records it owns beside candidates and its own; default: 'population' all the others, "
        "'disjoint' half of the held-out records",
    )
    prior: Share = Field(
        0.5, description="share of members that it assumes among those it asks about, right or wrong"
    )
    knows_sizes: bool = Field(
        True,
        description="whether it knows how many records each party trains on; if not, it takes all parties to "
        "have as many as its own",
    )
    assumed_lr: Positive | None = Field(
        None, description="learning rate that it assumes the parties to train with; default: knows theirs"
    )
    shadows: Annotated[int, Field(ge=16)] = Field(
        256, description="shadow federations that it simulates, if an attack asks for them"
    )
    early_shadows: Annotated[int, Field(ge=16)] | None = Field(
        None,
        description="shadows of the first two rounds alone, which some attacks ask for; default: eight for "
        "each of all rounds, as far as their weights take 256 MiB",
    )
    decoded_rounds: Annotated[int, Field(ge=1, le=4)] | None = Field(
        None,
        description="updates that round decoding reads, of rounds 1, 2, 3 and 5, whatever they cost; "
        "default: as many as what 64 shadow federations cost pays for, of longer federations more, and under "
        "DP-SGD of the first 20",
    )
    memory: Positive = Field(
        1.0, description="GiB that training them takes, about; with less, fewer are trained at a time"
    )
    timeout: Positive = Field(
        86400.0, description="seconds that its attacks may take after the last round, over all of them"
    )
    observers: list[Observer] = Field(
        ["participant"], description="whose attacks to score on the same candidates; 'participant' always is"
    )
    coalition: list[str] = Field(
        [], description="parties that share what they have with the adversary, if 'coalition' is an observer"
    )
    secure_aggregation: bool = Field(
        False, description="whether the server sees only the sum of the parties' updates"
    )
    output: OutputPolicy = OutputPolicy()
    active: Literal["gradient-ascent", "poisoning", "separation"] | None = Field(
        None,
        description="how it deviates from the protocol: 'gradient-ascent' moves its updates up the targets' "
        "loss, 'poisoning' trains on mislabelled copies of the targets, 'separation' moves its updates, "
        "within a budget, to where the next round should show the targets best; default: not at all",
    )
    targets: Annotated[int, Field(ge=1)] | None = Field(
        None, description="how many candidates an active adversary acts on, the first ones; default: all"
    )
    ascent_rate: Positive = Field(
        0.3, description="step γ of gradient ascent: γ times the summed gradient of the targets' losses"
    )
    ascent_limit: Positive = Field(
        1.0,
        description="the step of an ascent, or of a separation, is at most this many times as long as its "
        "round's honest update",
    )
    least_cosine: Annotated[float, Field(ge=-1, lt=1)] = Field(
        0.7, description="cosine of a separating update with the honest one, at the least"
    )
    most_loss: Annotated[float, Field(ge=0)] = Field(
        0.02,
        description="nats by which a separating answer may raise the loss of the adversary's own held-out "
        "records above its honest answer's",
    )
    ascent_every: Annotated[int, Field(ge=2)] = Field(
        5, description="rounds from one ascent to the next, in which it watches the losses fall again"
    )
    poison_copies: Annotated[int, Field(ge=1)] = Field(
        1, description="mislabelled copies of each target in its training records"
    )

    @property
    def own_attacks(self) -> list[str]:
        """The attacks that are the user's own functions, as 'module:callable'."""
        return [text for text in self.attacks if is_own(text)]

    @property
    def ladder(self) -> tuple[WorldName, ...]:
        """The worlds, the headline's first."""
        if self.worlds is not None:
            return tuple(self.worlds)
        by_auxiliary: dict[str, tuple[WorldName, ...]] = {"disjoint": ("none",), "own": ("own",)}
        return by_auxiliary.get(self.auxiliary, ("all", "half"))

    @model_validator(mode="after")
    def _worlds_are_worlds(self) -> AdversarySettings:
        if self.worlds is not None and len(set(self.worlds)) != max(1, len(self.worlds)):
            raise ValueError("worlds: name at least one, each once")
        alone = {"disjoint": ["none"], "own": ["own"]}.get(self.auxiliary)
        if self.worlds is not None and alone is not None and self.worlds != alone:
            raise ValueError(
                f"auxiliary = '{self.auxiliary}' is the one world {alone}; leave auxiliary out to compare "
                "several worlds"
            )
        return self

    @model_validator(mode="after")
    def _coalition_is_an_observer(self) -> AdversarySettings:
        if ("coalition" in self.observers) != bool(self.coalition):
            raise ValueError("observer 'coalition' and the names of its parties, 'coalition', go together")
        return self
