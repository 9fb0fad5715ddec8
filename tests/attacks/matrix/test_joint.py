"""Joint inference against refits, SciPy, scikit-learn and the best possible decoder of a known world."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from attacks.matrix import lira
from attacks.matrix.design import Design, Prediction
from attacks.matrix.joint import decoder as joint_decoder
from attacks.matrix.joint import parts, stacking
from attacks.matrix.joint.decoder import Decoder
from attacks.matrix.joint.parts import PENALTIES
from attacks.matrix.joint.stacking import Evidence
from attacks.matrix.signal_matrix import SignalMatrix


@dataclass(frozen=True)
class LinearWorld:
    """φ = influence·(m − ½) + factors + noise: what a membership does to every record's φ at every round.

    influence: (D, n), D = R·n; factors: (D, k), of unit variance each; noise: standard deviation.
    """

    influence: np.ndarray
    factors: np.ndarray
    noise: float

    @property
    def records(self) -> int:
        return self.influence.shape[1]

    def phi(self, member: np.ndarray, stream: np.random.Generator) -> np.ndarray:
        common = stream.normal(size=(len(member), self.factors.shape[1]))
        noise = self.noise * stream.normal(size=(len(member), len(self.influence)))
        return (member - 0.5) @ self.influence.T + common @ self.factors.T + noise

    def best(self, phi: np.ndarray) -> np.ndarray:
        """The linear decoder of least mean squared error, from the true covariances."""
        covariance = self.influence @ self.influence.T / 4 + self.factors @ self.factors.T
        covariance += self.noise**2 * np.eye(len(covariance))
        return np.linalg.solve(covariance, phi.T).T @ self.influence / 4

    def matrix(
        self, shadows: int, stream: np.random.Generator, mirrored: bool = False
    ) -> tuple[SignalMatrix, np.ndarray]:
        member = stream.random((shadows + 1, self.records)) < 0.5
        if mirrored:
            member[2::2] = ~member[1:-1:2]
        phi = self.phi(member, stream).astype(np.float32)
        signals = phi.reshape(shadows + 1, -1, self.records)
        return SignalMatrix(
            target=signals[0],
            shadows=signals[1:],
            inside=np.where(member[1:], 0, -1).astype(np.int8),
            rounds=np.arange(signals.shape[1]),
            labels=np.zeros(self.records, dtype=np.int64),
            party=np.zeros(self.records, dtype=np.int8),
            target_weights=(phi[0] @ np.ones((phi.shape[1], 3), np.float32))[None],
            shadow_weights=(phi[1:] @ np.ones((phi.shape[1], 3), np.float32))[:, None],
        ), member[0]


def linear_world(
    n: int, rounds: int, stream: np.random.Generator, own: float = 1.0, others: float = 1.0
) -> LinearWorld:
    """Every membership moves its own φ by ``own`` and all others a little."""
    reach = others * stream.normal(size=(rounds * n, n)) / np.sqrt(n)
    diagonal = own * np.tile(np.eye(n), (rounds, 1))
    return LinearWorld(reach + diagonal, 0.7 * stream.normal(size=(rounds * n, 5)), noise=1.0)


def mean_auc(scores: list[np.ndarray], members: list[np.ndarray]) -> float:
    return float(np.mean([roc_auc_score(m, s) for s, m in zip(scores, members, strict=True)]))


def games(world: LinearWorld, shadows: int, count: int, stream: np.random.Generator) -> list:
    """The same shadows against ``count`` targets: (matrix, members) each."""
    matrix, _ = world.matrix(shadows, stream)
    member = stream.random((count, world.records)) < 0.5
    phi = world.phi(member, stream).astype(np.float32)
    ones = np.ones((phi.shape[1], 3), np.float32)
    return [
        (replace(matrix, target=p.reshape(-1, world.records), target_weights=(p @ ones)[None]), m)
        for p, m in zip(phi, member, strict=True)
    ]


def decoder_of(matrix: SignalMatrix) -> tuple[Decoder, Design]:
    return Decoder.of(matrix.shadows, matrix.target[None]), Design.of(matrix.member)


def scaled(matrix: SignalMatrix) -> tuple[np.ndarray, np.ndarray]:
    """X (S, D) and the target (D,), as every decoder sees them."""
    flat = matrix.shadows.reshape(len(matrix), -1)
    both = joint_decoder.scaled(flat, matrix.target.reshape(1, -1), flat.shape[1]).astype(float)
    return both[:-1], both[-1]


@pytest.fixture
def stream() -> np.random.Generator:
    return np.random.default_rng(20)


# -------------------------------------------------------------------------------------------- decoders
@pytest.mark.parametrize(("shadows", "records"), [(60, 6), (24, 20)], ids=["primal", "dual"])
@pytest.mark.parametrize("mirrored", [False, True], ids=["independent", "mirrored"])
def test_ridge_is_scikit_learns_with_the_shadow_and_its_partner_left_out(
    shadows: int, records: int, mirrored: bool, stream: np.random.Generator
) -> None:
    world = linear_world(records, 2, stream)
    matrix, _ = world.matrix(shadows, stream, mirrored)
    decoder, design = decoder_of(matrix)
    assert (design.partner != np.arange(shadows)).any() or not mirrored
    y = matrix.member.astype(float)
    x, t = scaled(matrix)
    for penalty in PENALTIES:
        found = parts._ridge(decoder, design, penalty, parts._projected(decoder, design))
        ridge = Ridge(alpha=penalty * decoder.unit, solver="svd")
        twin = ridge.fit(x, y).predict(t[None])[0]
        assert np.allclose(found.targets[0], twin - y.mean(axis=0), atol=2e-3)
        for s in (0, 1, shadows - 1):
            kept = np.setdiff1d(np.arange(shadows), [s, design.partner[s]])
            ridge.fit(x[kept], y[kept])
            twin = ridge.predict(x[[s]])[0] - y.mean(axis=0)
            assert np.allclose(found.shadows[s], twin, atol=5e-3)


@pytest.mark.parametrize("shadows", [24, 64])
def test_left_out_shadows_are_not_told_by_many_signals_that_say_nothing(
    shadows: int, stream: np.random.Generator
) -> None:
    """With 100 times as many signals as shadows a fit goes through every shadow: I − H is nearly 0."""
    half = stream.random((shadows // 2, 300)) < 0.5
    member = np.stack([half, ~half], axis=1).reshape(shadows, 300)
    signals = stream.normal(size=(shadows + 1, 100 * shadows)).astype(np.float32)
    decoder, design = Decoder.of(signals[1:], signals[:1]), Design.of(member)
    x = joint_decoder.scaled(signals[1:], signals[:1], signals.shape[1]).astype(float)[:-1]
    for penalty in PENALTIES[:3]:
        found = parts._ridge(decoder, design, penalty, parts._projected(decoder, design)).shadows
        assert abs(np.mean([roc_auc_score(m, f) for m, f in zip(member, found, strict=True)]) - 0.5) < 0.05
        kept = np.arange(2, shadows)
        ridge = Ridge(alpha=penalty * decoder.unit, solver="svd").fit(x[kept], member[kept].astype(float))
        twin = ridge.predict(x[[0]])[0] - member.mean(axis=0)
        np.testing.assert_allclose(found[0], twin, atol=0.02)


@pytest.mark.parametrize(("shadows", "records"), [(60, 6), (24, 20)], ids=["primal", "dual"])
@pytest.mark.parametrize("mirrored", [False, True], ids=["independent", "mirrored"])
def test_factor_adjustment_is_its_definition_refitted_without_the_shadow(
    shadows: int, records: int, mirrored: bool, stream: np.random.Generator
) -> None:
    world = linear_world(records, 2, stream)
    matrix, _ = world.matrix(shadows, stream, mirrored)
    decoder, design = decoder_of(matrix)
    found = parts._adjusted(matrix.shadows, matrix.target[None], decoder, design, 0.5)
    all_signals, target = scaled(matrix)

    def twin(kept: np.ndarray, x: np.ndarray) -> np.ndarray:
        signals, y = all_signals[kept], matrix.member[kept].astype(float)
        centre = signals.mean(axis=0)
        signals, y = signals - centre, y - y.mean(axis=0)
        gram = signals.T @ signals + 0.5 * decoder.unit * np.eye(signals.shape[1])
        whitened = np.linalg.solve(gram, x - centre)
        own = (signals.T @ y)[np.arange(len(whitened)), np.tile(np.arange(records), 2)]
        return (whitened * own).reshape(2, records).sum(axis=0)

    assert np.allclose(found.targets[0], twin(np.arange(shadows), target), atol=1e-3)
    for s in (0, 1, shadows - 1):
        kept = np.setdiff1d(np.arange(shadows), [s, design.partner[s]])
        assert np.allclose(found.shadows[s], twin(kept, all_signals[s]), atol=2e-3)


def test_likelihood_ratio_is_scipys_where_records_differ_by_far_more_than_chance(
    stream: np.random.Generator,
) -> None:
    member = stream.random((4000, 5)) < 0.5
    distance = np.array([0.5, 1.0, 3.0, 6.0, 9.0])
    scores = Prediction(stream.normal(size=(4000, 5)) + distance * member, stream.normal(size=(7, 5)))
    found = Design.of(member).likelihood_ratio(scores)
    for i in range(5):
        s, m = scores.shadows[:, i], member[:, i]
        means = s[m].mean(), s[~m].mean()
        deviation = np.sqrt((m.sum() * s[m].var() + (~m).sum() * s[~m].var()) / (len(s) - 2))
        inside, outside = (norm.logpdf(scores.targets[:, i], mean, deviation) for mean in means)
        assert np.allclose(found[:, i], inside - outside, rtol=0.01, atol=1e-3)


def test_likelihood_ratio_of_chance_is_about_0(stream: np.random.Generator) -> None:
    member = stream.random((100, 200)) < 0.5
    scores = Prediction(stream.normal(size=(100, 200)), stream.normal(size=(50, 200)))
    assert np.abs(Design.of(member).likelihood_ratio(scores)).mean() < 0.05


def test_partners_are_neighbours_that_exclude_each_other(stream: np.random.Generator) -> None:
    half = stream.random((10, 200)) < 0.5
    member = np.stack([half, ~half], axis=1).reshape(20, 200)
    assert (Design.of(member).partner == np.arange(20) ^ 1).all()
    assert (Design.of(half).partner == np.arange(10)).all()
    torn = Design.of(np.delete(member, 7, axis=0)).partner  # shadow 7 was taken out: 6 has lost its partner
    assert torn[6] == 6
    assert (torn[7:] == np.arange(7, 19) + np.tile([1, -1], 6)).all()


# -------------------------------------------------------------------------------------- what it finds
def test_many_shadows_come_close_to_the_best_decoder_and_few_are_no_worse_than_lira(
    stream: np.random.Generator,
) -> None:
    world = linear_world(40, 2, stream)
    for shadows, gap in ((24, 0.5), (256, 0.1), (4000, 0.015)):
        drawn = games(world, shadows, 12, stream)
        members = [m for _, m in drawn]
        found = mean_auc([stacking.score(a, stream) for a, _ in drawn], members)
        best = mean_auc([world.best(a.target.reshape(-1)) for a, _ in drawn], members)
        plain = mean_auc([lira.online(a, stream) for a, _ in drawn], members)
        assert best - gap < found < best + 0.02
        assert found > plain - 0.01


def test_joint_beats_each_of_its_parts(stream: np.random.Generator) -> None:
    world = linear_world(60, 2, stream)
    drawn = games(world, 400, 16, stream)
    members = [m for _, m in drawn]
    found = mean_auc([stacking.score(a, stream) for a, _ in drawn], members)
    for part in (lira.online, parts.ridge_decoding, parts.weight_decoding, parts.factor_adjusted_lira):
        assert found > mean_auc([part(a, stream) for a, _ in drawn], members) - 0.005


def test_log_odds_are_calibrated(stream: np.random.Generator) -> None:
    drawn = games(linear_world(60, 2, stream), 300, 30, stream)
    odds = np.concatenate([stacking.score(a, stream) for a, _ in drawn])
    member = np.concatenate([m for _, m in drawn])
    p = 1 / (1 + np.exp(-odds))
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        inside = (p >= low) & (p < high)
        error = 4 * np.sqrt(0.25 / inside.sum()) + 0.03
        assert inside.sum() > 50
        assert abs(member[inside].mean() - p[inside].mean()) < error


@pytest.mark.parametrize("shadows", [20, 200])
@pytest.mark.parametrize("mirrored", [False, True], ids=["independent", "mirrored"])
def test_where_there_is_nothing_to_find_it_finds_nothing(
    shadows: int, mirrored: bool, stream: np.random.Generator
) -> None:
    """As under strong DP: no membership moves anything, and no log-odds claim to know one."""
    world = linear_world(80, 2, stream, own=0.0, others=0.0)
    aucs, odds = [], []
    for _ in range(8):
        matrix, member = world.matrix(shadows, stream, mirrored)
        scores = stacking.score(matrix, stream)
        aucs.append(roc_auc_score(member, scores) if np.ptp(scores) else 0.5)
        odds.append(np.abs(scores).mean())
    assert abs(np.mean(aucs) - 0.5) < 4 * np.sqrt(1 / (12 * 40 * 8))
    assert np.mean(odds) < 0.2


def test_rehearsals_tell_what_is_found_in_the_target(stream: np.random.Generator) -> None:
    """Mirrored shadows are held back together: else the others would have seen what is asked."""
    matrix, _ = linear_world(50, 2, stream).matrix(400, stream, mirrored=True)
    partner = Design.of(matrix.member).partner
    assert (partner == np.arange(400) ^ 1).all()
    rows = stacking.held_back(matrix)
    assert len(rows) == 100 and (np.sort(partner[rows]) == rows).all()
    member, odds = matrix.member[rows], stacking.rehearse(matrix, stream).shadows
    loss = np.logaddexp(0, np.where(member, -odds, odds)).mean()
    assert loss < np.log(2) - 0.05
    assert np.logaddexp(0, np.where(~member, -odds, odds)).mean() > np.log(2)


def test_open_world_still_beats_lira(stream: np.random.Generator) -> None:
    """Half of what moves φ are records that the adversary does not have."""
    world = linear_world(80, 2, stream)
    pool = np.arange(40)
    drawn = [
        (
            replace(a, target=a.target[:, pool], shadows=a.shadows[:, :, pool], inside=a.inside[:, pool]),
            m[pool],
        )
        for a, m in games(world, 600, 16, stream)
    ]
    members = [m for _, m in drawn]
    plain = mean_auc([lira.online(a, stream) for a, _ in drawn], members)
    assert mean_auc([stacking.score(a, stream) for a, _ in drawn], members) > plain + 0.02


def test_a_part_that_the_target_takes_by_surprise_counts_for_less(stream: np.random.Generator) -> None:
    """Weights that say everything of shadows, and of the target, full of unknown members, nothing."""
    world = linear_world(60, 1, stream, own=1.5, others=0.2)
    aucs = {"with": [], "without": [], "weights": []}
    for _ in range(6):
        matrix, member = world.matrix(300, stream)
        telling = matrix.member + 0.3 * stream.normal(size=(300, 60))
        strange = replace(
            matrix,
            shadow_weights=telling[:, None].astype(np.float32),
            target_weights=(6 * stream.normal(size=(1, 60))).astype(np.float32),
        )
        blind = replace(matrix, shadow_weights=None, target_weights=None)
        aucs["with"].append(roc_auc_score(member, stacking.score(strange, stream)))
        aucs["without"].append(roc_auc_score(member, stacking.score(blind, stream)))
        aucs["weights"].append(roc_auc_score(member, parts.weight_decoding(strange, stream)))
    means = {name: float(np.mean(found)) for name, found in aucs.items()}
    assert abs(means["weights"] - 0.5) < 0.15
    assert means["with"] > (means["without"] + means["weights"]) / 2


def test_tempering_leaves_rehearsals_alone_and_divides_what_exceeds_them(stream: np.random.Generator) -> None:
    rehearsed = stream.normal(size=(2, 200, 5000))
    usual = rehearsed[0, np.abs(rehearsed[0].mean(axis=1)).argmin()]
    target = np.stack([0.9 * usual, 10 * stream.normal(size=5000) + 7])
    found = [stacking._tempered(Evidence(t, r)) for t, r in zip(target, rehearsed, strict=True)]
    assert np.allclose(found[0], target[0])
    assert found[1].std() == pytest.approx(0.1, rel=0.1)
    assert abs(found[1].mean()) < 0.05
    surprising = [stacking._surprising(Evidence(t, r)) for t, r in zip(target, rehearsed, strict=True)]
    assert surprising == [False, True]


# ------------------------------------------------------------------------------------- odd situations
def test_more_records_than_shadows(stream: np.random.Generator) -> None:
    world = linear_world(300, 2, stream, own=1.5)
    drawn = games(world, 64, 4, stream)
    members = [m for _, m in drawn]
    plain = mean_auc([lira.online(a, stream) for a, _ in drawn], members)
    assert mean_auc([stacking.score(a, stream) for a, _ in drawn], members) > plain


def test_records_in_no_shadow_or_in_all_score_0(stream: np.random.Generator) -> None:
    matrix, _ = linear_world(20, 2, stream).matrix(50, stream)
    inside = matrix.inside.copy()
    inside[:, 3], inside[:, 4] = -1, 0
    odd = replace(matrix, inside=inside)
    for part in (stacking.score, parts.ridge_decoding, parts.factor_adjusted_lira, parts.weight_decoding):
        scores = part(odd, stream)
        assert scores[3] == scores[4] == 0
    assert (stacking.score(odd, stream)[[0, 1, 2, 5]] != 0).all()
    inside[:] = -1
    assert (stacking.score(replace(odd, inside=inside), stream) == 0).all()


def test_signals_that_are_not_finite_or_constant_are_no_evidence(stream: np.random.Generator) -> None:
    matrix, _ = linear_world(20, 2, stream).matrix(50, stream)
    target, shadows = matrix.target.copy(), matrix.shadows.copy()
    target[0, 2], shadows[7, 1, 3], shadows[:, :, 4], shadows[8] = np.nan, np.inf, np.nan, -np.inf
    target[:, 4], shadows[:, :, 5], target[:, 5] = 1.0, 2.0, 9.0
    scores = stacking.score(replace(matrix, target=target, shadows=shadows), stream)
    assert np.isfinite(scores).all()
    whole = stacking.score(matrix, stream)
    assert np.corrcoef(scores, whole)[0, 1] > 0.5


def test_weight_decoding_asks_for_weights(stream: np.random.Generator) -> None:
    matrix, _ = linear_world(10, 1, stream).matrix(20, stream)
    without = replace(matrix, shadow_weights=None, target_weights=None)
    with pytest.raises(ValueError, match="weights"):
        parts.weight_decoding(without, stream)
    assert np.isfinite(stacking.score(without, stream)).all()


def test_early_shadows_are_parts_too_and_have_to_begin_with_the_whole_ones(
    stream: np.random.Generator,
) -> None:
    matrix, member = linear_world(20, 1, stream, own=0.5).matrix(400, stream)
    telling = np.concatenate([member[None], matrix.member]) + 0.2 * stream.normal(size=(401, 20))
    early = replace(matrix, target=telling[:1], shadows=telling[1:, None].astype(np.float32))
    whole = replace(matrix.subset(np.arange(100)), early=early)
    alone = roc_auc_score(member, stacking.score(replace(whole, early=None), stream))
    assert roc_auc_score(member, stacking.score(whole, stream)) > max(0.99, alone + 0.05)
    with pytest.raises(ValueError, match="early"):
        stacking.score(replace(whole, early=early.subset(np.arange(1, 200))), stream)


def test_weights_of_several_rounds_are_parts_of_their_own(stream: np.random.Generator) -> None:
    """A round whose weights say nothing takes nothing from one whose weights say everything."""
    matrix, member = linear_world(20, 1, stream, own=0.5).matrix(400, stream)
    telling = np.concatenate([member[None], matrix.member]) + 0.2 * stream.normal(size=(401, 20))
    weights = np.stack([stream.normal(size=(401, 20)), telling], axis=1).astype(np.float32)
    several = replace(matrix, target_weights=weights[0], shadow_weights=weights[1:])
    assert roc_auc_score(member, stacking.score(several, stream)) > 0.99
    assert roc_auc_score(member, parts.weight_decoding(several, stream)) > 0.99
    one = replace(several, target_weights=weights[0, 1:], shadow_weights=weights[1:, 1:])
    assert np.allclose(parts.weight_decoding(one, stream), parts.weight_decoding(several, stream))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_neither_the_order_of_records_nor_the_unit_of_signals_matters(
    seed: int, scale: float, shift: float
) -> None:
    stream = np.random.default_rng(seed)
    matrix, _ = linear_world(12, 2, stream).matrix(40, stream)
    order = stream.permutation(12)
    other = replace(
        matrix,
        target=(scale * matrix.target + shift)[:, order],
        shadows=(scale * matrix.shadows + shift)[:, :, order],
        inside=matrix.inside[:, order],
    )
    assert np.allclose(stacking.score(other, stream), stacking.score(matrix, stream)[order], atol=0.02)
