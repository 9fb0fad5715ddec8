"""Running the service: its socket, its patience with slow clients, its end."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import h11
import torch
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.serving import release, state
from fedsim.serving.app import Service, Settings, create
from fedsim.serving.body import LARGEST_HEADERS
from fedsim.serving.log import SYNC, AuditLog

HEADERS_WITHIN = 10.0
"""Seconds until a request's headers must be there."""

CONNECTIONS = 256

_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: 64\r\n\r\n"
    b'{"error":"too-slow","detail":"the headers took longer than ten"}'
)


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that does not wait for ever for the headers of a request, as uvicorn would."""

    _headers_timer: Any = None

    def connection_made(self, transport: Any) -> None:
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once the headers are there."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._headers_timer is None:
            self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._headers_timer = self.loop.call_later(HEADERS_WITHIN, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_TOO_SLOW)
            self.transport.close()


class _Server(uvicorn.Server):
    """Says when it listens, and ends on a signal without passing it on."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[Callable[[], None]], None]) -> None:
        super().__init__(config)
        self._ready = ready

    def stop(self) -> None:
        """End as on a signal; any thread may call it."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready(self.stop)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread hears signals
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def opened(
    run: RunDirectory, settings: Settings, *, game: int = 0, seed: int | None = None, sync: float = SYNC
) -> Service:
    """Return the service of a run's final model.

    Raises:
        InputError: the run cannot be served, or its service folder cannot be used.
    """
    folder = state.folder(run.path)
    model = release.load(run, game)
    secret = state.secret(folder)
    database = state.Database(folder / "keys.sqlite", sync)
    return Service(model, database, secret, AuditLog(folder, secret, sync), settings, seed)


def serve(service: Service, host: str, port: int, ready: Callable[[str, Callable[[], None]], None]) -> None:
    """Answer until SIGINT or SIGTERM; requests that are being answered are finished.

    port: 0 takes a free one
    ready: called once the service listens, with its address and a function that ends it

    Raises:
        InputError: the address cannot be used.
    """
    torch.set_num_threads(1)  # models this small are faster so, and requests run side by side
    listening = _bind(host, port)
    address = _address(host, listening.getsockname()[1])
    config = uvicorn.Config(
        create(service),
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=LARGEST_HEADERS,
    )
    try:
        _Server(config, lambda stop: ready(address, stop)).run(sockets=[listening])
    finally:
        listening.close()
        service.log.close()
        service.database.close()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; --port 0 takes a free one"
        ) from error
    return listening


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
