"""Standard output and error that take whatever text there is, wherever they lead.

What the terminal's encoding lacks is replaced, a reader that has gone away is no error, and names that come
from data cannot move the cursor: what was computed must not be lost to how it is shown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

from fedsim.core.errors import FedsimError

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass
class Verbosity:
    """How much standard error says: ``quiet`` nothing but errors, ``verbose`` a line for every step."""

    quiet: bool = False
    verbose: bool = False


VERBOSITY = Verbosity()
"""Of this call of the command line."""


# C0 and C1 controls but tab and line feed; marks that turn the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str, keep: str = "\n") -> str:
    """Return ``text`` with control characters written out, such as '\\x1b', apart from those of ``keep``."""
    return _CONTROLS.sub(lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], text)


class SafeStream(io.TextIOBase):
    """Standard output or error as they are at each use, so that a test may put others in their place."""

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        super().__init__()
        self._name = name

    @property
    def _stream(self) -> TextIO | None:
        stream: TextIO | None = getattr(sys, self._name)
        return None if stream is None or stream.closed else stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of what it leads to."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether a person is looking."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """The file descriptor of what it leads to."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def writable(self) -> bool:
        """It always is."""
        return True

    def write(self, text: str) -> int:
        """Write what can be encoded, '?' in place of the rest; nothing where nobody reads it any more.

        Raises:
            FedsimError: the text cannot be written for another reason, such as a full disk.
        """
        encodable = text.encode(self.encoding, "replace").decode(self.encoding)
        self._try(lambda stream: stream.write(encodable))
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        self._try(lambda stream: stream.flush())

    def _try(self, do: Callable[[TextIO], object]) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            do(stream)
        except BrokenPipeError:
            _lead_nowhere(stream)
        except OSError as error:
            _lead_nowhere(stream)
            where = {"stdout": "standard output", "stderr": "standard error"}[self._name]
            raise FedsimError(f"cannot write to {where}: {error.strerror}") from error


def _lead_nowhere(stream: TextIO) -> None:
    """Discard what is written to ``stream`` from now on, and what waits in its buffer."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@functools.cache
def console(name: Literal["stdout", "stderr"]) -> Console:
    """Return the console of a standard stream; in a pipe, 100 columns hold every table."""
    from rich.console import Console

    class PrintableConsole(Console):
        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(printable(text), **options)

    stream = SafeStream(name)
    width = None if stream.isatty() or "COLUMNS" in os.environ else 100
    return PrintableConsole(file=cast(TextIO, stream), width=width, stderr=name == "stderr", emoji=False)


@contextlib.contextmanager
def on_standard_streams() -> Iterator[None]:
    """Let standard streams be closed before the body, or become so in it, without harm to any other file."""
    _open_closed_descriptors()
    for name in ("stdout", "stderr"):
        with contextlib.suppress(AttributeError):  # whatever stands in a stream's place in a test
            getattr(sys, name).reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream in (SafeStream("stdout"), SafeStream("stderr")):
            with contextlib.suppress(FedsimError):
                stream.flush()


def _open_closed_descriptors() -> None:
    """Give 0, 1 and 2 to nowhere where they are free, lest a model's file be opened as standard output."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free: this one
