"""Predicted exposure against what round decoding then finds in true rounds, and its closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, spearmanr
from support.rounds import SIZE, dp, records, world

from attacks.rounds import exposure
from attacks.rounds.party_rounds import MemberSets, simulate
from attacks.shadows.suite import federation_plan
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError

GAMES = 120


def asked(seed: int = 3) -> Records:
    """Records of which those further out from the mean move a model more."""
    pool = records(np.random.default_rng(seed), 2 * SIZE)
    size = np.linspace(0.2, 2.5, len(pool), dtype=np.float32)
    return Records(pool.features * size[:, None], pool.labels)


def found(view: ParticipantView, pool: Records) -> tuple[np.ndarray, np.ndarray]:
    """Predicted separations, and those measured by the same channel over games of true rounds."""
    prepared = exposure.prepared(view, pool, 0.5, 5, 100)
    kind, evidence = exposure.first_round(view, prepared)
    stream, amplitude, member = np.random.default_rng(7), [], []
    fresh = records(stream, GAMES * SIZE)
    everything = Records.concatenate([pool, fresh])
    insides = [stream.permutation(len(pool))[:SIZE] for _ in range(GAMES)]
    strangers = len(pool) + np.arange(GAMES * SIZE).reshape(GAMES, SIZE)
    rows = np.stack([np.stack(insides), strangers], axis=1).reshape(2 * GAMES, SIZE)
    sets = MemberSets(np.tile([1, 2], GAMES), rows, 1000 + np.arange(2 * GAMES))
    updates = simulate(federation_plan(view, 1), view.initial, everything, sets, 11)
    for inside, update in zip(insides, updates.reshape(GAMES, 2, -1).sum(axis=1), strict=True):
        seen = replace(evidence, update=evidence.update + update)
        amplitude.append(exposure.read(prepared, kind, seen).amplitude)
        member.append(np.isin(np.arange(len(pool)), inside))
    values, was = np.array(amplitude), np.array(member)
    gaps = [values[was[:, i], i].mean() - values[~was[:, i], i].mean() for i in range(len(pool))]
    spread = [np.hypot(values[was[:, i], i].std(), values[~was[:, i], i].std()) / np.sqrt(2)
              for i in range(len(pool))]  # fmt: skip
    return exposure.read(prepared, kind, evidence).separation, np.array(gaps) / np.array(spread)


def test_predicted_separations_rank_the_measured_ones() -> None:
    predicted, measured = found(world().view, asked())
    rank = spearmanr(predicted, measured).statistic
    error = 1.03 / np.sqrt(len(predicted) - 3)  # of Fisher's z of a rank correlation (Fieller et al. 1957)
    assert np.tanh(np.arctanh(rank) - 1.96 * error) > 0.3, rank


def test_noise_of_dp_lowers_every_separation() -> None:
    pool = asked()
    means = [
        exposure.predict(world(privacy=dp(noise)).view, pool, 0.5, 5, sets=60).separation.mean()
        for noise in (0.01, 1.0, 50.0)
    ]
    assert means[0] > means[1] > means[2]


def test_auc_and_tpr_are_those_of_two_gaussians() -> None:
    separation = np.array([0.0, 0.7, 2.0])
    given = exposure.Exposed(separation, "gradient", 1.0)
    stream = np.random.default_rng(0)
    others = stream.normal(size=200_000)
    for i, d in enumerate(separation):
        members = stream.normal(d, size=200_000)
        assert given.auc[i] == pytest.approx(np.mean(members > others), abs=4e-3)
        assert given.tpr(0.01)[i] == pytest.approx(np.mean(members > norm.isf(0.01)), abs=4e-3)


def test_it_repeats_and_looks_at_no_record_of_the_adversary() -> None:
    view, pool = world().view, asked()
    other = replace(view, own_train=view.own_heldout, own_heldout=view.own_train, models={0: view.models[0]})
    results = [exposure.predict(each, pool, 0.5, 5, sets=60).separation for each in (view, view, other)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_other_optimizers_have_paired_signatures_and_alone_nobody_is_seen() -> None:
    view = world().view
    heavy = view.settings.training.model_copy(update={"momentum": 0.5})
    momentum = replace(view, settings=replace(view.settings, training=heavy))
    given = exposure.predict(momentum, asked(), 0.5, 5, sets=60)
    assert given.kind == "paired" and np.isfinite(given.separation).all() and (given.separation > 0).all()
    with pytest.raises(InputError, match="nobody else"):
        alone = replace(view, settings=replace(view.settings, participants=1))
        exposure.predict(alone, asked(), 0.5, 5)
