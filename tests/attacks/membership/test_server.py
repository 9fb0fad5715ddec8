"""The server's attacks: formulas against transcriptions, isolation against memory, sums against both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from support.attacks import attacks_of
from support.federation import Federation, initial
from support.servers import secure, server_of

from attacks import execution, registry
from attacks.membership import trajectory
from attacks.membership.server import (
    AGGREGATE,
    Measurements,
    isolated_loss,
    isolated_loss_series,
    isolated_update_cosine,
    isolated_update_regression,
    last,
    likelihood,
    measure,
    over_rounds,
)
from attacks.views import server
from attacks.views.server import ServerView
from attacks.views.settings import PublicSettings, module_of
from fedsim.core import files
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError
from fedsim.core.scenario.adversary import AdversarySettings
from fedsim.core.scenario.settings import FederationSettings

SUITE = attacks_of("server")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def seen(early: Federation) -> Measurements:
    return measure(server_of(early, lr=0.05, epochs=1), early.candidates)


def test_measurements_are_what_autograd_and_the_softmax_say(early: Federation) -> None:
    view = server_of(early, lr=0.05, epochs=1)
    seen = measure(view, early.candidates)
    assert seen.phi.shape == seen.cosine.shape == (10, 3, len(early.candidates))
    for t, k, i in [(1, 0, 0), (5, 2, 17), (10, 1, 79)]:
        x = torch.tensor(early.candidates.features[i : i + 1])
        y = torch.tensor(early.candidates.labels[i : i + 1])
        p = module_of(view.settings, view.answers[t][k])(x).softmax(1)[0, y[0]].item()
        assert seen.phi[t - 1, k, i] == pytest.approx(np.log(p / (1 - p)), rel=1e-3, abs=1e-4)
        assert seen.loss[t - 1, k, i] == pytest.approx(-np.log(p), rel=1e-3)
        before = module_of(view.settings, view.models[t - 1])
        torch.nn.functional.cross_entropy(before(x), y).backward()
        names = [name for name, _ in before.named_parameters()]
        g = torch.cat([w.grad.flatten() for w in before.parameters() if w.grad is not None]).numpy()
        step = np.concatenate([(view.answers[t][k][n] - view.models[t - 1][n]).ravel() for n in names])
        cosine = -g @ step / np.linalg.norm(g) / np.linalg.norm(step)
        assert seen.cosine[t - 1, k, i] == pytest.approx(cosine, abs=1e-4)


@given(arrays(float, (3, 5, 4), elements=st.floats(-50, 50).map(lambda x: round(x, 3))), st.integers(0, 14))
def test_fedmia_is_the_equation_of_the_paper(values: np.ndarray, gone: int) -> None:
    values[gone // 5, gone % 5] = np.nan  # one party missed one round
    found = likelihood(values)
    for k in range(5):
        for i in range(4):
            rounds = [t for t in range(3) if not np.isnan(values[t, k, i])]
            total = []
            for t in rounds:
                others = np.delete(values[t, :, i], k)
                others = others[~np.isnan(others)]
                total.append(norm.cdf(values[t, k, i], others.mean(), max(others.std(), 1.2e-7)))
            if np.ptp(values[:, :, i][~np.isnan(values[:, :, i])]) > 1e-2 and _spread(values, k, i) > 1e-3:
                assert found[k, i] == pytest.approx(np.mean(total), abs=1e-6)


def _spread(values: np.ndarray, k: int, i: int) -> float:
    return min(float(np.nanstd(np.delete(values[t, :, i], k))) for t in range(len(values)))


def test_fedmia_needs_two_others() -> None:
    values = np.random.default_rng(0).normal(size=(4, 2, 3))
    assert np.isnan(likelihood(values)).all()


def test_what_cannot_be_measured_leaves_the_other_attacks(
    early: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gradients(*arguments: object) -> None:
        raise RuntimeError("no gradient per record")

    monkeypatch.setattr("attacks.membership.update_regression.decode", no_gradients)
    view = server_of(early, lr=0.05, epochs=1)
    attacks = [SUITE["loss"], SUITE["update-regression"], SUITE["fedmia"]]
    results = execution.run("server", view, attacks, execution.Task(early.candidates, seed=0))
    assert set(results.findings) == {"loss", "fedmia"}
    assert results.not_run == {"update-regression": "RuntimeError: no gradient per record"}


def test_a_told_party_is_the_only_one_asked(seen: Measurements, early: Federation) -> None:
    told = replace(seen, candidate_party=early.party)
    for score, values in [
        (isolated_loss, seen.phi[-1]),
        (isolated_loss_series, -seen.loss.mean(axis=0)),
        (isolated_update_cosine, seen.cosine.mean(axis=0)),
        (isolated_update_regression, seen.part),
    ]:
        own = values[early.party, np.arange(len(early.party))]
        np.testing.assert_allclose(score(told, RNG), own, rtol=1e-12)
        np.testing.assert_allclose(score(seen, RNG), values[1:].max(axis=0), rtol=1e-12)


def test_last_and_mean_skip_rounds_in_which_a_party_did_not_answer() -> None:
    values = np.array([[[1.0], [5.0]], [[3.0], [np.nan]], [[np.nan], [np.nan]]])
    np.testing.assert_array_equal(last(values), [[3.0], [5.0]])
    np.testing.assert_array_equal(over_rounds(values), [[2.0], [5.0]])


def test_isolation_finds_more_than_a_participant(early: Federation, seen: Measurements) -> None:
    participant = trajectory.update_cosine(early.view, early.candidates, np.random.default_rng(0))
    told = replace(seen, candidate_party=early.party)
    alone = isolated_update_cosine(told, RNG)
    together = isolated_update_regression(seen, RNG)
    auc = [roc_auc_score(early.member, x) for x in (participant, alone, together)]
    assert auc[1] > auc[0] > 0.6 and auc[2] > 0.95


@pytest.mark.parametrize("name", SUITE)
def test_every_attack_of_the_server_finds_memorised_records(overfitted: Federation, name: str) -> None:
    view = server_of(overfitted, told=True)
    first = replace(view, answers={1: view.answers[1]})
    scores = SUITE[name].score(measure(first, overfitted.candidates), RNG)
    assert roc_auc_score(overfitted.member, scores) > 0.8


def test_secure_aggregation_leaves_one_party_and_no_comparison(early: Federation) -> None:
    view = secure(server_of(early, lr=0.05, epochs=1))
    seen = measure(view, early.candidates)
    assert seen.secure and seen.parties.tolist() == [AGGREGATE]
    adversary = AdversarySettings(secure_aggregation=True)
    offered = registry.applicable(["server:all"], adversary, FederationSettings(), "server")
    assert [attack.name for attack in offered] == [
        "loss",
        "loss-series",
        "update-cosine",
        "update-regression",
    ]
    for attack in offered:
        scores = attack.score(seen, RNG)
        assert scores.shape == early.member.shape and np.isfinite(scores).all(), attack.name
    with pytest.raises(InputError, match=r"'fedmia' needs each party's own update"):
        registry.applicable(["server:fedmia"], adversary, FederationSettings(), "server")
    together = roc_auc_score(early.member, isolated_update_regression(seen, RNG))
    assert together > 0.95, "one full-batch step: the sum of the updates is as good as each of them"


def test_a_model_that_never_saw_the_records_tells_nothing(
    overfitted: Federation, records: Callable[..., Records]
) -> None:
    view = server_of(overfitted)
    stream = np.random.default_rng(5)
    strangers = records(stream, 300, 40, 10)
    seen = measure(
        ServerView(view.settings, view.models, view.answers, {}, np.full(300, -1), view.victims), strangers
    )
    for name, attack in SUITE.items():
        auc = roc_auc_score(np.arange(300) < 150, attack.score(seen, RNG))
        assert 0.4 < auc < 0.6, name  # half-width of a 95 % interval: .065


def test_what_the_server_keeps_comes_back(tmp_path: Path) -> None:
    settings = _settings()
    w = initial(settings)
    server.record_answer(tmp_path, 3, 12, w)
    view = server.load_server_view(tmp_path, settings, {2: w, 3: w}, np.array([-1]), [1, 12])
    assert list(view.answers) == [3] and list(view.answers[3]) == [12] and view.sums == {}
    for name in w:
        np.testing.assert_array_equal(view.answers[3][12][name], w[name])


def test_a_sum_is_the_mean_weighted_by_records_and_nothing_else(tmp_path: Path) -> None:
    one, other = ({"w": np.array([x, 2 * x], np.float32)} for x in (1.0, 4.0))
    server.record_sum(tmp_path, 1, [one, other], [10, 20])
    assert [path.name for path in tmp_path.iterdir()] == ["sum-001.safetensors"]
    kept = files.read_arrays(tmp_path / "sum-001.safetensors")
    np.testing.assert_allclose(kept["w"], [3, 6])
    assert kept["w"].dtype == np.float32


def test_a_server_that_kept_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing was kept; observer 'server' must be named before the run"):
        server.load_server_view(tmp_path, _settings(), {}, np.array([-1]), [1])


def _settings() -> PublicSettings:
    from fedsim.core.scenario.training import ModelSettings, TrainingSettings

    return PublicSettings(
        ModelSettings(hidden=[4]), (3,), 2, 3, 3, 3, TrainingSettings(), "fedavg", sizes=(5, 5, 5)
    )
