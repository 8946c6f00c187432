"""AxBench's published layout: a folder with `train_data.parquet`, `latent_eval_data.parquet` and `metadata.jsonl`.

Concept10, Concept500 and ConceptFD come so, and `writing` writes so; the files may lie in the folder or in `generate/` and
`inference/` below it. `dpo_train_data.parquet` has pairs of answers where it is there. Where it isn't, a method that needs
pairs gets the model's own answer to each instruction as the one without the concept, as AxBench's preference data has it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...contrast import Contrast, Example
from ...data.examples import family_of, text_of
from ...data.requests import ELICIT, asked
from ...data.rows import Found, look, rows
from ...errors import DataError, UnsupportedError, nearest
from ...evals.suite import Task
from ...judges.spec import parse_rule
from ...loading import load, read_prompts
from .data import AxSuite, Rows, fitted
from .rating import Rater, model_rater

if TYPE_CHECKING:
    from ...engines.hf import HFEngine
    from ...engines.render import Template

TRAIN, LATENT, PAIRS, NAMES = "train_data", "latent_eval_data", "dpo_train_data", "metadata"
_SHARED = "-1"
_PLACES = ("", "generate", "inference")
_CLASSES = {"positive": "positive", "negative": "negative", "hard negative": "hard"}


class Line(NamedTuple):
    """A row of a table: an instruction, its answer, its class, the concept's words and genre; of a pair the losing answer."""

    prompt: str
    answer: str
    category: str
    words: str
    genre: str
    loses: str = ""


@dataclass(frozen=True)
class FolderAxBench(AxSuite):
    """The concepts of a folder, on a model. A task is a concept's id.

    `judged_by` is the `llm` judge that rates; `instructions_from` a file of instructions to steer on, one a line (none: those of
    the texts to detect concepts in).
    """

    path: str
    model: str
    template: Template = "chat"
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    batch_size: int = 32
    judged_by: str = ""
    instructions_from: str | None = None

    def engine(self) -> HFEngine:
        return load(
            self.model, revision=self.revision, dtype=self.dtype, device=self.device, template=self.template,
            batch_size=self.batch_size,
        )  # fmt: skip

    def files(self) -> Sequence[str | os.PathLike[str]]:
        found = [file for name in (TRAIN, LATENT, PAIRS) if (file := _file(self.path, f"{name}.parquet"))]
        found += [file] if (file := _file(self.path, f"{NAMES}.jsonl")) else []
        given = (self.instructions_from, self.model)
        return [*found, *(Path(f) for f in given if f is not None and Path(f).exists())]

    def tasks(self) -> tuple[Task, ...]:
        genres = {key: lines[0].genre for key, lines in _table(self.path, TRAIN).items() if key != _SHARED}
        return tuple(Task(key, genres[key], "concepts") for key in sorted(genres, key=_order))

    def words(self, task: str) -> str:
        return self._lines(TRAIN, task)[0].words

    def contrast(self, task: str, seed: int) -> Contrast:
        source = f"{Path(self.path).name} {task}"
        pairs = self._lines(PAIRS, task) if _file(self.path, f"{PAIRS}.parquet") else []
        words = self.words(task)
        if pairs:
            plain = tuple(_example(line.prompt, line.loses) for line in pairs)
            wins = [_example(line.prompt, line.answer) for line in pairs]
            return Contrast(_requested(wins, words), plain, paired=True, concept=words, source=source)
        every = self._lines(TRAIN, task)
        positive = [_example(line.prompt, line.answer) for line in every if line.category == "positive"]
        negative = [line for line in every if line.category == "negative"]
        if not negative:
            shared = _table(self.path, TRAIN).get(_SHARED, [])
            negative = [line for line in shared if line.genre == every[0].genre] or shared
        others = tuple(_example(line.prompt, line.answer) for line in negative)
        return Contrast(tuple(positive), others, concept=words, source=source)

    def rows(self, task: str, n: int, hard: int) -> Rows:
        found: dict[str, list[Example]] = {"positive": [], "negative": [], "hard": []}
        for line in self._lines(LATENT, task):
            found[_class(line.category, self.path)].append(_example(line.prompt, line.answer))
        return Rows(tuple(found["positive"][:n]), tuple(found["negative"][:n]), tuple(found["hard"][:hard]))

    def shared(self, n: int) -> tuple[Example, ...]:
        every = (line for lines in _table(self.path, LATENT).values() for line in lines if line.category == "negative")
        texts = dict.fromkeys((line.prompt, line.answer) for line in every)
        return tuple(_example(prompt, answer) for prompt, answer in texts)[:n]

    def instructions(self, task: str, n: int, *, suppress: bool) -> tuple[Example, ...]:
        if self.instructions_from is not None:
            pool = list(read_prompts(self.instructions_from))
        else:
            lines = (line for lines in _table(self.path, LATENT).values() for line in lines)
            pool = [Example.ask(text) for text in dict.fromkeys(line.prompt for line in lines)]
        if len(pool) < n:
            raise DataError(
                f"{n} instructions to steer on were wanted, and there are {len(pool)}; give more (--instructions FILE)."
            )
        drawn = np.random.default_rng(_order(task)[1]).permutation(len(pool))[:n].tolist()
        plain = [pool[k] for k in drawn]
        return _requested(plain, self.words(task)) if suppress else tuple(plain)

    def rater(self, task: str) -> Rater:
        if not self.judged_by:
            raise UnsupportedError(
                f"no rule here can rate replies for {self.words(task)!r}; name a judging model"
                " (--judge llm,model=NAME,url=URL, or a folder with a model), or measure --parts detection alone."
            )
        rule = _rules(self.path).get(task)
        return model_rater(self.judged_by, self.words(task), None if rule is None else parse_rule(rule))

    def shown(self, task: str, n: int) -> tuple[Example, ...]:
        lines = [line for line in self._lines(TRAIN, task) if line.category == "positive"]
        return tuple(_example(line.prompt, line.answer) for line in sorted(lines, key=lambda one: len(one.answer))[:n])

    def _lines(self, name: str, task: str) -> list[Line]:
        table = _table(self.path, name)
        if task not in table:
            raise DataError(
                f"{self.path}: {name} has no concept {task!r}. {nearest(task, [k for k in table if k != _SHARED])}"
            )
        return table[task]


def own_answers(engine: HFEngine, contrast: Contrast, tokens: int) -> Contrast:
    """Unpaired data as pairs: each instruction with its answer that has the concept, and with the model's own answer."""
    from ...engines.base import Sampling

    most = max(engine.context - tokens, engine.context // 2)
    plain = [fitted(engine, e.without_answer(), most)[0] for e in contrast.positive]
    said = engine.generate(plain, None, Sampling(tokens))
    whole = [replace(p, answer=e.answer) for p, e in zip(plain, contrast.positive, strict=True)]
    kept = [(e, p, r.text.strip()) for e, p, r in zip(whole, plain, said, strict=True) if r.text.strip()]
    if not kept:
        raise DataError("the model answers none of the instructions, so there are no pairs to fit on.")
    negative = tuple(replace(p, answer=text) for _, p, text in kept)
    positive = _requested([e for e, _, _ in kept], contrast.concept)
    return replace(contrast, positive=positive, negative=negative, paired=True)


def _requested(examples: Sequence[Example], words: str) -> tuple[Example, ...]:
    """Each with a request for the concept, in turn in one of several wordings."""
    return tuple(asked(e, ELICIT[k % len(ELICIT)], words) for k, e in enumerate(examples))


def _example(prompt: str, answer: str) -> Example:
    return Example.ask(prompt, answer, family=family_of(prompt))


def _order(key: str) -> tuple[int, int, str]:
    return (0, int(key), "") if key.isdigit() else (1, sum(key.encode()), key)


def _class(category: str, path: str) -> str:
    for begins, name in _CLASSES.items():
        if category == begins or (name == "hard" and category.startswith(begins)):
            return name
    raise DataError(f"{path}: {LATENT} has the category {category!r}. {nearest(category, _CLASSES)}")


def _file(path: str, name: str) -> Path | None:
    return next((file for place in _PLACES if (file := Path(path) / place / name).is_file()), None)


@lru_cache(maxsize=8)
def _table(path: str, name: str) -> Mapping[str, list[Line]]:
    """A table's rows by concept. Raises `DataError` where it isn't there, or lacks a column."""
    file = _file(path, f"{name}.parquet")
    if file is None:
        raise DataError(f"{path} has no {name}.parquet; expected AxBench's layout ({TRAIN}.parquet, {LATENT}.parquet).")
    found = look(str(file))
    columns = (
        ("input", "winning_output", "losing_output")
        if name == PAIRS
        else ("input", "output", "category", "output_concept")
    )
    for column in (*columns, "concept_id"):
        if column not in found.columns:
            raise DataError(f"{file} is {found.told()}; {column!r} is missing.")
    table: dict[str, list[Line]] = {}
    for row in rows(found):
        table.setdefault(_key(row.values), []).append(_line(row.values, found, row.where, name == PAIRS))
    return table


def _line(values: Mapping[str, Any], found: Found, where: str, pair: bool) -> Line:
    prompt = text_of(values, "input", found, where)
    words, genre = str(values.get("output_concept") or ""), str(values.get("concept_genre") or "text")
    if pair:
        wins, loses = (text_of(values, column, found, where) for column in ("winning_output", "losing_output"))
        return Line(prompt, wins, "positive", words, genre, loses)
    return Line(prompt, text_of(values, "output", found, where), str(values["category"]), words, genre)


def _key(values: Mapping[str, Any]) -> str:
    key = values["concept_id"]
    return str(int(key)) if isinstance(key, float) and key.is_integer() else str(key).strip()


@lru_cache(maxsize=8)
def _rules(path: str) -> dict[str, str]:
    """The rules of rule concepts, by concept, where the metadata names any."""
    file = _file(path, f"{NAMES}.jsonl")
    if file is None:
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {_key(row): str(row["rule"]) for row in lines if row.get("rule")}
