"""What only the data and the model can tell of the parties' settings, checked before any work starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedsim.core.data.encode import Encoded
from fedsim.core.errors import InputError
from fedsim.core.models import shapes
from fedsim.core.privacy import shipped
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.plan import make_plan, would_exceed
from fedsim.core.scenario.protection import DefenceSettings, ShippedSettings
from fedsim.core.scenario.settings import Scenario


def check_model(scenario: Scenario, encoded: Encoded) -> None:
    """Check that the model suits the records. Only a user's own has to be built for that, with torch.

    Raises:
        InputError: it does not, in one sentence.
    """
    shapes.check_input(scenario.model, encoded.features.shape[1:])
    if shapes.is_custom(scenario.model):
        from fedsim.core.models import zoo

        zoo.build(scenario.model, encoded.features.shape[1:], len(encoded.classes))


def check_private_training(scenario: Scenario, encoded: Encoded, rows: Mapping[str, np.ndarray]) -> None:
    """Check that each party under DP-SGD can train the model, and for a round at least.

    rows: party → row indices in ``encoded``

    Raises:
        InputError: it cannot, in one sentence.
    """
    if all(scenario.dp_of(name) is None for name in rows):
        return
    from fedsim.core.models import layers, zoo
    from fedsim.core.models.private import check_dp_ready, ghost_problem

    module = zoo.build(scenario.model, encoded.features.shape[1:], len(encoded.classes))
    for name, index in rows.items():
        settings = scenario.dp_of(name)
        if settings is None:
            continue
        if scenario.federation.strategy == "qfedavg":
            raise InputError(
                f"dp.{name}: federation.strategy = 'qfedavg' needs every party's training loss, "
                "which a party under DP keeps to itself; switch one of them off"
            )
        check_dp_ready(module, encoded.features.shape[1:])
        if settings.gradients == "ghost" and layers.linear_stack(module) is None:
            problem = ghost_problem(module, encoded.features.shape[1:])
            if problem:
                raise InputError(f"dp.{name}.gradients = 'ghost': {problem}; use 'per-sample'")
        if settings.unit == "person" and encoded.person is None:
            raise InputError(f"dp.{name}.unit = 'person': no column says whose a record is; set data.person")
        n = _trained_on(scenario, encoded, name, index)
        plan = make_plan(settings, scenario.training_of(name), n, scenario.federation.rounds)
        if would_exceed(Ledger(), plan):
            one = plan.spend(Ledger()).epsilon(plan.delta, plan.accountant)
            raise InputError(
                f"dp.{name}.budget = {plan.budget:g}: one round already spends ε = {one:.4g}; "
                "raise the budget or the noise multiplier"
            )


def _trained_on(scenario: Scenario, encoded: Encoded, party: str, index: np.ndarray) -> int:
    """Return how many units, records or persons, the party's DP-SGD is planned for, to within one or two."""
    settings, count = scenario.dp_of(party), len(index)
    if settings is not None and settings.unit == "person" and encoded.person is not None:
        count = len(np.unique(encoded.person[index].astype(str)))
    return max(1, round(count * scenario.parties.member_share))


def check_defences(scenario: Scenario, encoded: Encoded, rows: Mapping[str, np.ndarray]) -> None:
    """Check that each party can have the defences that it asks for.

    Raises:
        InputError: it cannot, in one sentence.
    """
    for name in rows:
        settings = scenario.defence_of(name)
        problem = "" if settings is None else _defence_problem(settings, scenario, name, encoded)
        if problem:
            raise InputError(f"defences.{name if name in scenario.defences else 'all'}.{problem}")


def check_patience(scenario: Scenario, encoded: Encoded, names: Iterable[str]) -> None:
    """Check that the federation may stop early by the records that it names.

    Raises:
        InputError: it looks at held-out records of a party under DP-SGD, or there are no public ones.
    """
    federation = scenario.federation
    if federation.patience is None:
        return
    private = [name for name in names if scenario.dp_of(name) is not None]
    if federation.stop_on == "held-out" and (private or federation.central_dp is not None):
        switch = f"dp.{private[0]}" if private else "federation.central_dp"
        raise InputError(
            f"federation.stop_on = 'held-out': when the federation stops tells of records that {switch} does "
            "not cover; use 'public'"
        )
    if federation.stop_on == "public" and encoded.public is None:
        raise InputError(
            "federation.stop_on = 'public': there are no public records with a label; name a table that has "
            "the column of the label in data.public"
        )


def patience_notices(scenario: Scenario, names: Iterable[str]) -> list[str]:
    """Return what a person should know of a federation that may stop early."""
    federation, sentences = scenario.federation, []
    if federation.patience is not None and federation.stop_on == "held-out":
        sentences.append(
            "Held-out records choose the round whose model is released (federation.patience): its accuracy "
            "and loss on them err to the good side, and they are not quite the non-members that they are "
            "taken for"
        )
    private = [name for name in names if scenario.dp_of(name) is not None]
    if federation.patience is not None and private:
        sentences.append(
            f"ε of {', '.join(private)} counts the rounds made before federation.patience was used up; since "
            "noisy models decided how many, what strictly holds is the plan's ε"
        )
    return sentences


def _defence_problem(settings: DefenceSettings, scenario: Scenario, party: str, encoded: Encoded) -> str:
    """Return the key of a defence that this party cannot have, why, and what it could have; '' if none."""
    private = scenario.dp_of(party) is not None
    if settings.epochs is not None and scenario.training.steps is not None:
        return (
            f"epochs = {settings.epochs}: training.steps = {scenario.training.steps} says how long a round "
            "is; remove one of them"
        )
    if settings.dropout and not _has_hidden_units(scenario, encoded):
        return f"dropout = {settings.dropout:g}: model '{scenario.model.name}' has no activation layer"
    if settings.mixes_records and private:
        key = settings.mixes_records[0]
        return (
            f"{key} = {getattr(settings, key)!r}: no gradient is of one record alone where records meet, "
            f"as dp.{party} needs it; switch one of them off"
        )
    if settings.distil == "dmp" and encoded.public is None:
        return (
            "distil = 'dmp': there are no public records with a label; name a table that has the column of "
            "the label in data.public"
        )
    if settings.patience is not None and settings.stop_on == "public" and encoded.public is None:
        return (
            "stop_on = 'public': there are no public records with a label; name a table that has the column "
            "of the label in data.public"
        )
    if settings.patience is not None and settings.stop_on == "held-out" and private:
        return (
            f"stop_on = 'held-out': when a party stops tells of records that dp.{party} does not cover; "
            "use 'public'"
        )
    return ""


def _has_hidden_units(scenario: Scenario, encoded: Encoded) -> bool:
    if not shapes.is_custom(scenario.model):
        return shapes.has_hidden_units(scenario.model)
    from fedsim.core.models import layers, zoo

    module = zoo.build(scenario.model, encoded.features.shape[1:], len(encoded.classes))
    return bool(layers.hidden_units(module))


def delta_notices(scenario: Scenario, rows: Mapping[str, np.ndarray]) -> list[str]:
    """Say where δ is so large that it allows one record of a party to be published whole."""
    sentences = []
    for name, index in rows.items():
        dp, n = scenario.dp_of(name), max(1, round(len(index) * scenario.parties.member_share))
        if dp is not None and dp.delta * n >= 1:
            sentences.append(
                f"dp.{name}: δ = {dp.delta:g} is not below 1/n (n = {n} training records): to publish one of "
                "them whole would be as private; choose a δ well below 1/n"
            )
    return sentences


def defence_notices(scenario: Scenario, names: Sequence[str]) -> list[str]:
    """Return what a person should know of the parties' defences, one sentence each."""
    stopping, private, secure = [], [], []
    for name in names:
        defence, dp = scenario.defence_of(name), scenario.dp_of(name)
        if defence is not None and defence.patience is not None:
            if defence.stop_on == "held-out":
                stopping.append(name)
            if dp is not None:
                private.append(name)
        if dp is not None and dp.secure:
            secure.append(name)
    filters = [
        f"{own.mechanism} of {name} {shipped.in_words(own, scenario.federation.rounds)}"
        for name, own in _filters(scenario, names)
    ]
    sentences = {
        "early stopping of {} looks at held-out records: they have influenced the model, and are not quite "
        "the non-members that they are taken for": stopping,
        "ε of {} counts the steps that early stopping let it make; since noisy models decided how many, what "
        "strictly holds is the plan's ε": private,
        "batches and noise of {} come from the operating system: this run cannot be repeated, and going on "
        "with it after an interruption gives other numbers": secure,
    }
    said = [sentence.format(", ".join(parties)) for sentence, parties in sentences.items() if parties]
    return [*said, *filters]


def _filters(scenario: Scenario, names: Sequence[str]) -> list[tuple[str, ShippedSettings]]:
    defences = {name: scenario.defence_of(name) for name in names}
    return [
        (name, own.shipped) for name, own in defences.items() if own is not None and own.shipped is not None
    ]
