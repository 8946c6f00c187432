"""Asks a model behind any OpenAI-compatible endpoint (`POST URL/chat/completions`), and gets an answer or says why there is none.

Too many requests (429), trouble on the other side (5xx), a timeout, a cut connection or an answer that is no answer is tried
again, each time after a longer wait, or after the one that the server names. A refusal that no repetition changes (401, 403,
404) ends the run; one that is about this text alone (400, 413, 422) leaves it without an answer. Nothing is ever put in an
answer's place.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from ..errors import ConfigError, JudgeError
from .answers import Answer

LONGEST = 4_000_000  # bytes of an answer: more is no rating
AGAIN = (408, 409, 425, 429)
ABOUT_THE_TEXT = (400, 413, 422)


class Unanswered(Exception):
    """There is no answer, and why. `reached` says whether anybody was there at all."""

    def __init__(self, reason: str, *, reached: bool = True) -> None:
        super().__init__(reason)
        self.reached = reached


class _Again(Unanswered):
    """Worth another try, after `wait` seconds where the server says so."""

    def __init__(self, reason: str, *, wait: float | None = None, reached: bool = True) -> None:
        super().__init__(reason, reached=reached)
        self.wait = wait


@dataclass
class Tally:
    """What was asked and what it took. Each rating that is wanted is answered, unreadable, or unanswered: they add up."""

    wanted: int = 0
    kept: int = 0  # answers that were known before
    calls: int = 0  # requests sent, repetitions included
    retries: int = 0
    unanswered: int = 0
    unreadable: int = 0
    cut: int = 0  # texts too long to be shown whole
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    lock: Any = field(default_factory=Lock, repr=False, compare=False)

    @property
    def missing(self) -> int:
        """Ratings that there are none of."""
        return self.unanswered + self.unreadable

    def note(self, **counts: float) -> None:
        """Add to the counts, from any thread."""
        with self.lock:
            for name, by in counts.items():
                setattr(self, name, getattr(self, name) + by)

    def missed(self, reason: str) -> None:
        """A rating that wasn't answered."""
        with self.lock:
            self.unanswered += 1
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def told(self) -> str:
        """In words."""
        why = (
            f" ({'; '.join(f'{n} × {r}' for r, n in sorted(self.reasons.items(), key=lambda p: -p[1])[:3])})"
            if self.reasons
            else ""
        )
        cost = f", cost {self.cost:.4f}" if self.cost else ""
        return (
            f"{self.wanted} ratings: {self.kept} known before, {self.calls} calls ({self.retries} repeated),"
            f" {self.unreadable} unreadable, {self.unanswered} unanswered{why}; {self.prompt_tokens} + {self.answer_tokens}"
            f" tokens{cost}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        names = [n for n in self.__dataclass_fields__ if n != "lock"]
        return {n: getattr(self, n) for n in names} | {"missing": self.missing}


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked, and how patiently. `wait` is the first pause in seconds; each is twice the one before, up to a
    minute."""

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    tries: int = 6
    wait: float = 1.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"the endpoint's url is {self.url!r}; expected http://... or https://..., up to /v1.")
        if self.tries < 1 or self.timeout <= 0 or self.wait < 0:
            raise ConfigError(
                f"tries is {self.tries}, timeout {self.timeout}, wait {self.wait}; expected at least 1, more than 0, 0 or more."
            )

    def ask(self, body: dict[str, Any], tally: Tally) -> Answer:
        """The answer to a request's body. Raises `Unanswered` when all tries have failed, `JudgeError` where no try ever could
        work."""
        draw = random.Random(json.dumps(body, sort_keys=True))
        for attempt in range(1, self.tries + 1):
            tally.note(calls=1, retries=int(attempt > 1))
            try:
                return self._once(body)
            except _Again as problem:
                if attempt == self.tries:
                    raise Unanswered(f"{problem} (tried {attempt} times)", reached=problem.reached) from problem
                pause = min(60.0, self.wait * 2 ** (attempt - 1)) * draw.uniform(0.75, 1.25)
                time.sleep(pause if problem.wait is None else min(60.0, problem.wait))
        raise AssertionError

    def _once(self, body: dict[str, Any]) -> Answer:
        head = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(self.key_env):
            head["Authorization"] = f"Bearer {key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(
            address, json.dumps({"model": self.model, **body}).encode(), head, method="POST"
        )
        until = time.monotonic() + self.timeout
        try:
            with _OPEN.open(request, timeout=self.timeout) as response:  # http or https, checked
                raw = _read(response, until)
        except urllib.error.HTTPError as problem:
            raise self._refused(problem) from problem
        except urllib.error.URLError as problem:
            late = isinstance(problem.reason, TimeoutError)
            raise _Again(
                "timed out" if late else f"not reached: {_short(str(problem.reason))}", reached=late
            ) from problem
        except (OSError, http.client.HTTPException) as problem:
            raise _Again("timed out" if isinstance(problem, TimeoutError) else "the connection was cut") from problem
        return _answer(raw)

    def _refused(self, problem: urllib.error.HTTPError) -> Exception:
        with problem:
            try:
                said = _short(problem.read(2000).decode(errors="replace"))
            except (OSError, http.client.HTTPException):
                said = ""
        code = problem.code
        if code in AGAIN or code >= 500:
            return _Again(f"HTTP {code}", wait=_seconds(problem.headers.get("Retry-After")))
        if code in ABOUT_THE_TEXT:
            return Unanswered(f"HTTP {code}: {said}")
        hint = (
            f"Is the key in {self.key_env} right?"
            if code in (401, 403)
            else "Is the url right, up to /v1, and the model's name?"
        )
        return JudgeError(
            f"the judge {self.model!r} at {self.url} answers HTTP {code}: {said or problem.reason}. {hint}"
        )


class _Stays(urllib.request.HTTPRedirectHandler):
    """A redirection isn't followed: the question, and the key, are for the address that was given."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        """None: the caller gets the redirection as an error."""


_OPEN = urllib.request.build_opener(_Stays)


def _read(response: Any, until: float) -> bytes:
    """The body, within the time that a whole call has: a server that trickles is a server that is late."""
    pieces: list[bytes] = []
    size = 0
    while piece := response.read1(65536):
        pieces.append(piece)
        size += len(piece)
        if size > LONGEST:
            raise _Again(f"an answer of more than {LONGEST} bytes")
        if time.monotonic() > until:
            raise TimeoutError
    if response.length:  # fewer bytes than were promised
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(pieces)


def _answer(raw: bytes) -> Answer:
    try:
        row = json.loads(raw)
        choice = row["choices"][0]
        said = choice["message"].get("content")
        if isinstance(said, list):
            said = "".join(part.get("text", "") for part in said)
        if said is None:  # an answer all the same: one that declines
            said = choice["message"].get("refusal") or ""
        if not isinstance(said, str):
            raise TypeError
        used = row.get("usage") or {}
        tokens = [max(0, int(used.get(name) or 0)) for name in ("prompt_tokens", "completion_tokens")]
        return Answer(said, choice.get("finish_reason") == "length", *tokens)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as problem:
        raise _Again("the answer is no chat completion") from problem


def _seconds(given: str | None) -> float | None:
    try:
        return None if given is None else max(0.0, float(given))
    except ValueError:
        return None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:159]}…"
