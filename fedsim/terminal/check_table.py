"""What `fedsim scenario check` shows: columns, classes, records, parties, and what a run would cost."""

from __future__ import annotations

import math

import numpy as np
from rich.console import Console
from rich.table import Table

from attacks import registry
from attacks.rounds import decoding
from fedsim.core.data.describe import ColumnFacts, class_counts
from fedsim.core.models import shapes
from fedsim.core.scenario.settings import Scenario
from fedsim.runs.prepare import Prepared
from fedsim.terminal.formatting import new_table

MAX_ROWS = 60
# Operations a second of one core that trains a small model in batches of a few dozen; a rough figure.
OPERATIONS = 1e9
# The same where many models of linear layers, or other modules, are stacked, as shadows are.
STACKED_OPERATIONS = 2e10, 2e9
# The same of a language model, whose products are larger.
TOKEN_OPERATIONS = 2e10
# What decoding a round simulates, in rounds of a whole federation.
DECODED_ROUND = 300
# What importing PyTorch, Flower and the rest takes, in bytes.
BASE_MEMORY = 600 << 20


def show(prepared: Prepared, console: Console) -> None:
    """Print the tables: they tell of private records and are for the eyes of whoever owns these."""
    encoded = prepared.encoded
    if encoded.columns:
        console.print(columns(list(encoded.columns)))
    if encoded.vocabulary:
        console.print(letters(prepared), markup=False, highlight=False)
    else:
        console.print(classes(prepared))
    if len(encoded.flow) > 1:
        steps = " → ".join(f"{count} {why}" for why, count in encoded.flow)
        console.print(f"Records: {steps}", markup=False, highlight=False)
    console.print(cost(prepared), markup=False, highlight=False)


def columns(facts: list[ColumnFacts]) -> Table:
    """Return one row a column; of many, those that are dropped or lose values first."""
    table = new_table(f"{len(facts)} columns")
    table.add_column("column")
    for heading in ("kind", "bounds or values", "from"):
        table.add_column(heading)
    for heading in ("clipped", "missing", "unreadable"):
        table.add_column(heading, justify="right")
    table.add_column("kept, and the key that changes it")
    order = sorted(range(len(facts)), key=lambda k: (facts[k].kept and facts[k].clipped < 0.1, k))
    rows = range(len(facts)) if len(facts) <= MAX_ROWS else order[:MAX_ROWS]
    for fact in (facts[k] for k in rows):
        shares = [_percent(share) for share in (fact.clipped, fact.missing, fact.unreadable)]
        fate = fact.change if fact.kept else f"dropped: {fact.change}"
        table.add_row(*map(_safe, (fact.name, fact.kind, fact.range, fact.origin, *shares, fate)))
    if len(facts) > MAX_ROWS:
        table.add_row("…", *[""] * 6, f"and {len(facts) - MAX_ROWS} more")
    return table


def letters(prepared: Prepared) -> str:
    """Return how long letters are, and how many hold a secret."""
    encoded, settings = prepared.encoded, prepared.scenario.data
    padding = int(encoded.features.max())
    lengths = (encoded.features != padding).sum(1)
    canaries = 0 if encoded.secret is None else int((encoded.secret != "").sum())
    return (
        f"Letters: {len(encoded)}, of {np.median(lengths):.0f} tokens (median), {settings.tokens} at most; "
        f"{padding + 1} tokens in the vocabulary; {canaries} letters hold a secret"
    )


def classes(prepared: Prepared) -> Table:
    """Return how many records of each class each party has."""
    encoded = prepared.encoded
    table = new_table(f"Classes of {_safe(encoded.label)}")
    table.add_column("class")
    table.add_column("records", justify="right")
    for name in list(prepared.rows)[:8]:
        table.add_column(_safe(name), justify="right")
    by_party = [class_counts(encoded.labels[rows], encoded.classes) for rows in prepared.rows.values()][:8]
    for value, count in list(class_counts(encoded.labels, encoded.classes).items())[:MAX_ROWS]:
        table.add_row(_safe(value), str(count), *[str(counts[value]) for counts in by_party])
    return table


def cost(prepared: Prepared) -> str:
    """Return roughly how long a run takes on one core and how much memory, within a factor of three."""
    seconds, memory = estimate(prepared)
    return (
        f"Rough estimate: {_duration(seconds)} on one core (within a factor of three or so), "
        f"{memory / 2**30:.1f} GiB of memory"
    )


def estimate(prepared: Prepared) -> tuple[float, float]:
    """Return seconds on one core and bytes of memory of a whole run, from its number of multiplications."""
    scenario, encoded = prepared.scenario, prepared.encoded
    weights = _weights(prepared)
    members = len(encoded) * scenario.parties.member_share
    if scenario.training.steps is None:
        seen = members * scenario.training.epochs
    else:
        seen = len(prepared.rows) * scenario.training.steps * min(scenario.training.batch, members)
    operations = 6.0 * weights * seen * scenario.federation.rounds * scenario.games
    shadows = scenario.adversary.shadows if _needs_shadows(prepared) else 0
    data = encoded.features.nbytes + encoded.labels.nbytes
    models = 4.0 * weights * (scenario.federation.rounds + 1)
    stacked = STACKED_OPERATIONS[scenario.model.name not in ("logistic", "mlp")]
    # As many operations again go into shadows of the first rounds; all of it once for each world.
    rate = OPERATIONS
    if scenario.model.name in shapes.LANGUAGE:  # each token is a row of large products
        operations, rate = operations * encoded.features.shape[1], TOKEN_OPERATIONS
    federations = 2 * shadows + (_decoding(scenario) if _simulates_rounds(prepared) else 0)
    seconds = operations / rate + len(scenario.adversary.ladder) * federations * operations / stacked
    return seconds + 5, BASE_MEMORY + 3.0 * data + models


def _decoding(scenario: Scenario) -> float:
    """Return what round decoding simulates, in whole federations, about."""
    decoded = scenario.adversary.decoded_rounds
    return DECODED_ROUND * decoded / scenario.federation.rounds if decoded else decoding.Effort().federations


def _weights(prepared: Prepared) -> int:
    model, encoded = prepared.scenario.model, prepared.encoded
    shape, classes = encoded.features.shape[1:], len(encoded.classes)
    if not shapes.is_custom(model):
        return shapes.weights(model, shape, classes)
    from fedsim.core.models import zoo  # only building it tells

    return sum(parameter.numel() for parameter in zoo.build(model, shape, classes).parameters())


def _needs_shadows(prepared: Prepared) -> bool:
    return any(attack.shadows for attack in registry.attacks_of(prepared.scenario))


def _simulates_rounds(prepared: Prepared) -> bool:
    return any(attack.simulates for attack in registry.attacks_of(prepared.scenario))


def _percent(share: float) -> str:
    if share == 0:
        return "0 %"
    return "<1 %" if share < 0.01 else f"{100 * share:.0f} %"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(5, math.ceil(seconds / 5) * 5)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _safe(text: str) -> str:
    """Return text from a file as it may be printed: no control characters, no markup."""
    plain = "".join(character if character.isprintable() else "�" for character in text)
    return plain.replace("[", r"\[")
