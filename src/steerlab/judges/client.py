"""Asks a language model many things at once: any OpenAI-compatible endpoint, or a Hugging Face model on this machine.

Whoever asks (a judge, a writer of data) gets an answer for each message, known ones from the file of answers, or None where
there is none; calls, repetitions, tokens and cost are counted in the tally.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from .. import progress
from ..errors import JudgeError
from . import local
from .answers import Answer, Answers, key_of
from .endpoint import Endpoint, Tally, Unanswered


@dataclass(frozen=True)
class Client:
    """Where a model is asked, how it is sampled, and how patiently. The fields mean what `LLMJudge`'s do."""

    model: str
    url: str = ""
    temperature: float = 0.0
    max_tokens: int = 200
    seed: int = 0
    concurrency: int = 8
    tries: int = 6
    timeout: float = 60.0
    wait: float = 1.0
    key_env: str = "OPENAI_API_KEY"
    price_in: float = 0.0
    price_out: float = 0.0
    cache: str = ""
    revision: str | None = None
    device: str = "cpu"
    batch_size: int = 8
    tally: Tally = field(repr=False, compare=False, default_factory=Tally)

    def endpoint(self) -> Endpoint:
        """Where it is. Raises `ConfigError` for an address that is none."""
        return Endpoint(self.url, self.model, self.key_env, self.timeout, self.tries, self.wait)

    def answers(self, messages: Sequence[str]) -> list[Answer | None]:
        """An answer for each message, known ones from the file; None where there is none, which is counted.

        Raises `JudgeError` where the model refuses altogether or nobody is there; what had come until then is kept.
        """
        keys = [key_of(self._settles(m)) for m in messages]
        store = Answers(self.cache)
        found = store.known(keys)
        self.tally.note(wanted=len(keys), kept=sum(k in found for k in keys))
        open_ = {key: message for key, message in zip(keys, messages, strict=True) if key not in found}
        if open_:
            with progress.task(f"asking {self.model}", len(open_)) as bar:
                for key, answer in (self._remote if self.url else self._here)(open_):
                    store.keep(key, answer, self.model)
                    found[key] = answer
                    self.tally.note(
                        prompt_tokens=answer.prompt_tokens, answer_tokens=answer.answer_tokens,
                        cost=(answer.prompt_tokens * self.price_in + answer.answer_tokens * self.price_out) / 1e6,
                    )  # fmt: skip
                    bar.advance()
        return [found.get(key) for key in keys]

    def _settles(self, message: str) -> dict[str, Any]:
        where: dict[str, Any] = (
            {"url": self.url.rstrip("/")} if self.url else {"revision": self.revision, "files": _stamp(self.model)}
        )
        return {"model": self.model, **where, **self._body(message)}

    def _body(self, message: str) -> dict[str, Any]:
        return {
            "messages": [{"role": "user", "content": message}], "temperature": self.temperature, "max_tokens": self.max_tokens,
            "seed": self.seed,
        }  # fmt: skip

    def _here(self, asked: Mapping[str, str]) -> Iterable[tuple[str, Answer]]:
        keys = list(asked)
        made = local.answers(
            self.model, self.revision, self.device, [asked[k] for k in keys], tokens=self.max_tokens,
            temperature=self.temperature, seed=self.seed, batch=self.batch_size,
        )  # fmt: skip
        for place, answer in made:
            self.tally.note(calls=1)
            yield keys[place], answer

    def _remote(self, asked: Mapping[str, str]) -> Iterable[tuple[str, Answer]]:
        stopped = Event()

        def ask(message: str) -> Answer:
            if stopped.is_set():
                raise Unanswered("the run was ended")
            try:
                return self.endpoint().ask(self._body(message), self.tally)
            except JudgeError:
                stopped.set()
                raise

        reached, problems = False, list[str]()
        with ThreadPoolExecutor(min(self.concurrency, len(asked))) as pool:
            futures = {pool.submit(ask, message): key for key, message in asked.items()}
            try:
                for future in as_completed(futures):
                    try:
                        answer = future.result()
                    except Unanswered as problem:
                        reached = reached or problem.reached
                        problems.append(str(problem))
                        self.tally.missed(str(problem))
                        continue
                    reached = True
                    yield futures[future], answer
            finally:  # also on Ctrl-C, or where the judge refuses altogether: what is waiting isn't sent
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
        if not reached:
            raise JudgeError(
                f"the judge {self.model!r} at {self.url} can't be reached: {problems[0]}. Is the server up, and the url right?"
            )


def _stamp(model: str) -> str:
    """What tells one folder's model from another's; nothing for a name on the hub."""
    from pathlib import Path

    from ..files import digest

    return digest(model) if Path(model).is_dir() else ""
