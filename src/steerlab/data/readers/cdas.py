"""The contrastive data of CDAS: one instruction in two guises, with and without the concept.

A row holds `negative_input` (the plain instruction), `negative_output` (an answer without the concept),
`positive_input` (the instruction that asks for the concept) and `positive_output`; `concept_id`, `concept` and
`concept_genre` where a file holds several. The refusal data have the same columns, with a harmless instruction against
a harmful one. A folder is read through its `contrast_train_data.parquet`. The prompt sets of the backdoor study (JSON
lists of instruction, output, dataset) are read, too: see `_backdoor`.

Source: https://arxiv.org/abs/2602.05234, https://github.com/colored-dye/concept_das.
"""

from __future__ import annotations

from ...contrast import Contrast, Example
from ...errors import DataError
from ..examples import Concept, blank, family_of, named, pick, text_of
from ..rows import Found, look, rows
from . import _backdoor
from .base import Reader

_COLUMNS = ("negative_input", "negative_output", "positive_input", "positive_output")
_TRAIN = "contrast_train_data.parquet"


class Cdas(Reader):
    """The contrastive tables of CDAS, and the prompt sets of its backdoor study."""

    what = "CDAS: contrastive tables (concepts, refusal), and the prompt sets of the backdoor study"
    expects = (
        f"the columns {', '.join(_COLUMNS)}; or a folder with {_TRAIN}; or JSON lists of instruction, output, dataset"
    )

    def recognises(self, found: Found) -> bool:
        """A folder with contrastive or prompt-set files, or a file with their columns."""
        if found.kind == "folder":
            return _TRAIN in found.files or _backdoor.sets_in(found.path) != ()
        return found.has("negative_input", "positive_input") or found.has(*_backdoor.COLUMNS)

    def concepts(self, found: Found) -> tuple[Concept, ...]:
        """The concepts of a contrastive table; none for the backdoor study."""
        if _is_backdoor(found):
            return ()
        found = _table(found)
        return tuple(_concepts(found)) if found.has("concept") else ()

    def read(self, found: Found, *, concept: str | None = None) -> Contrast:
        """The rows as pairs, positive and negative of one instruction."""
        if _is_backdoor(found):
            return _backdoor.read(found, concept)
        found = _table(found)
        if missing := [column for column in _COLUMNS if column not in found.columns]:
            raise DataError(f"{found.given} is {found.told()}; {missing[0]!r} is missing. Expected {self.expects}.")
        chosen = pick(_concepts(found), concept, found) if found.has("concept") else None
        positive: list[Example] = []
        negative: list[Example] = []
        for row in rows(found):
            if chosen is not None and _key(row.values.get("concept_id"), row.values.get("concept")) != chosen[:2]:
                continue
            texts = {column: text_of(row.values, column, found, row.where) for column in _COLUMNS}
            family = family_of(texts["negative_input"])
            genre = row.values.get("concept_genre")
            tags = {} if blank(genre) else {"genre": str(genre)}
            positive.append(Example.ask(texts["positive_input"], texts["positive_output"], family=family, tags=tags))
            negative.append(Example.ask(texts["negative_input"], texts["negative_output"], family=family, tags=tags))
        name = named("", concept, found) if chosen is None else chosen.name
        return Contrast(tuple(positive), tuple(negative), paired=True, concept=name, source=found.source)


def _is_backdoor(found: Found) -> bool:
    if found.kind == "folder":
        return _TRAIN not in found.files
    return found.has(*_backdoor.COLUMNS)


def _table(found: Found) -> Found:
    return look(str(found.path / _TRAIN)) if found.kind == "folder" else found


def _key(number: object, text: object) -> tuple[str | None, str]:
    return (None if blank(number) else str(number)), ("" if blank(text) else str(text))


def _concepts(found: Found) -> list[Concept]:
    counts: dict[tuple[str | None, str], int] = {}
    genres: dict[tuple[str | None, str], str | None] = {}
    columns = [c for c in ("concept_id", "concept", "concept_genre") if c in found.columns]
    for row in rows(found, columns):
        key = _key(row.values.get("concept_id"), row.values.get("concept"))
        counts[key] = counts.get(key, 0) + 1
        genre = row.values.get("concept_genre")
        genres[key] = None if blank(genre) else str(genre)
    return [Concept(number, text, genres[number, text], n) for (number, text), n in counts.items()]
