"""Flower's SuperLink behind a guard: what anyone may send it is bounded, and who may give it orders.

Started in place of the command ``flower-superlink``, whose command line it takes. Flower's own (1.42) serves
nodes and orders at one port: whoever reaches it may register a key of his own or start an app, which runs on
the server's machine; and it reads a request whole before it looks at the sender's key, however long it is.

Here orders (Flower's Control API) and what its own processes ask (its Runtime API) are taken from this
machine alone, and a request says in advance how long it is, `LARGEST` at most.
"""

from __future__ import annotations

import ipaddress

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fedsim.engines import flower_internals

LARGEST = 16 * 1024**2
"""Bytes of one request: Flower sends arrays in pieces of 5 MiB, and an app of 10 MiB at most."""

NODES = ("/v1/fleet/", "/health")
"""What may be asked from elsewhere; each request below the first is signed by a node's key."""


class Guard:
    """An ASGI application that answers what is refused by itself, and hands on the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: 403 for orders from elsewhere, 411 without a length, 413 if it is too long."""
        refused = refusal(scope) if scope["type"] == "http" else None
        answer: ASGIApp = self.app if refused is None else PlainTextResponse(*refused)
        await answer(scope, receive, send)


def refusal(scope: Scope) -> tuple[str, int] | None:
    """Return why a request is not let in, and the HTTP status that says so; None where it is."""
    client = scope.get("client") or ("",)
    if not scope["path"].startswith(NODES) and not _is_here(client[0]):
        return "orders are taken from the server's own machine alone", 403
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"0" if scope["method"] in ("GET", "HEAD") else b"")
    if b"transfer-encoding" in headers or not length.isdigit():
        return "a request has to say how long it is", 411
    if int(length) > LARGEST:
        return f"a request may have {LARGEST} bytes", 413
    return None


def _is_here(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1, where a server listens on both
    return (mapped or address).is_loopback


if __name__ == "__main__":
    flower_internals.run_superlink(Guard)
