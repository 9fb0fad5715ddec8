"""Reading a request's body: how large, how slow, and what JSON it may be."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request

from fedsim.core.data.released import Cell
from fedsim.serving.refusal import CLOSE, Refused

LARGEST_HEADERS = 16_384

DRAINED, DRAINED_WITHIN = 16_000_000, 1.0
"""Bytes and seconds of an unwanted body that are read."""


def check_size_of_headers(request: Request) -> None:
    """Refuse large headers; what came in one piece has passed the server's own limit.

    Raises:
        Refused: 431.
    """
    if sum(len(name) + len(value) for name, value in request.headers.raw) > LARGEST_HEADERS:
        raise Refused(431, "large-headers", f"headers have at most {LARGEST_HEADERS} bytes", unread=True)


async def read(request: Request, largest: int, seconds: float) -> bytes:
    """Return the body of a JSON request.

    Raises:
        Refused: 415, it is not plain JSON; 413, it is larger than ``largest`` bytes; 408, it took longer
            than ``seconds``.
    """
    _check_headers(request, largest)
    content = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                content += chunk
                if len(content) > largest:
                    raise _too_large(largest)
    except TimeoutError:
        raise Refused(408, "too-slow", f"the body took longer than {seconds:g} s", CLOSE) from None
    except ClientDisconnect:
        raise Refused(400, "incomplete", "the body ended early", CLOSE) from None
    return bytes(content)


async def drain(request: Request) -> None:
    """Read what is left of an unwanted body, within limits.

    A connection that is closed before all was read is reset, and its client may never see the answer.
    """
    left = DRAINED
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAINED_WITHIN):
            while left > 0:
                message = await request.receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                left -= len(message["body"])


def _check_headers(request: Request, largest: int) -> None:
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise Refused(415, "not-json", "send Content-Type: application/json, in UTF-8", unread=True)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "encoded", "send the body without a Content-Encoding", unread=True)
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise Refused(400, "bad-length", "Content-Length is not a number", unread=True)
    if len(length) > 18 or int(length) > largest:
        raise _too_large(largest)


def _too_large(largest: int) -> Refused:
    return Refused(413, "too-large", f"a body has at most {largest} bytes; send fewer records", unread=True)


def records(content: bytes, most: int) -> list[dict[str, Cell]]:
    """Return the records of a body ``{"records": [{column: value, …}, …]}``; their cells are unchecked.

    Raises:
        Refused: 400, it is no JSON in UTF-8, has a key twice, NaN or an endless number; 422, it has
            another shape, or more than ``most`` records.
    """
    document = _parse(content)
    if not isinstance(document, dict) or list(document) != ["records"]:
        raise Refused(422, "bad-shape", 'the body is an object with the one key "records"')
    rows = document["records"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Refused(422, "bad-shape", '"records" is a list of objects, column to value')
    if not 1 <= len(rows) <= most:
        raise Refused(422, "bad-batch", f"a request has 1 to {most} records, not {len(rows)}")
    return rows


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except Refused:
        raise
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Refused(400, "bad-json", "the body is not valid JSON in UTF-8") from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refused(400, "bad-json", "an object of the body has a key twice")
    return found


def _no_constant(name: str) -> Any:
    raise Refused(400, "bad-json", "JSON has no NaN or Infinity; a missing value is null")
