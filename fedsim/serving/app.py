"""The service as an ASGI application: who asks, what it costs, what is told, what is noted.

The order within a request keeps every promise under a kill at any moment: the key is checked before a byte
of the body is read, the request is paid for before the model is asked, its line is in the log before its
answer leaves.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fedsim.core.data import released
from fedsim.core.errors import InputError
from fedsim.core.privacy.output import completed
from fedsim.serving import body, keys, ledger, openapi, policy
from fedsim.serving.keys import Key
from fedsim.serving.log import AuditLog
from fedsim.serving.metrics import CONTENT_TYPE, Metrics
from fedsim.serving.neighbours import Neighbours
from fedsim.serving.refusal import Refused
from fedsim.serving.release import BATCH, Release
from fedsim.serving.state import Database, Secret

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Settings:
    """Limits of every request, whoever asks.

    largest: bytes of a body; most: records in it; slowest: seconds until it must be there
    """

    largest: int = 1_000_000
    most: int = BATCH
    slowest: float = 10.0


class Service:
    """A release, who may ask it, and what is noted of it.

    seed: of the answers' noise; None draws on the run's secret. Who knows it can take the noise off again.
    """

    def __init__(
        self,
        release: Release,
        database: Database,
        secret: Secret,
        log: AuditLog,
        settings: Settings | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.release, self.database, self.secret, self.log = release, database, secret, log
        self.settings, self.clock = settings or Settings(), clock
        self.seed = int.from_bytes(secret.key("answers' noise")) if seed is None else seed
        self.metrics, self.neighbours = Metrics(), Neighbours(release.schema)

    def key_of(self, request: Request) -> Key:
        """Return whose request it is.

        Raises:
            Refused: 401, the same for no key, a wrong one, a revoked one and an expired one.
        """
        presented = request.headers.getlist("authorization")
        scheme, _, text = (presented[0] if len(presented) == 1 else "").partition(" ")
        text = text.strip() if scheme.lower() == "bearer" else ""
        key = keys.authenticate(self.database, self.secret, text.encode("latin-1"), self.clock())
        if key is None:
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refused(
                401, "unauthorised", "send a valid key: Authorization: Bearer …", headers, unread=True
            )
        return key

    def predict(self, key: Key, content: bytes) -> dict[str, Any]:
        """Answer one request.

        Raises:
            Refused: it is malformed, or beyond the key's budget.
        """
        features = self._features(key, content)
        digests = self._digest(features)
        near = self.neighbours.count(key.id, features)
        charge = self._pay(key, digests, near)
        p, backing = self.release.probabilities(features, key.policy), self.release.backing(key.policy)
        told = policy.answer(p, key.policy, digests, self.seed, backing)
        self._note(key, digests, near, 200, epsilon=charge.epsilon, delta=charge.delta)
        self.metrics.answer(charge.records, charge.epsilon)
        return _answer(told, self.release.classes)

    def card(self, key: Key) -> dict[str, Any]:
        """Return the model card, the columns, and what the key may ask."""
        return {
            **self.release.card,
            "schema": released.to_json(self.release.schema),
            "policy": key.policy.model_dump(exclude={"queries"}),
            "limits": {
                "per_minute": key.limits.per_minute,
                "queries": key.limits.queries,
                "epsilon": key.limits.epsilon,
                "batch": self._most(key),
                "bytes": self.settings.largest,
            },
            "spent": {"queries": key.asked, "epsilon": ledger.epsilon_spent(key)},
        }

    def _features(self, key: Key, content: bytes) -> np.ndarray:
        rows = body.records(content, self._most(key))
        try:
            return self.release.encode(rows)
        except InputError as error:
            raise Refused(422, "bad-record", str(error)) from None

    def _most(self, key: Key) -> int:
        return min(self.settings.most, key.limits.per_minute or self.settings.most)

    def _digest(self, features: np.ndarray) -> list[bytes]:
        return policy.record_digests(self.secret, features)

    def _pay(self, key: Key, digests: Sequence[bytes], near: int) -> ledger.Charge:
        try:
            return ledger.spend(self.database, key, digests, self.clock())
        except ledger.OverBudget as error:
            self._note(key, digests, near, 429, limit=error.limit)
            said = f"beyond the key's budget: {error.limit}"
            headers = {"Retry-After": str(error.retry_after)}
            raise Refused(429, error.limit, said, headers) from None

    def _note(self, key: Key, digests: Sequence[bytes], near: int, status: int, **more: Any) -> None:
        self.log.append(
            {
                "time": datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="milliseconds"),
                "key": key.id,
                "name": key.name,
                "status": status,
                "records": len(digests),
                "near": near,
                "policy": key.policy.policy,
                **more,
                "digests": [digest.hex() for digest in digests],
            }
        )


def create(service: Service) -> Starlette:
    """Return the ASGI application."""
    document = openapi.describe(service.release.schema, service.settings.most)

    async def predict(request: Request) -> Response:
        key = service.key_of(request)  # microseconds, and it waits for nobody
        content = await body.read(request, service.settings.largest, service.settings.slowest)
        return JSONResponse(await run_in_threadpool(service.predict, key, content))

    async def card(request: Request) -> Response:
        key = service.key_of(request)  # microseconds, and it waits for nobody
        return JSONResponse(service.card(key))

    async def metrics(request: Request) -> Response:
        key = service.key_of(request)  # microseconds, and it waits for nobody
        if key.role != "operator":
            raise Refused(403, "forbidden", "this takes a key of the role 'operator'")
        return PlainTextResponse(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def alive(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def description(request: Request) -> Response:
        return JSONResponse(document)

    routes: list[tuple[str, Handler, str]] = [
        ("/predict", predict, "POST"),
        ("/model", card, "GET"),
        ("/metrics", metrics, "GET"),
        ("/healthz", alive, "GET"),
        ("/openapi.json", description, "GET"),
    ]
    return Starlette(
        routes=[Route(path, _measured(service, path, handle), methods=[how]) for path, handle, how in routes],
        exception_handlers={HTTPException: _no_such_route, Exception: _bug},
    )


def _measured(service: Service, path: str, handle: Handler) -> Handler:
    """Return the handler, counted and timed, whose refusals are answers."""

    async def measured(request: Request) -> Response:
        start, status = time.perf_counter(), 500
        try:
            body.check_size_of_headers(request)
            response = await handle(request)
            status = response.status_code
        except Refused as refused:
            if refused.unread:
                await body.drain(request)
            response, status = refused.response(), refused.status
        finally:
            service.metrics.request(path, status, time.perf_counter() - start)
        return response

    return measured


async def _no_such_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    headers = dict(getattr(error, "headers", None) or {}) | {"Connection": "close"}
    words = {404: "there is no such page; see /openapi.json", 405: "this page takes another method"}
    return JSONResponse({"error": "no-such-page", "detail": words.get(status, "refused")}, status, headers)


async def _bug(request: Request, error: Exception) -> Response:
    """What failed stays in the service's own log."""
    return JSONResponse({"error": "internal", "detail": "the service failed; its owner sees why"}, 500)


def _answer(told: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Return the answer as JSON values; every float64 survives, NaN is null."""
    whole = completed(told)
    unknown = np.isnan(whole).any(axis=1)
    labels = [None if gone else classes[top] for gone, top in zip(unknown, whole.argmax(axis=1), strict=True)]
    p = [[None if value != value else value for value in row] for row in told.tolist()]
    return {"classes": list(classes), "labels": labels, "probabilities": p}
