"""The outsider: what each output policy tells, what never reaches it, and its query budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score
from support.attacks import attacks_of
from support.federation import Federation

from attacks.membership import outsider as membership_outsider
from attacks.membership import threshold
from attacks.membership.outsider import answers_asked, loss
from attacks.signals import outputs
from attacks.views.outsider import OutsiderView, ReleasedModel
from fedsim.core.data.records import Records
from fedsim.core.privacy import gaussian, output
from fedsim.core.scenario.protection import OutputPolicy

SUITE = attacks_of("outsider")
POLICIES = ("full", "rounded", "top-k", "label", "noisy", "laplace", "gaussian", "temperature")
LOGITS = np.array([[2.0, 0.0, -1.0], [0.1, 0.2, 0.0], [-4.0, 5.0, 0.0]])


def p_of(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def answered(policy: str, **settings: float) -> np.ndarray:
    stream = np.random.default_rng(0)
    return output.answered(p_of(LOGITS), OutputPolicy(policy=policy, **settings), stream)  # type: ignore[arg-type]


def view_of(
    federation: Federation, policy: str, scale: float = 1.0, queries: int | None = None
) -> OutsiderView:
    view = federation.view
    module = view.module(view.final_model)
    told = OutputPolicy(policy=policy, queries=queries)  # type: ignore[arg-type]
    model = ReleasedModel(lambda x: scale * outputs.logits(module, x), view.settings.classes, told)
    return model.view(np.random.default_rng(1))


def test_policies_tell_what_they_say() -> None:
    p = p_of(LOGITS)
    np.testing.assert_array_equal(answered("full"), p)
    np.testing.assert_array_equal(
        answered("rounded", digits=1), [[0.8, 0.1, 0.0], [0.3, 0.4, 0.3], [0, 1, 0]]
    )
    np.testing.assert_array_equal(answered("label"), [[1, 0, 0], [0, 1, 0], [0, 1, 0]])
    two = answered("top-k", top=2)
    assert np.isnan(two).sum() == 3 and np.isnan(two[[0, 1, 2], [2, 2, 0]]).all()
    np.testing.assert_array_equal(two[~np.isnan(two)], p[~np.isnan(two)])


def test_noise_has_the_standard_deviation_asked_for() -> None:
    p = np.full((20000, 2), 0.5)
    noisy = output.answered(p, OutputPolicy(policy="noisy", noise=0.01), np.random.default_rng(0))
    np.testing.assert_allclose(noisy.sum(axis=1), 1)
    assert noisy[:, 0].std() == pytest.approx(0.01 / np.sqrt(2), rel=0.05)  # of (p + a) / (1 + a + b)


@given(arrays(float, (4, 5), elements=st.floats(-20, 20)), st.floats(1, 50))
def test_temperature_divides_the_logits_and_keeps_their_order(logits: np.ndarray, temperature: float) -> None:
    policy = OutputPolicy(policy="temperature", temperature=temperature)
    told = output.answered(p_of(logits), policy, np.random.default_rng(0))
    np.testing.assert_allclose(told, p_of(logits / temperature), rtol=1e-6)
    rows = np.arange(len(logits))
    np.testing.assert_allclose(told[rows, logits.argmax(axis=1)], told.max(axis=1))


@pytest.mark.parametrize("policy", ["laplace", "gaussian"])
def test_private_answers_have_the_noise_of_their_mechanism(policy: str) -> None:
    """Far from 0 and 1 nothing is cut; the scale is by hand that of the two answers farthest apart."""
    told = OutputPolicy(policy=policy, epsilon=200.0, delta=1e-3)  # type: ignore[arg-type]
    scale, ends = output.answer_noise(told), np.eye(2)
    p, same = np.full((5000, 2), 0.5), np.random.default_rng(0)
    noisy = p + (same.laplace if policy == "laplace" else same.normal)(0, scale, p.shape)
    answers = output.answered(p, told, np.random.default_rng(0))
    np.testing.assert_allclose(answers, noisy / noisy.sum(axis=1, keepdims=True))
    if policy == "laplace":
        assert np.abs(ends[0] - ends[1]).sum() / scale == pytest.approx(told.epsilon)
    else:
        z = scale / np.linalg.norm(ends[0] - ends[1])
        assert gaussian.delta_of(told.epsilon, z) == pytest.approx(told.delta)


@pytest.mark.parametrize("policy", ["laplace", "gaussian"])
def test_one_private_answer_keeps_its_promise(policy: str) -> None:
    """The chance of 'first class likelier', whose odds the two farthest models change most."""
    told = OutputPolicy(policy=policy, epsilon=0.5, delta=0.01)  # type: ignore[arg-type]
    ends = (np.tile([1.0, 0.0], (200_000, 1)), np.tile([0.0, 1.0], (200_000, 1)))
    first, second = (
        float(np.mean(answer[:, 0] > answer[:, 1]))
        for answer in (output.answered(p, told, np.random.default_rng(i)) for i, p in enumerate(ends))
    )
    delta = told.delta if policy == "gaussian" else 0.0
    error = 4 * np.sqrt(0.25 / 200_000)  # four standard errors
    assert first <= np.exp(told.epsilon) * second + delta + error
    assert first > second + error, "the noise leaves something"


def test_what_a_private_answer_tells_of_no_answer_is_hidden_in_the_noise() -> None:
    nothing = np.full((4, 3), np.nan)
    told = output.answered(nothing, OutputPolicy(policy="laplace"), np.random.default_rng(0))
    np.testing.assert_allclose(told.sum(axis=1), 1)
    assert len(np.unique(told)) > 3


def test_answers_add_up() -> None:
    assert output.spent(OutputPolicy(policy="laplace", epsilon=0.5), 10) == (5.0, 0.0)
    assert output.spent(OutputPolicy(policy="gaussian", epsilon=0.5, delta=2**-20), 8) == (4.0, 2**-17)
    assert output.spent(OutputPolicy(policy="noisy"), 10) is None


@given(arrays(float, (4, 5), elements=st.floats(-20, 20)), st.integers(1, 5))
def test_what_is_made_whole_is_a_distribution_with_what_was_told(logits: np.ndarray, top: int) -> None:
    p = p_of(logits)
    told = output.answered(p, OutputPolicy(policy="top-k", top=top), np.random.default_rng(0))
    whole = output.completed(told)
    np.testing.assert_allclose(whole.sum(axis=1), 1)
    np.testing.assert_array_equal(whole[~np.isnan(told)], told[~np.isnan(told)])
    assert (~np.isnan(told)).sum(axis=1).tolist() == [top] * 4
    hidden = np.where(np.isnan(told), whole, np.nan)
    if top < 5:
        np.testing.assert_allclose(np.nanmax(hidden, axis=1), np.nanmin(hidden, axis=1))


def test_with_full_answers_an_outsider_ranks_as_a_participant_does(overfitted: Federation) -> None:
    stream = np.random.default_rng(0)
    for name in ("gap", "loss", "confidence", "entropy", "modified_entropy"):
        outside = getattr(membership_outsider, name)(
            view_of(overfitted, "full"), overfitted.candidates, stream
        )
        inside = getattr(threshold, name)(overfitted.view, overfitted.candidates, stream)
        assert roc_auc_score(overfitted.member, outside) == pytest.approx(
            roc_auc_score(overfitted.member, inside), abs=0.01
        ), name


@pytest.mark.parametrize("name", SUITE)
def test_of_labels_only_the_label_arrives(overfitted: Federation, name: str) -> None:
    """Another model with the same labels and other logits: not one score differs."""
    score, candidates = SUITE[name].score, overfitted.candidates
    one, other = (
        score(view_of(overfitted, "label", scale), candidates, np.random.default_rng(2))
        for scale in (1, 0.03)
    )
    np.testing.assert_array_equal(one, other)
    view = view_of(overfitted, "label")
    assert set(np.unique(view.ask(candidates.features))) == {0.0, 1.0}
    assert set(vars(view)) == {"ask", "classes", "queries"}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SUITE)
def test_every_attack_bears_every_policy(overfitted: Federation, name: str, policy: str) -> None:
    scores = SUITE[name].score(view_of(overfitted, policy), overfitted.candidates, np.random.default_rng(0))
    assert scores.shape == overfitted.member.shape and np.isfinite(scores).all()


def test_less_is_told_less_is_found(overfitted: Federation) -> None:
    def auc(policy: str) -> float:
        stream = np.random.default_rng(0)
        scores = loss(view_of(overfitted, policy), overfitted.candidates, stream)
        return float(roc_auc_score(overfitted.member, scores))

    assert auc("full") > 0.9
    assert auc("full") >= auc("rounded") - 0.01 and auc("full") > auc("label") >= 0.5


@pytest.mark.parametrize("name", SUITE)
def test_the_query_budget_holds(overfitted: Federation, name: str) -> None:
    asked: list[int] = []

    def model(features: np.ndarray) -> np.ndarray:
        asked.append(len(features))
        return np.random.default_rng(0).normal(size=(len(features), 10))

    policy = OutputPolicy(queries=50)
    view = ReleasedModel(model, 10, policy).view(np.random.default_rng(0))
    with np.errstate(invalid="ignore"):
        scores = SUITE[name].score(view, overfitted.candidates, np.random.default_rng(0))
    assert sum(asked) == answers_asked(name, len(overfitted.candidates), 50) <= 50
    assert np.isfinite(scores[:50]).all() and np.isnan(scores[50:]).all()
    with pytest.raises(RuntimeError, match=r"51 queries, but \d+ of 50 are left"):
        view.ask(np.zeros((51, 40), np.float32))


def test_a_model_without_an_answer_gives_none() -> None:
    nothing = np.full((2, 3), np.nan)
    model = ReleasedModel(lambda x: nothing[: len(x)], 3, OutputPolicy(policy="label"))
    view = model.view(np.random.default_rng(0))
    records = Records(np.zeros((2, 4), np.float32), np.zeros(2, np.int64))
    assert np.isnan(loss(view, records, np.random.default_rng(0))).all()
