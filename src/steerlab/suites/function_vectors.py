"""Function vectors, and "steerable but not decodable": a vector sets a task going that no lens reads at its layer.

A task is shown by examples x -> y. Its vector at a block is the mean state at the last prompt token behind `shots`
examples, less the mean without any. Added there to prompts without examples (at the last token, once), does the model do
the task? Beside it: the same from examples whose answers were exchanged, and a random direction of equal length. And does
the logit or the tuned lens, at that block, read the first token of the answer in prompts *with* examples? The block is
chosen on half of the queries and everything is told on the other half.

Todd et al. 2024, https://arxiv.org/abs/2310.15213 (heads in place of whole states); Nadaf 2026,
https://arxiv.org/abs/2604.02608 (this definition). The tuned lens is a full map here, where that paper has a diagonal one.
The built-in model: tasks of its card.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import pilot
from ..contrast import Example
from ..edits import Shift
from ..errors import ConfigError, DataError
from ..positions import GENERATED, LAST_PROMPT
from ..sites import Site
from ..steering import Intervention, Steering
from .base import Condition, Metric, Row, Rows, Stage, Suite, mean, mean_of, values
from .health import Checkup
from .lens import TunedLens, fit_tuned, logit_lens
from .reading import files, table, text

TASKS = ("home", "plural", "first", "past", "same")  # what the built-in model's card shows it to do


class Query(NamedTuple):
    """A query of a task behind examples, behind examples with exchanged answers, and alone; `dev` ones choose the block."""

    task: str
    shown: Example
    shuffled: Example
    bare: Example
    dev: bool


@dataclass(frozen=True)
class FunctionVectors(Suite[Query]):
    """`n` queries over the tasks, each behind `shots` examples; `tuned` steps train the tuned lens (0: none)."""

    about: ClassVar[str] = "a task's vector: does it steer, and can a lens read it there?"
    paper: ClassVar[str] = "https://arxiv.org/abs/2604.02608"
    layout: ClassVar[str] = "JSON lists of {input, output}, a file for each task (or a folder of them)"

    shots: int = 4
    tuned: int = 120

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots < 2 or self.tuned < 0:
            raise ConfigError(f"shots is {self.shots} and tuned {self.tuned}; expected at least 2, and at least 0.")

    def of_pilot(self, variant: str) -> Sequence[Query]:
        tables: dict[str, dict[str, str]] = {}
        for e in pilot.abilities(variant, n=400, seed=self.seed, split="test", only=("examples",))["examples"]:
            if e.tags["task"] in TASKS:
                tables.setdefault(e.tags["task"], {}).update(_parsed(e))
        return self._queries(tables, "{x} -> {y}", "{x} ->", "\n")

    def read(self, path: str) -> Sequence[Query]:
        tables: dict[str, dict[str, str]] = {}
        for file in files(path, (".json", ".jsonl", ".csv")):
            rows = table(file, ("input", "output"), self.layout)
            tables[Path(file).stem] = {text(cells, "input"): text(cells, "output") for cells in rows}
        return self._queries(tables, "Q: {x}\nA: {y}", "Q: {x}\nA:", "\n\n")

    def _queries(self, tables: dict[str, dict[str, str]], shown: str, asked: str, between: str) -> list[Query]:
        rng, found = Random(self.seed), list[Query]()
        if not tables:
            raise DataError(f"there are no tasks. Expected {self.layout}.")
        each = max(4, self.n // len(tables))
        for task, pairs in sorted(tables.items()):
            if len(pairs) < self.shots + 2:
                raise DataError(
                    f"the task {task!r} has {len(pairs)} pairs; expected more than the {self.shots} examples of a prompt."
                )
            for k, x in enumerate(rng.sample(sorted(pairs), min(each, len(pairs)))):
                examples = rng.sample([(a, b) for a, b in sorted(pairs.items()) if a != x], self.shots)
                turned = [(a, examples[(i + 1) % self.shots][1]) for i, (a, _) in enumerate(examples)]
                query = asked.format(x=x)

                def prompt(rows: Sequence[tuple[str, str]], query: str = query, y: str = pairs[x]) -> Example:
                    return Example.ask(between.join([*(shown.format(x=a, y=b) for a, b in rows), query]), y)

                found.append(Query(task, prompt(examples), prompt(turned), prompt(()), k % 2 == 0))
        return found

    def rows(self, stage: Stage, condition: Condition, items: Sequence[Query]) -> list[Row]:
        few = _exact(stage, [q.shown for q in items], condition.steering)
        zero = _exact(stage, [q.bare for q in items], condition.steering)
        found: list[Row] = [
            {
                "unit": f"{q.task}: {q.bare.instruction}", "item": n, "set": "dev" if q.dev else "test", "task": q.task,
                "few": few[n][0], "zero": zero[n][0], "steered": None, "exchanged": None, "random": None, "logit": None,
                "logit_best": None, "tuned": None, "layer": None, "prompt": q.bare.instruction, "reply": q.bare.answer,
            }
            for n, q in enumerate(items)
        ]  # fmt: skip
        if condition.steering is None:  # what a task's vector does is asked of the model as it is
            lenses = _Lenses(stage, self.tuned, self.seed)
            for task in dict.fromkeys(q.task for q in items):
                self._task(stage, lenses, [n for n, q in enumerate(items) if q.task == task], items, found)
        return found

    def _task(self, stage: Stage, lenses: _Lenses, mine: list[int], items: Sequence[Query], found: list[Row]) -> None:
        """Fill in one task's rows: vectors from its dev half, the block chosen there, everything told on test."""
        layers = [Site(n) for n in range(stage.engine.depth - 1)]
        dev, test = ([n for n in mine if items[n].dev == d] for d in (True, False))
        if not dev or not test:
            return

        def states(asked: Sequence[Example]) -> dict[Site, Tensor]:
            asked = [e.without_answer() for e in asked]
            return {s: c.values for s, c in stage.engine.capture(asked, layers, LAST_PROMPT).items()}

        bare, shown = states([items[n].bare for n in dev]), states([items[n].shown for n in dev])
        turned = states([items[n].shuffled for n in dev])
        vectors = {s: shown[s].mean(0) - bare[s].mean(0) for s in layers}
        asked = [items[n].bare for n in dev]
        right = {s: mean([e for e, _ in _exact(stage, asked, _added(s, vectors[s]))]) or 0.0 for s in layers}
        site = max(layers, key=lambda s: (right[s], -s.depth[0]))
        generator = torch.Generator().manual_seed(self.seed)
        chance = torch.randn(vectors[site].shape, generator=generator)
        asked = [items[n].bare for n in test]
        given = {
            "steered": vectors[site],
            "exchanged": turned[site].mean(0) - bare[site].mean(0),
            "random": chance / chance.norm() * vectors[site].norm(),
        }
        for column, vector in given.items():
            for n, (exact, _) in zip(test, _exact(stage, asked, _added(site, vector)), strict=True):
                found[n][column] = exact
        firsts = [f for _, f in _exact(stage, [items[n].shown for n in mine], None, firsts=True)]
        first = dict(zip(mine, firsts, strict=True))
        read_dev, read_test = shown, states([items[n].shown for n in test])
        best = max(
            layers, key=lambda s: mean(_hits(logit_lens(stage.engine, read_dev[s]), [first[n] for n in dev])) or 0.0
        )
        wanted = [first[n] for n in test]
        told = {
            "logit": _hits(logit_lens(stage.engine, read_test[site]), wanted),
            "logit_best": _hits(logit_lens(stage.engine, read_test[best]), wanted),
            "tuned": lenses.hits(site, read_test[site], wanted),
        }
        for column, hits in told.items():
            for n, hit in zip(test, hits or [None] * len(test), strict=True):
                found[n][column] = hit
        for n in test:
            found[n]["layer"] = site.layer

    def metrics(self, items: Sequence[Query]) -> tuple[Metric, ...]:
        test = {"set": "test"}
        return (
            mean_of("with examples", "few", "queries answered behind examples: the ability", share=True),
            mean_of("without", "zero", "queries answered with no example", share=True),
            mean_of("steered", "steered", "without examples, under the task's vector", share=True, where=test),
            mean_of(
                "exchanged", "exchanged", "under a vector from examples with exchanged answers", share=True, where=test
            ),
            mean_of("random", "random", "under a random direction of equal length", share=True, where=test),
            mean_of(
                "logit lens",
                "logit",
                "answers that the logit lens reads at the vector's block, behind examples",
                share=True,
                where=test,
            ),
            mean_of(
                "logit lens, best",
                "logit_best",
                "the same at the block where it reads best (below the last)",
                share=True,
                where=test,
            ),
            mean_of(
                "tuned lens", "tuned", "answers that the tuned lens reads at the vector's block", share=True, where=test
            ),
            Metric(
                "steered − logit lens",
                "steerable but not decodable, where well above 0",
                _gap("logit"),
                "steered",
                test,
            ),
            Metric(
                "steered − tuned lens", "the same with the tuned lens", _gap("tuned"), "steered", test, bounded=True
            ),
            *(
                mean_of(f"steered, {t}", "steered", f"under the vector of {t}", share=True, where={"task": t, **test})
                for t in dict.fromkeys(q.task for q in items)
            ),
        )

    def notes(self, rows: Rows) -> list[str]:
        layers = {str(r["task"]): r["layer"] for r in rows if r["layer"] is not None}
        told = [f"the vectors stand at the blocks {', '.join(f'{t} {n}' for t, n in layers.items())}"] if layers else []
        weak = [
            t
            for t in dict.fromkeys(str(r["task"]) for r in rows)
            if (share := mean(values([r for r in rows if r["task"] == t], "few"))) is not None and share < 0.5
        ]
        return told + (
            [f"the model does {', '.join(weak)} in less than half of the cases even behind examples"] if weak else []
        )


class _Lenses:
    """Tuned lenses of the blocks that are asked for, trained once each on neutral text."""

    def __init__(self, stage: Stage, steps: int, seed: int) -> None:
        self._stage, self._steps, self._seed = stage, steps, seed
        self._fitted: dict[Site, TunedLens] = {}

    def hits(self, site: Site, states: Tensor, wanted: Sequence[int]) -> list[float] | None:
        """Whether the lens of a block reads these tokens from these states."""
        if not self._steps:
            return None
        engine, last = self._stage.engine, Site(self._stage.engine.depth - 1)
        if site not in self._fitted:
            read = engine.capture(_texts(self._stage, self._seed), [site, last], GENERATED)
            self._fitted[site] = fit_tuned(
                engine, read[site].values, read[last].values, steps=self._steps, seed=self._seed
            )[0]
        return _hits(self._fitted[site](engine, states), wanted)


def _texts(stage: Stage, seed: int) -> list[Example]:
    if stage.variant is None:
        return [Example.ask("Write a short text.", t) for t in Checkup.of(stage).texts]
    return [Example.ask("Write a short text.", t) for t in pilot.text("dev", 40, seed=seed, variant=stage.variant)]


def _added(site: Site, vector: Tensor) -> Steering:
    return Steering((Intervention(site, Shift(vector), LAST_PROMPT),))


def _exact(
    stage: Stage, examples: Sequence[Example], steering: Steering | None, *, firsts: bool = False
) -> list[tuple[float, int]]:
    """Whether greedy decoding would give the whole answer, with the answer's first token. The end token isn't asked for."""
    batch = stage.engine.batch(examples, close=False)
    ids = [row[here].tolist() for row, here in zip(batch.ids.cpu(), batch.answers.cpu(), strict=True)]
    if firsts:
        return [(0.0, i[0]) for i in ids]
    found: list[tuple[float, int]] = []
    for wanted, scores in zip(ids, stage.engine.logits(examples, steering), strict=True):
        found.append((float(scores.argmax(dim=-1)[: len(wanted)].tolist() == wanted), wanted[0]))
    return found


def _hits(scores: Tensor, wanted: Sequence[int]) -> list[float]:
    return [float(a == b) for a, b in zip(scores.argmax(dim=-1).tolist(), wanted, strict=True)]


def _gap(column: str) -> Callable[[Rows], float | None]:
    def of(rows: Rows) -> float | None:
        a, b = mean(values(rows, "steered")), mean(values(rows, column))
        return None if a is None or b is None else a - b

    return of


def _parsed(example: Example) -> dict[str, str]:
    """The pairs x -> y of the built-in model's own prompt, its query with the answer included."""
    shown = example.instruction
    pieces = re.split(r"\n|; ", shown)
    mark = next((m for m in (" ->", " =", ":") if pieces[-1].endswith(m)), None)
    if mark is None:
        return {}
    pairs = {pieces[-1].removesuffix(mark): example.tags["right"]}
    for piece in pieces[:-1]:
        x, found, y = piece.partition(f"{mark} ")
        if found:
            pairs[x] = y
    return pairs
