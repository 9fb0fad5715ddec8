"""A sample of the fuzzing by the service's own OpenAPI; `experiments/results/serving.md` has the long one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.serving import bearer, new_key

from fedsim.serving.app import Service, create

REQUESTS = {"POST /predict": 60, "GET /model": 5, "GET /healthz": 5, "GET /metrics": 5}
"""Operation → how many requests are made at most; of all but the document itself."""


def asked(made: Service) -> Counter[str]:
    """Ask every operation what its description allows and what it does not; return how often each was asked.

    Checked: no 5xx, no status, content type or body that is not described, wrong requests and wrong keys
    refused. Not checked: that whatever fits the schema is accepted; it cannot say which text is a number.

    Raises:
        FailureGroup: an answer is not as described.
    """
    count: Counter[str] = Counter()
    key = bearer(new_key(made, role="operator"))
    for result in schemathesis.openapi.from_asgi("/openapi.json", create(made)).get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=REQUESTS[operation.label],
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            count[case.operation.label] += 1
            case.call_and_validate(headers=key, excluded_checks=[positive_data_acceptance])

        ask()
    return count


def test_every_answer_is_as_the_service_describes_it(made: Service) -> None:
    count = asked(made)
    assert set(count) == set(REQUESTS)
    assert count["POST /predict"] >= 30


def test_an_answer_that_is_not_as_described_is_found(made: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "predict", lambda self, key, content: {"probabilities": "none"})
    with pytest.raises(FailureGroup, match="Response violates schema"):
        asked(made)
