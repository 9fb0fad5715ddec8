"""Which secrets were planted with whom, and what can be said of how well they were kept.

The truth of the canaries: no client and no attack reads it, but for the secrets themselves, whose ranks the
judge asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core.data.encode import Encoded
from fedsim.core.data.text import Vocabulary
from fedsim.core.files import read_table, write_table
from fedsim.core.scenario.settings import Scenario
from fedsim.evaluation.estimates import Estimate, auc, rate
from fedsim.evaluation.truth import draw_members

SECRETS = "secrets.parquet"


def planted(encoded: Encoded, rows: Mapping[str, np.ndarray], scenario: Scenario) -> pd.DataFrame:
    """Return one row a canary person and game: game, party, person, secret, prefix, letters, inserted.

    prefix: what stands before the secret in the first of her letters; letters: how many hold the secret
    (`inserted` or not: whether the party trains on them)
    """
    assert encoded.secret is not None and encoded.vocabulary
    vocabulary = Vocabulary(encoded.vocabulary)
    lines = []
    for game in range(scenario.games):
        share = scenario.parties.member_share
        member = draw_members(encoded, rows, seed=scenario.seed, game=game, share=share)
        for party, index in rows.items():
            own = index[encoded.secret[index] != ""]
            persons = own if encoded.person is None else encoded.person[own]
            for person in dict.fromkeys(persons):
                letters = own[persons == person]
                secret = str(encoded.secret[letters[0]])
                before = vocabulary.decode(encoded.features[letters[0]]).partition(secret)[0]
                lines.append(
                    (game, party, str(person), secret, before, len(letters), bool(member[letters[0]]))
                )
    columns = ["game", "party", "person", "secret", "prefix", "letters", "inserted"]
    return pd.DataFrame(lines, columns=columns)


def holds_secrets(folder: Path) -> bool:
    """Whether canaries were planted in a run."""
    return (folder / SECRETS).exists()


def write_secrets(folder: Path, secrets: pd.DataFrame) -> None:
    """Write what `planted` returned into a run's folder."""
    write_table(folder / SECRETS, secrets, private=True)


def read_secrets(folder: Path) -> pd.DataFrame:
    """Read what `write_secrets` wrote; no rows where no canary was planted.

    Raises:
        InputError: the file is corrupt.
    """
    path = folder / SECRETS
    if not path.exists():
        return pd.DataFrame(columns=["game", "party", "person", "secret", "prefix", "letters", "inserted"])
    return read_table(path)


def median(values: np.ndarray) -> Estimate:
    """Return the median with its 95 % interval between order statistics, exact whatever the distribution.

    The number of values below the true median is Binomial(n, ½); NaN of none, and unbounded ends where n < 6
    leaves no such pair.
    """
    from scipy.stats import binom

    if len(values) == 0:
        return Estimate(np.nan, np.nan, np.nan, "no such secrets")
    ordered = np.sort(values)
    below = int(binom.ppf(0.025, len(values), 0.5))
    if below == 0:
        return Estimate(
            float(np.median(values)), -np.inf, np.inf, f"n = {len(values)} is too few for an interval"
        )
    return Estimate(float(np.median(values)), float(ordered[below - 1]), float(ordered[-below]))


UNASKED = ("from own letters", "by repetition")
"""Metrics of secrets that come out of a model that was told nothing of them."""

DRAWS, LIKELY = 100, 0.5
"""A secret is discoverable that comes out in this many draws with at least this probability."""


def summary(measured: pd.DataFrame) -> pd.DataFrame:
    """Return what was given away: observer, round, letters, metric, value, low, high, n.

    measured: one row an observer, secret, round and game: letters, inserted, exposure, exposure_fit,
    extracted, probability, from_own_letters, by_repetition. Secrets that were never trained on count as
    of 0 letters, whatever their person would have written. Metrics: the median 'exposure' in bits, by
    sampling and by the skew-normal fit; 'auc' of the exposure against secrets never trained on; the
    shares 'extracted' and 'discoverable' behind the right prefix, 'from own letters' and 'by
    repetition' without it. Secrets of several games count once each game.
    """
    lines: list[tuple] = []
    trained = measured.assign(letters=measured["letters"].where(measured["inserted"], 0))
    for (observer, t), of_round in trained.groupby(["observer", "round"]):
        never = of_round[of_round["letters"] == 0]
        for letters, group in of_round.groupby("letters"):
            for metric, estimate in _estimates(group, never).items():
                interval = estimate.value, estimate.low, estimate.high
                lines.append((observer, t, letters, metric, *interval, len(group)))
    return pd.DataFrame(
        lines, columns=["observer", "round", "letters", "metric", "value", "low", "high", "n"]
    )


def _estimates(group: pd.DataFrame, never: pd.DataFrame) -> dict[str, Estimate]:
    discoverable = -np.expm1(DRAWS * np.log1p(-group["probability"].clip(upper=1 - 1e-16))) >= LIKELY
    estimates = {
        "exposure": median(group["exposure"].to_numpy()),
        "exposure, skew-normal": median(group["exposure_fit"].to_numpy()),
        "extracted": rate(int(group["extracted"].sum()), len(group)),
        f"discoverable in {DRAWS} draws": rate(int(discoverable.sum()), len(group)),
        "from own letters": rate(int(group["from_own_letters"].sum()), len(group)),
        "by repetition": rate(int(group["by_repetition"].sum()), len(group)),
    }
    if group is not never and len(never) and group["letters"].iloc[0] > 0:
        estimates["auc"] = auc(group["exposure"].to_numpy(), never["exposure"].to_numpy())
    return estimates
