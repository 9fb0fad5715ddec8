"""Every available attack, and those that a scenario asks for.

Attacks are declared beside their functions (`attacks.declaration`). The registry finds them in three places:
in the modules `BUILT_IN`, in installed packages by the entry-point group `fedsim.attacks` (an entry is a
function, declared or of ``(view, candidates, rng)``), and in the user's own modules that a scenario names
as 'module:callable'.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.metadata import entry_points

from attacks import further
from attacks.declaration import Attack, as_declared, declarations
from attacks.further import FurtherAttack
from attacks.shadows.plan import STRATEGIES
from attacks.views import rounds
from fedsim.core.errors import InputError, suggestion
from fedsim.core.imports import accepts, load, short
from fedsim.core.models.shapes import LANGUAGE
from fedsim.core.scenario.adversary import OWNED_AS, AdversarySettings, Observer, is_own, parse_attack
from fedsim.core.scenario.settings import FederationSettings, Scenario

BUILT_IN = (
    "attacks.membership.threshold",
    "attacks.membership.whitebox",
    "attacks.membership.label_only",
    "attacks.membership.trajectory",
    "attacks.membership.update_regression",
    "attacks.rounds.decoding",
    "attacks.rounds.whitened",
    "attacks.membership.active",
    "attacks.matrix.shokri",
    "attacks.matrix.quantile",
    "attacks.matrix.lira",
    "attacks.matrix.lira_rounds",
    "attacks.matrix.projected",
    "attacks.matrix.rmia",
    "attacks.matrix.bavaria",
    "attacks.matrix.proxy",
    "attacks.matrix.conditional",
    "attacks.matrix.combined",
    "attacks.matrix.joint.stacking",
    "attacks.matrix.joint.parts",
    "attacks.membership.outsider",
    "attacks.membership.server",
    "attacks.text.membership",
    "attacks.source.inference",
)
"""Modules that declare attacks, in the order of tables."""

FURTHER = (
    "attacks.attributes.inference",
    "attacks.reconstruction.model",
    "attacks.reconstruction.gradient",
    "attacks.counts.members",
    "attacks.counts.groups",
    "attacks.persons.subject",
    "attacks.persons.ranges",
    "attacks.text.patients",
    "attacks.poisoning.targeted",
)
"""Modules that declare attacks beyond membership, likewise."""

GROUP = "fedsim.attacks"
"""Entry points of installed packages."""

ALL = "all"


@lru_cache(maxsize=1)
def built_in() -> tuple[Attack, ...]:
    """Return fedsim's own attacks, in the order of their modules and in these of their functions."""
    return tuple(attack for function in _functions(BUILT_IN) for attack in declarations(function))


@lru_cache(maxsize=1)
def beyond_membership() -> tuple[FurtherAttack, ...]:
    """Return the attacks that infer more than membership, in the order of their modules and functions."""
    return tuple(attack for function in _functions(FURTHER) for attack in further.declarations(function))


def _functions(names: Sequence[str]) -> list[object]:
    """Return all functions that these modules define, in order."""
    modules = [importlib.import_module(name) for name in names]
    return [
        function
        for module in modules
        for function in vars(module).values()
        if getattr(function, "__module__", "") == module.__name__
    ]


@lru_cache(maxsize=1)
def installed() -> tuple[Attack, ...]:
    """Return the attacks of installed packages, by the name of their entry points.

    Raises:
        InputError: an entry point cannot be imported, or is no attack.
    """
    attacks: list[Attack] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        where = f"the installed attack '{entry.name}' ({entry.value})"
        try:
            function = entry.load()
        except Exception as error:
            raise InputError(f"{where} cannot be imported: {short(error)}; mend or remove it") from error
        if not callable(function):
            raise InputError(f"{where} is no function; mend or remove it")
        attacks += _checked(as_declared(function, "", entry.name), where)
    return tuple(attacks)


def own(reference: str, folder: str | None) -> tuple[Attack, ...]:
    """Return what the user's function 'module:callable' is declared to be.

    One that is not declared is an attack of the participant, named like the function with '-' for '_'.

    Raises:
        InputError: it cannot be imported, or does not take the arguments that its kind is called with.
    """
    where = f"adversary.attacks: '{reference}'"
    function = load(reference, folder, where)
    name = reference.partition(":")[2].strip("_").replace("_", "-")
    return _checked(as_declared(function, reference, name), where)


def _checked(attacks: tuple[Attack, ...], where: str) -> tuple[Attack, ...]:
    for attack in attacks:
        if not accepts(attack.score, len(attack.arguments)):
            raise InputError(f"{where}: it must take ({', '.join(attack.arguments)})")
    return attacks


def known(names: Iterable[str] = (), folder: str | None = None) -> list[Attack]:
    """Return all attacks: built in, installed, and the user's own among ``names``.

    Raises:
        InputError: see `installed` and `own`; or two attacks of an observer have one name.
    """
    attacks = [*built_in(), *installed()]
    for text in dict.fromkeys(names):
        if is_own(text):
            attacks += own(text, folder)
    taken: dict[tuple[Observer, str], Attack] = {}
    for attack in attacks:
        for observer in attack.observers:
            other = taken.setdefault((observer, attack.name), attack)
            if other is not attack:
                text = attack.origin or f"{attack.score.__module__}:{attack.score.__name__}"
                raise InputError(
                    f"adversary.attacks: '{text}' is named '{attack.name}', as another attack of the "
                    f"{observer} is; give it another name with @attack"
                )
    return attacks


def find(observer: Observer, name: str) -> Attack | None:
    """Return the built-in or installed attack of an observer, None where there is none of this name."""
    attacks = known()
    return next((a for a in attacks if a.name == name and observer in a.observers), None)


def check_names(names: Sequence[str], attacks: Sequence[Attack], key: str) -> None:
    """Refuse names that no attack answers to; key: what begins the error's sentence.

    Raises:
        InputError: with the nearest valid name.
    """
    for text in names:
        pairs = ((attack, observer) for attack in attacks for observer in attack.observers)
        if not any(_asks(text, attack, observer) for attack, observer in pairs):
            observer, name = parse_attack(text)
            theirs = [a.name for a in attacks if (observer or "participant") in a.observers]
            choices = [ALL, *theirs]
            if observer is not None:
                choices, name = [f"{observer}:{choice}" for choice in choices], text
            raise InputError(f"{key}: unknown attack '{text}'{suggestion(name, choices)}")


def _asks(text: str, attack: Attack, observer: Observer) -> bool:
    """Tell whether a name as a person writes it asks for an attack of an observer."""
    if is_own(text):
        return attack.origin == text
    whose, name = parse_attack(text)
    if name == ALL:
        return whose is None or whose == observer
    if whose is None:  # a bare name is the adversary's: alone, and with the coalition that it leads
        return attack.name == name and observer in ("participant", "coalition")
    return attack.name == name and whose == observer


def select(
    names: Sequence[str], observer: Observer = "participant", folder: str | None = None
) -> list[Attack]:
    """Return the attacks of an observer that ``names`` ask for, each once, in the registry's order.

    'all' asks for all, 'server:all' for all of the server's.

    Raises:
        InputError: a name is unknown.
    """
    attacks = known(names, folder)
    check_names(names, attacks, f"adversary.attacks = {list(names)!r}")
    return [a for a in attacks if observer in a.observers and any(_asks(text, a, observer) for text in names)]


def applicable(
    names: Sequence[str],
    adversary: AdversarySettings,
    federation: FederationSettings,
    observer: Observer = "participant",
    victims: int | None = None,
    text: bool = False,
    by_person: bool = False,
) -> list[Attack]:
    """Return the attacks that ``names`` ask for and that can be run on such a federation.

    victims: parties that a candidate may be of, None where that is not known yet
    text: whether the records are letters
    by_person: whether a party's DP-SGD clips what a person contributes

    Raises:
        InputError: a name is unknown, or the attack that it names cannot be run.
    """
    attacks = []
    for attack in select(names, observer, adversary.folder):
        obstacle = _cannot_read(attack, text) or _obstacle(attack, adversary, federation, victims, by_person)
        named = any(_names(name, attack, observer) for name in names)
        if not obstacle:
            # A shadow of a language model costs as much as the federation did: only who names one wants it.
            if named or not (attack.variant or (text and attack.shadows)):
                attacks.append(attack)
        elif named:
            raise InputError(f"adversary.attacks: '{attack.name}' {obstacle}")
    return attacks


def _names(text: str, attack: Attack, observer: Observer) -> bool:
    """Tell whether a text asks for this attack by name, not for all."""
    return parse_attack(text)[1] != ALL and _asks(text, attack, observer)


def attacks_of(
    scenario: Scenario, observer: Observer = "participant", names: Sequence[str] | None = None
) -> list[Attack]:
    """Return an observer's attacks in a scenario: those named, or what the scenario asks for.

    A scenario's bare names are the adversary's: outsider and server mount all of their attacks unless it
    names one of theirs. Source inference on shadows comes along wherever an attack trains shadows on the
    candidates, since it costs no further ones.

    Raises:
        InputError: see `applicable`; there is no such round to look at; or nothing is left for a participant.
    """
    settings, federation = scenario.adversary, scenario.federation
    rounds.check_rounds(settings.rounds, federation.rounds)
    wanted = list(settings.attacks if names is None else names)
    count = scenario.parties.count
    victims = None if count is None else count - 1 - len(settings.coalition)
    theirs = [text for text in wanted if parse_attack(text)[0] == observer]
    if names is None and observer in ("outsider", "server") and not theirs:
        wanted.append(f"{observer}:{ALL}")
    text = scenario.model.name in LANGUAGE
    by_person = any(not isinstance(dp, str) and dp.unit == "person" for dp in scenario.dp.values())
    asked = (settings, federation, observer, victims, text, by_person)
    attacks = applicable(wanted, *asked)
    if names is None and any(attack.inside for attack in attacks):
        extra = applicable([f"{observer}:{ALL}"], *asked)
        attacks += [a for a in extra if a.infers == "source" and a.shadows and a not in attacks]
    if names is None and observer == "participant" and not any(a.infers == "membership" for a in attacks):
        raise InputError(
            f"adversary.attacks = {settings.attacks!r} leaves the participant no attack; name one, or 'all'"
        )
    return attacks


def _cannot_read(attack: Attack, text: bool) -> str:
    if attack.reads == "any" or (attack.reads == "text") == text or attack.origin:
        return ""
    return "reads records of a table, and these are letters" if text else "reads letters, and these are none"


def owned_in(world: str, attack: Attack) -> bool:
    """Tell whether the adversary owns what an attack needs in a world: in some no two candidates at once."""
    return not (attack.inside or attack.together) or OWNED_AS[world] == "population"


def _obstacle(
    attack: Attack,
    adversary: AdversarySettings,
    federation: FederationSettings,
    victims: int | None,
    by_person: bool,
) -> str:
    """Return why an attack cannot be run on such a federation, '' where it can."""
    follows = attack.shadows or attack.simulates
    if attack.shadows and adversary.active == "separation":
        return "simulates the federation, which it cannot with adversary.active = 'separation'"
    if follows and federation.central_dp is not None:
        return (
            "simulates the federation, which it cannot under federation.central_dp; take one without shadows"
        )
    if attack.simulates and by_person:
        return "simulates rounds of single parties, which it cannot where dp.unit = 'person'; name 'lira'"
    if follows and federation.strategy not in STRATEGIES:
        return f"simulates the federation, which it cannot with federation.strategy = '{federation.strategy}'"
    if not any(owned_in(world, attack) for world in adversary.ladder):
        worlds = ", ".join(adversary.ladder)
        what = "trains shadows on candidates" if attack.inside else "decodes all candidates together"
        return f"{what}, which the adversary owns in none of its worlds ({worlds})"
    if attack.active and attack.active != adversary.active:
        return f"reads what an active adversary did to the model; set adversary.active = '{attack.active}'"
    if attack.isolates and adversary.secure_aggregation:
        return "needs each party's own update, which adversary.secure_aggregation hides"
    if attack.infers == "source" and adversary.knows_party:
        return "asks which party holds a record, which adversary.knows_party tells already"
    if attack.infers == "source" and victims is not None and victims < 2:
        return "asks which party holds a record, and there is only one that could"
    return ""
