"""Whatever is sent: a clear 4xx, nothing leaked, the service alive."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.serving import ROW, bearer, listening, new_key, opened

from fedsim.core.run_directory import RunDirectory
from fedsim.serving import service as running
from fedsim.serving.app import Service

CLIENT = httpx.Client(timeout=20)
SECRETS = ("Traceback", "/tmp", "safetensors", "sqlite", ".py", "weights", "fedsim_")


@pytest.fixture(scope="module")
def served(
    finished: RunDirectory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, Service]]:
    """The address of a service on a socket, and a key."""
    import shutil

    copy = RunDirectory(Path(shutil.copytree(finished.path, tmp_path_factory.mktemp("hostile") / "run")))
    made = opened(copy, largest=20_000, most=50, slowest=0.6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "HEADERS_WITHIN", 0.6)
        key = new_key(made)
        with listening(made) as url:
            yield url, key, made


def post(served: tuple[str, str, Service], content: bytes | None = None, **more: Any) -> httpx.Response:
    url, key, _ = served
    headers = {"Content-Type": "application/json", **bearer(key), **more.pop("headers", {})}
    return CLIENT.post(f"{url}/predict", content=content, headers=headers, **more)


def clear(answer: httpx.Response, *statuses: int) -> None:
    """It is the refusal that was expected, in JSON, and says nothing of the inside."""
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    assert set(answer.json()) == {"error", "detail"}
    assert not [word for word in SECRETS if word in answer.text.replace("/openapi.json", "")]


def alive(served: tuple[str, str, Service]) -> None:
    answer = post(served, json.dumps({"records": [ROW]}).encode())
    assert answer.status_code == 200, answer.text


BODIES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "no JSON": (b"records=1", 400),
    "half": (b'{"records": [', 400),
    "not UTF-8": (b'{"records": [{"age": "\xff\xfe"}]}', 400),
    "UTF-16": ('{"records": []}'.encode("utf-16"), 400),
    "deep": (b'{"records":' + b"[" * 9000 + b"]" * 9000 + b"}", 400),
    "NaN": (b'{"records": [{"age": NaN, "pressure": 1, "ward": "A"}]}', 400),
    "Infinity": (b'{"records": [{"age": -Infinity, "pressure": 1, "ward": "A"}]}', 400),
    "1e999": (b'{"records": [{"age": 1e999, "pressure": 1, "ward": "A"}]}', 422),
    "many digits": (b'{"records": [{"age": ' + b"9" * 5000 + b', "pressure": 1, "ward": "A"}]}', 400),
    "400 digits": (b'{"records": [{"age": ' + b"9" * 400 + b', "pressure": 1, "ward": "A"}]}', 422),
    "key twice": (b'{"records": [{"age": 1, "age": 2, "pressure": 1, "ward": "A"}]}', 400),
    "a list": (b"[]", 422),
    "null": (b"null", 422),
    "other keys": (b'{"records": [], "policy": "full"}', 422),
    "no records": (b'{"records": []}', 422),
    "records of numbers": (b'{"records": [1]}', 422),
    "too many": (json.dumps({"records": [ROW] * 51}).encode(), 422),
    "unknown column": (json.dumps({"records": [ROW | {"__class__": 1}]}).encode(), 422),
    "no column": (b'{"records": [{"age": 1}]}', 422),
    "nested": (json.dumps({"records": [ROW | {"ward": {"$ne": 1}}]}).encode(), 422),
    "boolean": (json.dumps({"records": [ROW | {"age": True}]}).encode(), 422),
    "too large": (json.dumps({"records": [ROW | {"ward": "x" * 30_000}]}).encode(), 413),
    "huge": (b"x" * 5_000_000, 413),
}


@pytest.mark.parametrize("name", BODIES)
def test_malformed_bodies(served: tuple[str, str, Service], name: str) -> None:
    content, status = BODIES[name]
    clear(post(served, content), status)
    alive(served)


INJECTIONS = (
    "'; DROP TABLE keys; --",
    "../../../etc/passwd",
    "{{7*7}}${7*7}",
    "<script>alert(1)</script>",
    "\u0000",
    "\ud800",
    "=cmd|' /C calc'!A0",
    "%s%n",
    "a\r\nSet-Cookie: x=1",
    "\u202eABC",
)


@pytest.mark.parametrize("text", INJECTIONS)
def test_injection_in_every_string(served: tuple[str, str, Service], text: str) -> None:
    """In a category it is an unseen category, in a number or a name it is refused and never repeated."""
    known = post(served, json.dumps({"records": [ROW | {"ward": "unseen"}]}).encode())
    unseen = post(served, json.dumps({"records": [ROW | {"ward": text}]}).encode())
    assert unseen.status_code == 200 and unseen.json() == known.json()
    for record in (ROW | {"age": text}, ROW | {text: 1}, {text: None}):
        answer = post(served, json.dumps({"records": [record]}).encode())
        clear(answer, 422)
        assert text not in answer.json()["detail"]
    clear(post(served, json.dumps({text: [ROW]}).encode()), 422)
    alive(served)


KINDS = ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", "a/b;;"]


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_content_types(served: tuple[str, str, Service], kind: str) -> None:
    clear(post(served, b'{"records": []}', headers={"Content-Type": kind}), 415)
    clear(post(served, b"\x1f\x8b", headers={"Content-Encoding": "gzip"}), 415)


PATHS = [
    "/",
    "/../secret",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/serving/secret",
    "/predict/../../manifest.json",
    "/models/game-000/round-003.safetensors",
    "//etc/passwd",
    "/docs",
    "/model%00",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_to_a_file(served: tuple[str, str, Service], path: str) -> None:
    answer = raw(served[0], f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404") and b"no-such-page" in answer
    assert not [word for word in SECRETS if word.encode() in answer.replace(b"/openapi.json", b"")]


def test_other_methods(served: tuple[str, str, Service]) -> None:
    wrong = (("GET", "/predict"), ("DELETE", "/model"), ("TRACE", "/healthz"), ("POST", "/metrics"))
    for method, path in wrong:
        clear(CLIENT.request(method, served[0] + path, headers=bearer(served[1])), 405)


def raw(url: str, *pieces: bytes, slowly: float = 0.1) -> bytes:
    """Send pieces, ``slowly`` seconds apart, and return what comes until the end."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(slowly if len(pieces) > 1 else 0)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        try:
            while part := connection.recv(65_536):
                answer += part
        except ConnectionResetError:
            pass
        return answer


HEADERS: dict[str, bytes] = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "negative length": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "large headers": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "many headers": b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
    "folded": b"GET /healthz HTTP/1.1\r\nHost: x\r\nBad Name: a\r\n\r\n",
    "null": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    "bare line feed in a value": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX\r: a\r\n\r\n",
}


@pytest.mark.parametrize("name", HEADERS)
def test_header_tricks(served: tuple[str, str, Service], name: str) -> None:
    answer = raw(served[0], HEADERS[name])
    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert b"Traceback" not in answer
    alive(served)


def test_headers_of_proxies_and_the_like_change_nothing(served: tuple[str, str, Service]) -> None:
    tricks = {
        "X-Forwarded-For": "127.0.0.1",
        "X-Original-URL": "/metrics",
        "X-HTTP-Method-Override": "DELETE",
        "X-Role": "operator",
        "Host": "evil.example",
    }
    assert CLIENT.get(f"{served[0]}/metrics", headers=bearer(served[1]) | tricks).status_code == 403
    assert CLIENT.get(f"{served[0]}/model", headers=tricks).status_code == 401


def test_slow_headers_are_not_waited_for(served: tuple[str, str, Service]) -> None:
    start = time.monotonic()
    answer = raw(served[0], b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ", *[b"a"] * 30, slowly=0.05)
    assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - start < 5
    silent = raw(served[0], b"")
    assert silent.startswith(b"HTTP/1.1 408")
    head, _, body = silent.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head and set(json.loads(body)) == {"error", "detail"}
    alive(served)


def test_slow_headers_of_a_second_request_are_not_waited_for(served: tuple[str, str, Service]) -> None:
    answer = raw(served[0], b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHos")
    assert answer.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in answer


def test_slow_bodies_are_not_waited_for(served: tuple[str, str, Service]) -> None:
    url, key, _ = served
    head = (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    start = time.monotonic()
    assert raw(url, head.encode() + b'{"rec').startswith(b"HTTP/1.1 408")
    assert time.monotonic() - start < 5
    chunked = head.replace("Content-Length: 1000", "Transfer-Encoding: chunked").encode()
    many = b"".join(b"1000\r\n" + b"x" * 0x1000 + b"\r\n" for _ in range(10)) + b"0\r\n\r\n"
    assert raw(url, chunked + many).startswith(b"HTTP/1.1 413")
    alive(served)


def test_many_idle_clients_leave_room(served: tuple[str, str, Service]) -> None:
    host, port = served[0].removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(100)]
    alive(served)
    for connection in idle:
        connection.close()
    alive(served)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
records_like = st.fixed_dictionaries({"age": json_values, "pressure": json_values, "ward": json_values})


@settings(max_examples=150)
@given(
    body=st.one_of(
        st.binary(max_size=200),
        json_values.map(lambda value: json.dumps(value).encode()),
        st.lists(records_like | json_values, max_size=3).map(
            lambda rows: json.dumps({"records": rows}).encode()
        ),
    )
)
def test_any_body_is_answered_or_refused(served: tuple[str, str, Service], body: bytes) -> None:
    answer = post(served, body)
    if answer.status_code == 200:
        assert len(answer.json()["labels"]) == len(json.loads(body)["records"])
    else:
        clear(answer, 400, 422)


def test_too_many_questions_say_when_to_come_back(served: tuple[str, str, Service]) -> None:
    url, _, made = served
    key = new_key(made, "hurried", per_minute=3)
    ask = {"records": [ROW, ROW]}
    assert CLIENT.post(f"{url}/predict", json=ask, headers=bearer(key)).status_code == 200
    late = CLIENT.post(f"{url}/predict", json=ask, headers=bearer(key))
    clear(late, 429)
    assert 1 <= int(late.headers["Retry-After"]) <= 61 and late.json()["error"] == "per-minute"
    clear(CLIENT.post(f"{url}/predict", json={"records": [ROW] * 4}, headers=bearer(key)), 422)
