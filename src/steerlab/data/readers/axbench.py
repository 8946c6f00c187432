"""AxBench: rows of (input, output) that show a concept, and rows shared by all concepts that show none.

`train_data.parquet` has the positive rows of each concept (`concept_id` ≥ 0) and negative ones under the id −1, shared
per genre: a concept's negatives are those of its own genre (all of them where there is none).
`latent_eval_data.parquet` gives each concept negatives of its own and hard negatives (tagged "hard negative").
`dpo_train_data.parquet` holds pairs of answers to one input. A folder is read through `train_data.parquet` (also under
`generate/`); `metadata.jsonl` alone only names concepts. Instructions recur between AxBench's sets, so the family is
the instruction.

Source: https://arxiv.org/abs/2501.17148, https://github.com/stanfordnlp/axbench.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...contrast import Contrast, Example
from ...errors import DataError
from ..examples import Concept, blank, both, family_of, label_of, pick, text_of
from ..rows import Found, Row, look, rows
from .base import Reader

_SHARED = "-1"
_TRAIN = re.compile(r"train_data(_\d+)?\.parquet")
_PAIRS = ("input", "winning_output", "losing_output")
_ROWS = ("input", "output", "output_concept", "category")
_NAMES = ("concept_id", "concept", "concept_genres_map")


class AxBench(Reader):
    """AxBench's training, evaluation and preference tables."""

    what = "AxBench: train_data, latent_eval_data and dpo_train_data; `concept` picks one by id or text"
    expects = f"the columns {', '.join(_ROWS)}, concept_id; or {', '.join(_PAIRS)}; or a folder with train_data.parquet"

    def recognises(self, found: Found) -> bool:
        """A folder with training tables, a table with AxBench's columns, or a list of concept names."""
        if found.kind == "folder":
            return _training(found.path) != [] and not (found.path / "contrast_train_data.parquet").exists()
        return found.has("output_concept", "category") or found.has(*_PAIRS[1:]) or found.has(*_NAMES[1:])

    def concepts(self, found: Found) -> tuple[Concept, ...]:
        """The concepts with positive rows, or those that a metadata.jsonl names."""
        if found.has(*_NAMES[1:]):
            return tuple(_named(found))
        return tuple(_concepts(_tables(found)))

    def read(self, found: Found, *, concept: str | None = None) -> Contrast:
        """A concept's rows against its own negatives, or the shared ones of its genre; preference rows as pairs."""
        if found.has(*_NAMES[1:]):
            n = len(self.concepts(found))
            raise DataError(
                f"{found.given} names {n} concepts and holds no examples; expected train_data.parquet, which AxBench"
                " keeps beside it. The names serve `steerlab data make`, which writes examples for a concept."
            )
        tables = _tables(found)
        chosen = pick(_concepts(tables), concept, found)
        if all(table.has(*_PAIRS) for table in tables):
            return _preferences(tables, chosen, found)
        positive = [_example(table, row) for table, row in _of(tables, chosen.id) if _class(table, row) == "positive"]
        negative = [_example(table, row) for table, row in _of(tables, chosen.id) if _class(table, row) == "negative"]
        if not negative:
            negative = _shared(tables, chosen.genre)
        sides = both(found, positive, negative, "category")
        return Contrast(*sides, concept=chosen.name, source=found.source)


def _tables(found: Found) -> list[Found]:
    if found.kind != "folder":
        tables = [found]
    elif not (files := _training(found.path)):
        raise DataError(f"{found.given} is {found.told()}; expected train_data.parquet. Name the file, or its folder.")
    else:
        tables = [look(str(path)) for path in files]
    for table in tables:
        expected = _PAIRS if table.has("winning_output") or table.has("losing_output") else _ROWS
        if missing := [column for column in expected if column not in table.columns]:
            raise DataError(f"{table.given} is {table.told()}; {missing[0]!r} is missing. Expected {AxBench.expects}.")
    return tables


def _training(folder: Path) -> list[Path]:
    """The training tables of a set, whole or in numbered parts."""
    for place in (folder, folder / "generate"):
        if place.is_dir() and (found := [p for p in place.iterdir() if _TRAIN.fullmatch(p.name)]):
            return sorted(found, key=lambda p: (len(p.name), p.name))
    return []


def _named(found: Found) -> Iterator[Concept]:
    """The concepts of a metadata.jsonl."""
    for row in rows(found):
        name = text_of(row.values, "concept", found, row.where)
        genres = row.values.get("concept_genres_map")
        genre = genres.get(name) if isinstance(genres, Mapping) else None
        yield Concept(_number(row), name, str(genre[0]) if isinstance(genre, list) and genre else None)


def _concepts(tables: list[Found]) -> list[Concept]:
    """The concepts with positive rows, in the order of their ids."""
    counts: dict[str, list[Any]] = {}
    for table in tables:
        wanted = [c for c in ("concept_id", "output_concept", "concept_genre", "category") if c in table.columns]
        for row in rows(table, wanted):
            if _class(table, row) != "positive":
                continue
            key = _key(row)
            held = counts.setdefault(
                key, [str(row.values.get("output_concept") or ""), row.values.get("concept_genre"), 0]
            )
            held[2] += 1
    found = [Concept(key, name, None if blank(genre) else str(genre), n) for key, (name, genre, n) in counts.items()]
    return sorted(found, key=lambda c: (len(c.id or "") if (c.id or "").isdigit() else 99, c.id or ""))


def _of(tables: list[Found], key: str | None) -> Iterator[tuple[Found, Row]]:
    return ((table, row) for table in tables for row in rows(table) if _key(row) == key)


def _shared(tables: list[Found], genre: str | None) -> list[Example]:
    """The negatives that all concepts share, of one genre where there are some."""
    pairs = [(table, row) for table, row in _of(tables, _SHARED) if _class(table, row) == "negative"]
    of_genre = [(table, row) for table, row in pairs if row.values.get("concept_genre") == genre]
    return [_example(table, row) for table, row in of_genre or pairs]


def _preferences(tables: list[Found], chosen: Concept, found: Found) -> Contrast:
    positive: list[Example] = []
    negative: list[Example] = []
    for table, row in _of(tables, chosen.id):
        prompt, wins, loses = (text_of(row.values, column, table, row.where) for column in _PAIRS)
        family = family_of(prompt)
        positive.append(Example.ask(prompt, wins, family=family))
        negative.append(Example.ask(prompt, loses, family=family))
    return Contrast(tuple(positive), tuple(negative), paired=True, concept=chosen.name, source=found.source)


def _example(table: Found, row: Row) -> Example:
    prompt = text_of(row.values, "input", table, row.where)
    answer = text_of(row.values, "output", table, row.where)
    tags = {"genre": str(row.values["concept_genre"])} if not blank(row.values.get("concept_genre")) else {}
    if str(row.values["category"]).startswith("hard"):
        tags["category"] = str(row.values["category"])
    return Example.ask(prompt, answer, family=family_of(prompt), tags=tags)


def _class(table: Found, row: Row) -> str:
    """The class of a row; a preference row is positive (it shows the concept in the answer that wins)."""
    category = row.values.get("category")
    if category == "hard negative" or (blank(category) and "category" not in table.columns):
        return "negative" if category else "positive"
    return label_of(category, table, row.where)


def _key(row: Row) -> str:
    return _number(row) or str(row.values.get("output_concept") or "")


def _number(row: Row) -> str | None:
    value = row.values.get("concept_id")
    if blank(value):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
