"""Which party holds the record: the server's rule, the participant's hypotheses, and how both are judged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from support.attacks import attacks_of
from support.federation import Federation
from support.servers import server_of

from attacks import registry
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.membership import server
from attacks.source import inference
from fedsim.core.errors import InputError
from fedsim.core.scenario.adversary import AdversarySettings
from fedsim.core.scenario.settings import FederationSettings
from fedsim.evaluation import sources

RULES = attacks_of("server", "source")
RNG = np.random.default_rng(0)


# ------------------------------------------------------------------------------------------------ server
def test_the_servers_rule_is_the_smallest_loss_of_the_victims(early: Federation) -> None:
    seen = server.measure(server_of(early, lr=0.05, epochs=1), early.candidates)
    found = inference.source_loss(seen, seen.victims, RNG)
    smallest = seen.loss[-1, 1:].argmin(axis=0)  # row 0 is the adversary's own answer
    np.testing.assert_array_equal(found.argmax(axis=1), smallest)
    series = inference.source_loss_series(seen, seen.victims, RNG)
    np.testing.assert_allclose(series, -seen.loss[:, 1:].mean(axis=0).T)


def test_the_server_names_the_party_of_memorised_records(early: Federation) -> None:
    seen = server.measure(server_of(early, lr=0.05, epochs=1), early.candidates)
    right = early.party[early.member][:, None] == seen.victims
    for name, attack in RULES.items():
        scores = attack.score(seen, seen.victims, RNG)
        found = sources.accuracy(scores[early.member], right)
        assert found.low > 0.5, name
    assert found.value > 0.95  # the regression


def test_a_stranger_is_of_no_party(early: Federation) -> None:
    """Held-out records of a party are no better told apart than by a coin."""
    seen = server.measure(server_of(early, lr=0.05, epochs=1), early.candidates)
    right = early.party[~early.member][:, None] == seen.victims
    for name, attack in RULES.items():
        scores = attack.score(seen, seen.victims, RNG)
        found = sources.accuracy(scores[~early.member], right)
        assert found.low < 0.5 < found.high, name


def test_secure_aggregation_names_nobody() -> None:
    adversary = AdversarySettings(secure_aggregation=True)
    offered = registry.applicable(["server:all"], adversary, FederationSettings(), "server")
    assert not any(attack.infers == "source" for attack in offered)


@pytest.mark.parametrize(
    ("settings", "victims"), [({"knows_party": True}, 3), ({}, 1)], ids=["told already", "one party only"]
)
def test_no_one_asks_what_is_known(settings: dict[str, bool], victims: int) -> None:
    adversary = AdversarySettings.model_validate(settings)
    offered = registry.applicable(["server:all"], adversary, FederationSettings(), "server", victims)
    assert offered and not any(attack.infers == "source" for attack in offered)
    with pytest.raises(InputError, match="'source-loss' asks which party holds a record"):
        registry.applicable(["server:source-loss"], adversary, FederationSettings(), "server", victims)


# ------------------------------------------------------------------------------------------- participant
def world(
    shift: tuple[float, float], shadows: int = 400, records: int = 60, own: float = 0.0, seed: int = 0
) -> tuple[SignalMatrix, np.ndarray]:
    """Shadows in which φ ~ N(μ_i + 2 + shift_k + own · δ_ik, 1) in party k, N(μ_i, 1) in none; truth."""
    stream = np.random.default_rng(seed)
    level, apart = stream.normal(0, 3, records), own * stream.normal(size=(records, 2))
    inside = stream.choice([-1, -1, 1, 2], size=(shadows + 1, records))
    effect = np.array([2 + shift[0], 2 + shift[1], 0.0])[np.where(inside < 0, 2, inside - 1)]
    effect += np.where(inside < 0, 0.0, apart[np.arange(records), np.maximum(inside, 1) - 1])
    phi = (level + effect + stream.normal(size=inside.shape)).astype(np.float32)
    matrix = SignalMatrix(
        phi[:1], phi[1:, None], inside[1:], np.array([1]), np.zeros(records, int), np.full(records, -1)
    )
    return matrix, inside[0]


VICTIMS = np.array([1, 2])


def test_hypotheses_are_the_statistics_of_their_shadows() -> None:
    matrix, _ = world((0, 0), shadows=50, records=8)
    found = inference.hypotheses(matrix, VICTIMS)
    for i in range(8):
        groups = [matrix.shadows[matrix.inside[:, i] == k, 0, i].astype(float) for k in (1, 2, -1)]
        np.testing.assert_allclose(found.mean[i], [group.mean() for group in groups], rtol=1e-6)
        np.testing.assert_array_equal(found.count[i], [len(group) for group in groups])
        pooled = sum(((group - group.mean()) ** 2).sum() for group in groups) / (50 - 3)
        assert found.variance[i] == pytest.approx(pooled, rel=1e-6)


def test_posterior_is_bayes_rule_with_the_shrunk_means() -> None:
    matrix, _ = world((0.5, -0.5))
    found = inference.hypotheses(matrix, VICTIMS)
    means, extra = inference.shrunk_means(found)
    posterior = inference.from_shadows(matrix, VICTIMS)
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    for i in range(len(matrix.labels)):
        spread = np.sqrt(found.variance[i] * (1 + np.append(extra[i], 0)))
        none = found.count[i, 2] / found.count[i].sum()
        prior = np.array([(1 - none) / 2, (1 - none) / 2, none])
        density = prior * norm.pdf(matrix.target[0, i], np.append(means[i], found.mean[i, 2]), spread)
        np.testing.assert_allclose(posterior[i], density / density.sum(), rtol=1e-6)


def test_where_parties_do_not_differ_their_scores_do_not_either() -> None:
    matrix, _ = world((0, 0))
    posterior = inference.from_shadows(matrix, VICTIMS)
    assert np.abs(posterior[:, 0] - posterior[:, 1]).max() < 0.15
    few, _ = world((0, 0), shadows=16)
    raw = inference.hypotheses(few, VICTIMS)
    shrunk = inference.shrunk_means(raw)[0]
    assert np.ptp(shrunk, axis=1).mean() < 0.5 * np.ptp(raw.mean[:, :2], axis=1).mean()


@pytest.mark.parametrize("shift, own", [((1.5, -1.5), 0.0), ((0.0, 0.0), 2.0)], ids=["party", "record"])
def test_where_parties_differ_the_right_one_is_named(shift: tuple[float, float], own: float) -> None:
    matrix, inside = world(shift, records=300, own=own)
    member = inside > 0
    named = VICTIMS[inference.from_shadows(matrix, VICTIMS)[:, :2].argmax(axis=1)]
    hits = int((named == inside)[member].sum())
    assert binomtest(hits, int(member.sum()), 0.5).proportion_ci().low > 0.65


def test_posterior_is_calibrated() -> None:
    """Of records of which it says 'in 1 with 70 %', about 70 % are."""
    said, true = [], []
    for seed in range(4):
        matrix, inside = world((0.8, -0.8), records=400, seed=seed)
        said.append(inference.from_shadows(matrix, VICTIMS)[:, 0])
        true.append(inside == 1)
    probability, truth = np.concatenate(said), np.concatenate(true)
    for low in (0.05, 0.25, 0.45):
        chosen = (probability > low) & (probability < low + 0.2)
        assert abs(truth[chosen].mean() - probability[chosen].mean()) < 0.08


def test_a_record_about_which_nothing_is_known_keeps_the_prior() -> None:
    matrix, _ = world((1, -1), records=4)
    matrix.target[0, 0] = np.nan
    matrix.inside[:, 1] = -1
    posterior = inference.from_shadows(matrix, VICTIMS)
    assert posterior[0, 0] == posterior[0, 1] and posterior[1, 0] == posterior[1, 1]
    assert np.isfinite(posterior).all()


# -------------------------------------------------------------------------------------------- evaluation
def tables(scores: np.ndarray, party: list[str], label: list[int], member: list[bool]) -> tuple:
    n, names = len(scores), ["a", "b"]
    long = pd.DataFrame(
        {
            "game": 0,
            "observer": "server",
            "attack": "rule",
            "candidate": np.repeat(np.arange(n), 2),
            "party": names * n,
            "score": scores.ravel(),
        }
    )
    truth = pd.DataFrame({"game": 0, "candidate": range(n), "party": party, "member": member, "label": label})
    return long, truth


def test_only_members_count_and_ties_count_by_their_share() -> None:
    scores = np.array([[1, 0], [0, 1], [1, 1], [0, 1], [1.0, 0]])
    long, truth = tables(scores, list("aabba"), [0, 0, 1, 1, 1], [True, True, True, False, True])
    found = sources.evaluate(long, truth)
    one = found[found["game"] == "0"].set_index("metric")
    assert one.loc["accuracy", "value"] == pytest.approx(2.5 / 4) and set(one["n"]) == {4}
    assert one.loc["chance", "value"] == 0.5
    # label 0 is a's alone; of label 1 a has one record and b has two
    assert one.loc["label_prior", "value"] == pytest.approx((1 + 1 + 1 + 0) / 4)


@given(st.integers(0, 40), st.integers(1, 40))
def test_intervals_are_those_of_the_binomial(hits: int, more: int) -> None:
    n = hits + more
    scores = np.column_stack([np.arange(n) < hits, np.arange(n) >= hits]).astype(float)
    found = sources.accuracy(scores, np.tile([True, False], (n, 1)))
    exact = binomtest(hits, n).proportion_ci(method="exact")
    assert (found.value, found.low, found.high) == pytest.approx((hits / n, exact.low, exact.high))


def test_games_are_averaged_and_bad_scores_refused() -> None:
    long, truth = tables(np.eye(2), list("ab"), [0, 1], [True, True])
    wrong = long.assign(game=1, score=1 - long["score"])
    both = pd.concat([long, wrong]), pd.concat([truth, truth.assign(game=1)])
    found = sources.evaluate(*both)
    mean = found[(found["game"] == "all") & (found["metric"] == "accuracy")].iloc[0]
    assert mean["value"] == 0.5 and mean["n"] == 4
    with pytest.raises(ValueError, match="NaN"):
        sources.evaluate(long.assign(score=np.nan), truth)
    with pytest.raises(ValueError, match="no candidate is a member"):
        sources.evaluate(long, truth.assign(member=False))
