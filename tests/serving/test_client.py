"""The outsider over HTTP: the same scores as offline, within the same budget, through no back door."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import numpy as np
import pytest
from support.serving import Clock, in_memory, listening, new_key, opened

from attacks import registry
from attacks.signals import outputs as signals
from attacks.views.observations import load_view
from attacks.views.outsider import OutsiderView, ReleasedModel
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.data.released import decode_rows, encode_rows
from fedsim.core.errors import FedsimError, InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.serving import client, policy
from fedsim.serving.app import Service
from fedsim.serving.client import RemoteModel

SUITE = {a.name: a.score for a in registry.built_in() if "outsider" in a.observers and a.kind == "answers"}
ONE_QUESTION = [name for name in SUITE if name != "noise-robustness"]


def scores(view: OutsiderView, candidates: Records, names: list[str]) -> dict[str, np.ndarray]:
    """Every attack with the streams of a run's own outsider."""
    with np.errstate(invalid="ignore"):
        return {
            name: SUITE[name](view, candidates, rng.generator(3, f"attack/outsider/{name}")) for name in names
        }


def remote(made: Service, key: str) -> RemoteModel:
    return RemoteModel("http://testserver", key, in_memory(made))


def view_of(model: RemoteModel, queries: int | None = None) -> OutsiderView:
    return OutsiderView(model.ask, model.classes, queries)


@pytest.mark.parametrize("name", ["full", "rounded", "top-k", "label", "temperature"])
def test_http_and_offline_give_the_same_scores(run: RunDirectory, made: Service, name: str) -> None:
    """Offline is the run's own outsider: the participant's copy of the model behind the same policy."""
    candidates = run.read_candidates(0).records
    view = load_view(run.observations(0))
    module = view.module(view.final_model)
    stated = OutputPolicy(policy=name)  # type: ignore[arg-type]
    released = ReleasedModel(lambda x: signals.logits(module, x), 2, stated)
    offline = released.view(np.random.default_rng(0))
    http = remote(made, new_key(made, policy=name))
    expected = scores(offline, candidates, ONE_QUESTION)
    for attack, values in scores(view_of(http), candidates, ONE_QUESTION).items():
        np.testing.assert_array_equal(values, expected[attack])


def offline_twin(made: Service, stated: OutputPolicy) -> Callable[[np.ndarray], np.ndarray]:
    """What the service tells, without it: the nearest records that a table can say, then the policy."""

    def ask(features: np.ndarray) -> np.ndarray:
        said = encode_rows(made.release.schema, decode_rows(made.release.schema, features))
        return policy.answer(made.release.probabilities(said), stated, made._digest(said), made.seed)

    return ask


@pytest.mark.parametrize("name", ["full", "noisy", "laplace"])
def test_noise_is_the_same_for_the_same_seed(run: RunDirectory, made: Service, name: str) -> None:
    candidates = run.read_candidates(0).records
    stated = OutputPolicy(policy=name, epsilon=0.5)  # type: ignore[arg-type]
    budget = {"epsilon_budget": 1e6} if name == "laplace" else {}
    http = remote(made, new_key(made, policy=name, epsilon=0.5, **budget))
    offline = OutsiderView(offline_twin(made, stated), 2, None)
    expected = scores(offline, candidates, list(SUITE))
    for attack, values in scores(view_of(http), candidates, list(SUITE)).items():
        np.testing.assert_array_equal(values, expected[attack])


def test_the_same_budget_ends_at_the_same_record(run: RunDirectory, made: Service) -> None:
    candidates = run.read_candidates(0).records
    n = len(candidates) // 2
    http = remote(made, new_key(made, queries=n))
    assert http.queries == n
    (values,) = scores(view_of(http, http.queries), candidates, ["loss"]).values()
    assert np.isfinite(values[:n]).all() and np.isnan(values[n:]).all()
    assert http.queries == 0
    with pytest.raises(RuntimeError, match="1 queries, but 0 are left"):
        http.ask(candidates.features[:1])


def test_it_asks_in_batches_that_the_key_may_and_waits_when_told(
    run: RunDirectory, made: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = run.read_candidates(0).records
    features = np.concatenate([candidates.features] * 2)[:30]
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(client.time, "sleep", sleep)
    http = remote(made, new_key(made, per_minute=8))
    told = http.ask(features)
    assert told.shape == (30, 2) and waits == [61, 61, 61]
    np.testing.assert_allclose(told, made.release.probabilities(features), rtol=1e-6)


def test_over_a_socket(run: RunDirectory) -> None:
    made = opened(run)
    key = new_key(made, policy="rounded")
    candidates = run.read_candidates(0).records
    with listening(made) as url, RemoteModel(url, key) as http:
        told = http.ask(candidates.features)
    np.testing.assert_array_equal(told, np.round(made.release.probabilities(candidates.features), 2))


def test_a_wrong_key_no_service_and_a_spent_epsilon_are_named(made: Service) -> None:
    with pytest.raises(InputError, match="the key is not valid there"):
        remote(made, "fedsim_wrong")
    with pytest.raises(InputError, match="does not answer"):
        RemoteModel("http://127.0.0.1:1", "x")
    other = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, json={"a": 1})))
    with pytest.raises(InputError, match="no model served by fedsim"):
        RemoteModel("http://x", "x", other)
    http = remote(made, new_key(made, policy="laplace", epsilon=1.0, epsilon_budget=1.0))
    features = np.zeros((2, *http.schema.shape), dtype=np.float32)
    features[1, 0] = 1
    assert http.queries == 1  # what ε pays for
    http.queries = None
    with pytest.raises(FedsimError, match=r"refused \(429\): beyond the key's budget: epsilon"):
        http.ask(features)
