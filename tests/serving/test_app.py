"""Answers over HTTP: what they tell, to whom, and what they never hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from support.serving import ROW, Clock, bearer, in_memory, new_key

from fedsim.core.data import dates
from fedsim.core.data.released import ReleasedSchema, encode_rows
from fedsim.core.data.schema import Column, Schema
from fedsim.core.privacy.output import answered
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.serving import openapi, policy
from fedsim.serving.app import Service

ROWS = [ROW, ROW | {"ward": "Z"}, ROW | {"age": None}, ROW | {"pressure": "140"}]
POLICIES: dict[str, dict[str, Any]] = {
    "full": {},
    "rounded": {"digits": 1},
    "top-k": {"top": 1},
    "label": {},
    "temperature": {"temperature": 3.0},
    "noisy": {"noise": 0.2},
    "laplace": {"epsilon": 0.5, "epsilon_budget": 10},
    "gaussian": {"epsilon": 0.5, "epsilon_budget": 10},
}


def told(answer: Any) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["probabilities"], dtype=np.float64)


@pytest.mark.parametrize("name", POLICIES)
def test_served_bits_are_the_offline_policys(made: Service, name: str) -> None:
    settings = dict(POLICIES[name])
    key = new_key(made, policy=name, **settings)
    settings.pop("epsilon_budget", None)
    stated = OutputPolicy(policy=name, **settings)  # type: ignore[arg-type]
    features = encode_rows(made.release.schema, ROWS)
    p = made.release.probabilities(features)
    digests = made._digest(features)
    offline = np.concatenate(
        [answered(row[None], stated, policy.stream(5, stated, d)) for row, d in zip(p, digests, strict=True)]
    )
    answer = in_memory(made).post("/predict", json={"records": ROWS}, headers=bearer(key))
    np.testing.assert_array_equal(told(answer), offline)
    assert set(answer.json()["labels"]) <= {"yes", "no"}


def test_a_record_that_is_asked_again_has_the_same_answer_however_it_is_spelled(made: Service) -> None:
    key, other = (new_key(made, name, policy="noisy", noise=0.01) for name in ("clinic", "other"))
    client = in_memory(made)
    rows = [ROW, ROW | {"pressure": 1000, "ward": "x"}]
    again = [ROW | {"age": " 60.50"}, ROW | {"pressure": 999, "ward": None}]
    first = told(client.post("/predict", json={"records": rows}, headers=bearer(key)))
    second = told(client.post("/predict", json={"records": again}, headers=bearer(key)))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(
        first, told(client.post("/predict", json={"records": rows}, headers=bearer(other)))
    )
    assert len(np.unique(first)) == 4


def test_two_policies_do_not_share_their_noise() -> None:
    p = np.array([[0.4, 0.6]])
    one, two = (OutputPolicy(policy="laplace", epsilon=e) for e in (1.0, 2.0))
    draws = [policy.stream(1, stated, b"x" * 16).laplace(0, 1, p.shape) for stated in (one, two)]
    assert not np.isclose(*draws).any()
    assert not np.isclose(draws[0], policy.stream(1, one, b"y" * 16).laplace(0, 1, p.shape)).any()
    assert not np.isclose(draws[0], policy.stream(2, one, b"x" * 16).laplace(0, 1, p.shape)).any()


def test_without_a_seed_the_noise_is_the_runs_secret(run: RunDirectory) -> None:
    from support.serving import opened

    assert opened(run, seed=None).seed == opened(run, seed=None).seed > 2**200


def test_the_model_card(made: Service) -> None:
    key = new_key(made, policy="rounded", queries=10)
    client = in_memory(made)
    client.post("/predict", json={"records": ROWS}, headers=bearer(key))
    card = client.get("/model", headers=bearer(key)).json()
    assert card["name"] == "tiny" and card["data"] == ["patients.csv"] and card["rounds"] == 3
    assert 0 <= card["accuracy"] <= 1
    parties = {party["name"]: party for party in card["parties"]}
    assert parties["hospital-1"]["epsilon"] is None
    assert 0 < parties["hospital-2"]["epsilon"] <= 8 and parties["hospital-2"]["delta"] == 1e-5
    assert parties["hospital-2"]["party_epsilon"] is None, "central DP is off"
    assert card["policy"]["policy"] == "rounded"
    assert card["limits"]["queries"] == 10 and card["spent"]["queries"] == 4
    assert [column["name"] for column in card["schema"]["columns"]] == ["age", "pressure", "ward"]


def test_every_401_is_the_same(made: Service, clock: Clock) -> None:
    from fedsim.serving import keys

    client = in_memory(made)
    good, gone, late = (
        new_key(made, "good"),
        new_key(made, "gone"),
        new_key(made, "late", expires=clock.now + 5),
    )
    keys.revoke(made.database, "gone", clock.now)
    assert client.get("/model", headers=bearer(late)).status_code == 200
    clock.now += 5
    headers: list[Any] = [
        {},
        bearer("fedsim_wrong"),
        bearer(gone),
        bearer(late),
        bearer(good[:-1]),
        bearer(""),
        {"Authorization": good},
        {"Authorization": f"Basic {good}"},
        {"X-API-Key": good},
        [("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {good}")],
        {"Authorization": b"Bearer \xff\xfe"},
    ]
    answers = [client.post("/predict", json={"records": ROWS}, headers=each) for each in headers]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert len({tuple(sorted(answer.headers.items())) for answer in answers}) == 1
    assert client.get("/model", headers=bearer(good)).status_code == 200


def test_only_an_operator_sees_the_counters(made: Service) -> None:
    client = in_memory(made)
    key, operator = new_key(made), new_key(made, "op", role="operator")
    client.post("/predict", json={"records": ROWS}, headers=bearer(key))
    assert client.get("/metrics", headers=bearer(key)).status_code == 403
    assert client.get("/metrics").status_code == 401
    text = client.get("/metrics", headers=bearer(operator)).text
    assert 'fedsim_requests_total{route="/predict",status="200"} 1' in text
    assert "fedsim_records_total 4" in text and 'le="+Inf"' in text


def test_health_and_description_take_no_key(made: Service) -> None:
    client = in_memory(made)
    assert client.get("/healthz").json() == {"status": "ok"}
    document = client.get("/openapi.json").json()
    example = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    answer = client.post("/predict", json=example, headers=bearer(new_key(made)))
    assert answer.status_code == 200
    assert set(document["paths"]) == {"/predict", "/model", "/healthz", "/metrics", "/openapi.json"}


def test_a_failure_says_nothing_of_its_cause(made: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    key, client = new_key(made), in_memory(made)

    def fail(*_: object) -> None:
        raise RuntimeError("/secret/path weights 0.123")

    monkeypatch.setattr(type(made.release), "probabilities", fail)
    answer = client.post("/predict", json={"records": ROWS}, headers=bearer(key))
    assert answer.status_code == 500 and "secret" not in answer.text and "Traceback" not in answer.text
    monkeypatch.undo()
    assert client.post("/predict", json={"records": ROWS}, headers=bearer(key)).status_code == 200


def test_no_answer_is_given_that_could_not_be_logged(made: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    key, client = new_key(made), in_memory(made)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(made.log), "append", full)
    assert client.post("/predict", json={"records": ROWS}, headers=bearer(key)).status_code == 500


def test_the_log_has_every_request_and_no_value(made: Service, run: RunDirectory) -> None:
    key, client = new_key(made, queries=5), in_memory(made)
    for _ in range(2):
        client.post("/predict", json={"records": ROWS}, headers=bearer(key))
    lines = (run.path / "serving" / "audit.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert first["status"] == 200 and first["records"] == 4 and first["policy"] == "full"
    assert second["status"] == 429 and second["limit"] == "queries" and second["digests"] == first["digests"]
    assert "60.5" not in lines[0] and key not in lines[0] and "131" not in lines[0].split("digests")[0]


def test_dates_and_other_values_are_described_with_an_example_that_can_be_sent() -> None:
    days = Column("seen", "number", (18_000.0, 19_000.0))
    codes = Column("icd", "category", categories=("C1", "other"), other=True)
    schema = ReleasedSchema(Schema((days, codes), "ill", ("no", "yes")), (), {"seen": dates.STYLES[3]})
    document = openapi.describe(schema, 4)
    said = document["components"]["schemas"]["Record"]["properties"]
    assert "a date, DD.MM.YYYY or YYYY-MM-DD" in said["seen"]["description"]
    assert "any other value counts as 'other'" in said["icd"]["description"]
    features = encode_rows(schema, [openapi.example(schema)])
    np.testing.assert_allclose(features, [[0, 1, 0]], atol=1e-3)
