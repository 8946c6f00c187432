"""What goes wrong on the way of a request, as a status and a sentence in OpenAI's form."""

from __future__ import annotations

from typing import Any

KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    408: "timeout_error", 409: "conflict_error", 413: "invalid_request_error", 415: "invalid_request_error",
    429: "rate_limit_error", 499: "client_closed_request", 503: "unavailable_error", 504: "timeout_error",
}  # fmt: skip


LEFT = 499  # nobody hears it; it is what logs and metrics say of a client that left


class Problem(Exception):
    """Ends a request: its status, a sentence for the person who sent it, and a word for programs."""

    def __init__(
        self,
        status: int,
        sentence: str,
        code: str | None = None,
        *,
        param: str | None = None,
        after: float | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.code, self.param = status, sentence, code, param
        self.after = after  # seconds until it is worth trying again
        self.closes = closes  # whether the connection ends with it

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        found = {} if self.after is None else {"retry-after": str(max(1, round(self.after)))}
        if self.closes:
            found["connection"] = "close"
        return {**found, "www-authenticate": "Bearer"} if self.status == 401 else found

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return body(self.status, self.sentence, self.code, self.param)


def body(status: int, sentence: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code}}
