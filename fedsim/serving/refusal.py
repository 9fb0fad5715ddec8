"""Why a request is refused: a status, a word for programs, a sentence for people."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

CLOSE = {"Connection": "close"}


class Refused(Exception):
    """The request is answered with a 4xx; the text never repeats what was sent.

    unread: the body was not read to its end, which ends the connection
    """

    def __init__(
        self,
        status: int,
        code: str,
        text: str,
        headers: Mapping[str, str] | None = None,
        unread: bool = False,
    ) -> None:
        super().__init__(text)
        self.status, self.code, self.text, self.unread = status, code, text, unread
        self.headers = {**(headers or {}), **(CLOSE if unread else {})}

    def response(self) -> JSONResponse:
        """Return the answer."""
        return JSONResponse({"error": self.code, "detail": self.text}, self.status, self.headers)
