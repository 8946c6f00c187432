"""Contrast data from a concept: the model itself answers, with and without a request for it (CDAS's self_generate).

For each instruction the positive side is the instruction with a request for the concept, and the model's answer to
that; the negative side is the plain instruction and the model's answer to it. A judge keeps the pairs whose positive
answer shows the concept and whose negative one doesn't. What is dropped is counted with its reason.

Source of the scheme: CDAS, https://arxiv.org/abs/2602.05234 (`--do_self_generate`). The wordings are ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import progress
from ..contrast import Contrast, Example
from ..errors import DataError
from .examples import family_of, squash
from .journal import Journal, settled
from .readers.jsonl import write
from .requests import MakeOptions, asked

if TYPE_CHECKING:
    from ..engines.base import Reply, Runner
    from ..judges.base import Judge, Score

_LONG = 5  # words from which on the same answer twice is a repetition and no coincidence


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why instructions gave no pair, how many, and one of them with the answer that was at fault."""

    reason: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Request:
    """How often a request for the concept was the last one tried, and how often its pair was kept."""

    template: str
    asked: int
    kept: int


@dataclass(frozen=True, slots=True)
class MakeReport:
    """What was asked, what was kept and what was dropped: `given` = `made` + all dropped + `unused`.

    `unused` instructions were not needed. `retried` pairs took more than one request; `cut` kept answers ended at
    `max_new_tokens`; `resumed` instructions came from the journal of an interrupted run.
    """

    concept: str
    wanted: int
    made: int
    given: int
    unused: int
    retried: int
    cut: int
    resumed: int
    dropped: tuple[Dropped, ...]
    requests: tuple[Request, ...]

    @property
    def short(self) -> int:
        """Pairs that were wanted and could not be made."""
        return self.wanted - self.made

    def told(self) -> str:
        """The counts in words."""
        lost = "; ".join(f"{d.count} × {d.reason}" for d in self.dropped)
        told = f"{self.made} of {self.wanted} pairs from {self.given} instructions ({self.unused} not needed)"
        return f"{told}; dropped: {lost}" if lost else f"{told}; none dropped"

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**dataclasses.asdict(self), "short": self.short}


class Made(NamedTuple):
    """The pairs, and how they came about."""

    contrast: Contrast
    report: MakeReport


def make(
    engine: Runner,
    concept: str,
    instructions: Iterable[Example | str],
    *,
    out: str | PathLike[str] | None = None,
    judge: Judge | None = None,
    options: MakeOptions = MakeOptions(),  # noqa: B008  (frozen)
) -> Made:
    """Pairs for a concept, answered by the model itself; written to `out` (JSON Lines) where it is given.

    Instructions keep their family (one without gets that of its text), and families take turns, so that few pairs are
    spread over many wordings. Without a judge every answered pair is kept. The same seed gives the same pairs. While it
    runs, `OUT.journal` keeps what is done, and the same call goes on from there after an interruption. Fewer pairs than
    wanted are told in the report; raises `DataError` where there is none at all.
    """
    if not concept.strip():
        raise DataError("the concept is empty; expected a few words that name what the answers should show.")
    asks, repeats = _ordered(instructions, options.seed)
    maker = _Maker(engine, concept, judge, options)
    journal = Journal.beside(out, _job(engine, concept, asks, judge, options))
    gathered = _Gathered(len(options.elicit))
    batches = [asks[i : i + options.batch] for i in range(0, len(asks), options.batch)]
    resumed = sum(len(b) for b in batches[: len(journal.pieces)])
    with progress.task("making pairs", options.pairs) as bar:
        for number, batch in enumerate(batches):
            if len(gathered.pairs) >= options.pairs:
                break
            if number >= len(journal.pieces):
                journal.add(maker.answer(batch, number * options.batch))
            before = len(gathered.pairs)
            gathered.take(batch, journal.pieces[number], options.pairs)
            bar.advance(len(gathered.pairs) - before)
            bar.tell(f"{sum(gathered.lost.values())} dropped")
    report = gathered.report(concept, options, given=len(asks) + len(repeats), repeats=repeats, resumed=resumed)
    if not gathered.pairs:
        journal.end()
        raise DataError(f"no pair could be made for {concept!r}: {report.told()}. {_advice(report)}")
    positive, negative = zip(*gathered.pairs, strict=True)
    contrast = Contrast(positive, negative, paired=True, concept=concept, source=f"answered by {_name(engine)}")
    if out is not None:
        write(contrast, out)
    journal.end()
    return Made(contrast, report)


class _Side(NamedTuple):
    """One side of the pairs: the requests that are tried, and whether its answers are to show the concept."""

    name: str
    templates: tuple[str, ...]
    shows: bool

    def template(self, row: int, attempt: int) -> int:
        """Which request a row gets: those for the concept are dealt out evenly, the plain instruction comes first."""
        return ((row if self.shows else 0) + attempt) % len(self.templates)


class _Maker:
    """Asks the model: a batch of instructions becomes a batch of records (plain data, for the journal)."""

    def __init__(self, engine: Runner, concept: str, judge: Judge | None, options: MakeOptions) -> None:
        self._engine, self._concept, self._judge, self._options = engine, concept, judge, options

    def answer(self, batch: Sequence[Example], start: int) -> list[dict[str, Any]]:
        """A record per instruction: both examples, or the reason why there is no pair."""
        records: list[dict[str, Any]] = [{"at": start + i, "tries": 0, "cut": 0} for i in range(len(batch))]
        self._ask(_Side("positive", self._options.elicit, shows=True), batch, records)
        self._ask(_Side("negative", ("{instruction}", *self._options.avoid), shows=False), batch, records)
        return records

    def _ask(self, side: _Side, batch: Sequence[Example], records: list[dict[str, Any]]) -> None:
        """Ask for one side, again with the next request while the judge says no. Notes the example, or the reason."""
        left = [i for i, record in enumerate(records) if "reason" not in record]
        for attempt in range(min(self._options.tries, len(side.templates))):
            if not left:
                return
            which = [side.template(records[i]["at"], attempt) for i in left]
            prompts = [asked(batch[i], side.templates[t], self._concept) for i, t in zip(left, which, strict=True)]
            replies = self._generate(prompts, [records[i]["at"] for i in left], attempt)
            for i, t, prompt, reply in zip(left, which, prompts, replies, strict=True):
                self._note(records[i], side, t, batch[i], prompt, reply)
                records[i]["tries"] += attempt > 0
            left = [i for i in left if "reason" in records[i]]

    def _note(
        self, record: dict[str, Any], side: _Side, template: int, plain: Example, prompt: Example, reply: Reply | str
    ) -> None:
        reason, score = self._verdict(reply, plain, prompt, shows=side.shows)
        record.pop("reason", None)
        if side.shows:
            record["request"] = template
        if reason is not None or isinstance(reply, str):
            record["reason"] = reason
            record["at fault"] = reply if isinstance(reply, str) else reply.text.strip()
            return
        # a negative answer that had to be asked for stands under the plain instruction all the same
        example = prompt if side.shows else plain
        record[side.name] = replace(example, answer=reply.text.strip(), score=score).to_json()
        record["cut"] += reply.finish == "length"

    def _generate(self, prompts: list[Example], rows: list[int], attempt: int) -> list[Reply | str]:
        """The replies; where the engine refuses a prompt, its words in place of a reply."""
        from ..engines.base import Sampling

        o = self._options
        seeds = tuple(int(np.random.default_rng((o.seed, row, attempt)).integers(2**31)) for row in rows)

        def ask(part: list[Example], its: tuple[int, ...]) -> list[Reply]:
            sampling = Sampling(max_new_tokens=o.max_new_tokens, temperature=o.temperature, seed=its)
            return self._engine.generate(part, None, sampling)

        try:
            return list(ask(prompts, seeds))
        except DataError:  # one prompt that doesn't fit would take the batch with it
            found: list[Reply | str] = []
            for prompt, seed in zip(prompts, seeds, strict=True):
                try:
                    found += ask([prompt], (seed,))
                except DataError as problem:
                    found.append(str(problem))
            return found

    def _verdict(
        self, reply: Reply | str, plain: Example, prompt: Example, *, shows: bool
    ) -> tuple[str | None, float | None]:
        """Why an answer can't be kept (None where it can), and the judge's degree."""
        if isinstance(reply, str):
            return "the engine refuses the prompt", None
        text, request = squash(reply.text), squash(prompt.instruction)
        if not text:
            return "the answer is empty", None
        if len(request.split()) >= _LONG and request in text:
            return "the answer repeats the request", None
        if self._judge is None:
            return None, None
        score: Score = self._judge(reply.text.strip(), plain)
        present = self._judge.present(score)
        if present is None:
            return f"the judge can't tell ({score.reason})", None
        if present != shows:
            told = "the positive answer lacks the concept" if shows else "the negative answer shows the concept"
            return told, None
        return None, score.value


class _Gathered:
    """Records become pairs, in their order; what is dropped is counted."""

    def __init__(self, requests: int) -> None:
        self.pairs: list[tuple[Example, Example]] = []
        self.lost: dict[str, int] = {}
        self._first: dict[str, str] = {}
        self._seen: set[str] = set()
        self._asked, self._kept = [0] * requests, [0] * requests
        self._retried = self._cut = self._used = 0

    def take(self, batch: Sequence[Example], records: Sequence[dict[str, Any]], most: int) -> None:
        """Take a batch's records, up to so many pairs."""
        for plain, record in zip(batch, records, strict=True):
            if len(self.pairs) >= most:
                return
            self._used += 1
            self._asked[record["request"]] += 1
            if (reason := record.get("reason")) is not None:
                self._drop(reason, plain, str(record["at fault"]))
                continue
            positive, negative = (Example.from_json(record[side]) for side in ("positive", "negative"))
            replies = [squash(e.answer or "") for e in (positive, negative)]
            if replies[0] == replies[1]:
                self._drop("both answers are the same", plain, replies[0])
            elif any(r in self._seen for r in replies if len(r.split()) >= _LONG):
                self._drop("the answer was given to another instruction, too", plain, replies[0])
            else:
                self._seen.update(replies)
                self.pairs.append((positive, negative))
                self._kept[record["request"]] += 1
                self._retried += record["tries"] > 0
                self._cut += record["cut"]

    def report(
        self, concept: str, options: MakeOptions, *, given: int, repeats: Sequence[Example], resumed: int
    ) -> MakeReport:
        """The counts."""
        for plain in repeats:
            self._drop("the instruction repeats an earlier one", plain, "")
        dropped = [Dropped(reason, n, self._first[reason]) for reason, n in self.lost.items()]
        requests = zip(options.elicit, self._asked, self._kept, strict=True)
        return MakeReport(
            concept, options.pairs, len(self.pairs), given, given - self._used - len(repeats),
            self._retried, self._cut, resumed,
            tuple(sorted(dropped, key=lambda d: (-d.count, d.reason))), tuple(Request(*row) for row in requests),
        )  # fmt: skip

    def _drop(self, reason: str, plain: Example, answer: str) -> None:
        self.lost[reason] = self.lost.get(reason, 0) + 1
        self._first.setdefault(
            reason, f"{_short(plain.instruction)} → {_short(answer)}" if answer else _short(plain.instruction)
        )


def _ordered(instructions: Iterable[Example | str], seed: int) -> tuple[list[Example], list[Example]]:
    """The instructions in the order in which they are used, families taking turns; and those that repeat others."""
    asks: list[Example] = []
    repeats: list[Example] = []
    seen: set[str] = set()
    for number, given in enumerate(instructions):
        example = Example.ask(given) if isinstance(given, str) else given.without_answer()
        if not example.instruction.strip():
            raise DataError(f"instruction {number} is empty; expected text. Leave it out.")
        if example.family is None:
            example = replace(example, family=family_of(example.instruction))
        key = squash("\n".join(m.content for m in example.messages))
        (repeats if key in seen else asks).append(example)
        seen.add(key)
    if not asks:
        raise DataError(
            "there are no instructions to answer; give a list of prompts that have nothing to do with the concept."
        )
    families: dict[str, list[Example]] = {}
    rng = np.random.default_rng(seed)
    for i in rng.permutation(len(asks)).tolist():
        families.setdefault(str(asks[i].family), []).append(asks[i])
    turns = [(turn, place) for place, held in enumerate(families.values()) for turn in range(len(held))]
    order = list(families.values())
    return [order[place][turn] for turn, place in sorted(turns)], repeats


def _job(
    engine: Runner, concept: str, asks: Sequence[Example], judge: Judge | None, options: MakeOptions
) -> dict[str, Any]:
    """What tells one making from another, for its journal."""
    rows = "\n".join(json.dumps(e.to_json(), sort_keys=True) for e in asks)
    model = json.dumps([engine.fingerprint, engine.template], sort_keys=True, default=str)
    rule = json.dumps(settled(judge), sort_keys=True)
    return {
        "make": 1,
        "concept": concept,
        "model": engine.name,
        "weights": hashlib.sha256(model.encode()).hexdigest()[:16],
        "instructions": hashlib.sha256(rows.encode()).hexdigest()[:16],
        "judge": None if judge is None else f"{type(judge).__name__} {hashlib.sha256(rule.encode()).hexdigest()[:16]}",
        **{k: v for k, v in dataclasses.asdict(options).items() if k != "pairs"},
    }


def _name(engine: Runner) -> str:
    """The model's name; of a folder its last part, so that a file that travels tells nothing of this machine."""
    return Path(engine.name).name if Path(engine.name).is_absolute() else engine.name


def _advice(report: MakeReport) -> str:
    worst = report.dropped[0]
    return (
        f"For example: {worst.example}. Look at the answers, and change the requests (elicit), the judge or its"
        " threshold, or give more instructions."
    )


def _short(text: str, most: int = 80) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= most else f"{line[: most - 1]}…")
