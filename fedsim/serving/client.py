"""Asking a service over HTTP: the outsider's `ask`, within its key's budget.

The service takes raw records, so that features are turned into what a table can say (`decode_rows`). Features
that no record has, such as half a category of a noisy copy, become the nearest that one has.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from fedsim.core.data import released
from fedsim.core.data.released import ReleasedSchema, decode_rows
from fedsim.core.errors import FedsimError, InputError
from fedsim.core.scenario.protection import OutputPolicy

PATIENCE = 120.0
"""Longest wait, in seconds, that a service may ask for before the next request."""


class RemoteModel:
    """A released model behind a URL.

    schema: the table's columns, as the service tells them
    policy: of the key's answers
    queries: records that may still be asked about, also by the key's ε; None where there is no limit
    per_minute: records in any 60 seconds, None likewise
    """

    def __init__(self, url: str, key: str, client: httpx.Client | None = None) -> None:
        """Read the model's card.

        Raises:
            InputError: nobody answers at the URL, or the key is not valid there.
        """
        self.url = url.rstrip("/")
        self._client = client or httpx.Client(timeout=30)
        self._headers = {"Authorization": f"Bearer {key}"}
        card = self._json(self._request("GET", "/model"))
        try:
            self.schema: ReleasedSchema = released.from_json(card["schema"])
            self.card: dict[str, Any] = card
            limits, spent = card["limits"], card["spent"]
            self.policy = OutputPolicy.model_validate(card["policy"])
            self.queries = _left(self.policy, limits, spent)
            self._batch = int(limits["batch"])
            self.per_minute = None if limits["per_minute"] is None else int(limits["per_minute"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.url}: what answers there is no model served by fedsim") from error

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.schema.schema.classes)

    def ask(self, features: np.ndarray) -> np.ndarray:
        """Return what the service tells of features (n, …) float32: (n, classes) float64, NaN: not told.

        Asks as many records at a time as the key may, and waits where it asks too fast.

        Raises:
            RuntimeError: more than is left of the budget; nothing was asked.
            FedsimError: the service refused, or does not answer any more.
        """
        if self.queries is not None and len(features) > self.queries:
            raise RuntimeError(f"{len(features)} queries, but {self.queries} are left")
        rows = decode_rows(self.schema, features)
        parts = [self._predict(rows[i : i + self._batch]) for i in range(0, len(rows), self._batch)]
        return np.concatenate(parts) if parts else np.empty((0, self.classes))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _predict(self, rows: list[dict[str, released.Cell]]) -> np.ndarray:
        answer = self._json(self._request("POST", "/predict", {"records": rows}))
        if self.queries is not None:
            self.queries -= len(rows)
        return np.array(answer["probabilities"], dtype=np.float64).reshape(len(rows), self.classes)

    def _request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Send a request, again after a wait where the service says that it came too fast."""
        while True:
            try:
                response = self._client.request(method, self.url + path, json=body, headers=self._headers)
            except httpx.HTTPError as error:
                raise InputError(f"{self.url} does not answer ({type(error).__name__})") from error
            wait = float(response.headers.get("Retry-After", "0"))
            if response.status_code != 429 or wait > PATIENCE:
                return response
            time.sleep(wait)

    def _json(self, response: httpx.Response) -> Any:
        try:
            document = response.json()
        except ValueError as error:
            raise InputError(f"{self.url}: what answers there is no model served by fedsim") from error
        if response.status_code == 401:
            raise InputError(f"{self.url}: the key is not valid there")
        if response.status_code != 200:
            detail = document.get("detail") if isinstance(document, dict) else None
            raise FedsimError(f"{self.url} refused ({response.status_code}): {detail or 'no reason given'}")
        return document


def _left(policy: OutputPolicy, limits: Mapping[str, Any], spent: Mapping[str, Any]) -> int | None:
    """Return how many records a key may still ask about: the fewer of its queries and of what its ε pays."""
    left = [] if limits["queries"] is None else [int(limits["queries"]) - int(spent["queries"])]
    if limits["epsilon"] is not None:
        answers = (float(limits["epsilon"]) - float(spent["epsilon"])) / policy.epsilon
        left.append(math.floor(answers + 1e-9))  # ten answers of ε = 0.1 are 1, whatever binary fractions say
    return max(0, min(left)) if left else None
