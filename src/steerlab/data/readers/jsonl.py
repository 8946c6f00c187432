"""Our own layout: JSON Lines, one pair or one labelled example per line; it is read and written here.

    {"positive": {"prompt": "…", "answer": "…"}, "negative": {"prompt": "…", "answer": "…"}}
    {"label": "neutral", "prompt": "…"}

Examples are as `Example.to_json` writes them; `prompt` or `instruction` may stand in place of `messages`. A first line
`{"contrast": {"format": 1, "concept": "…"}}` may name the concept. Rows with the columns of a table
(`steerlab.data.tables`) are read, too, and so is a JSON list of rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from os import PathLike
from typing import Any, ClassVar, cast

from ...contrast import Contrast, Example
from ...errors import DataError, nearest
from ...files import whole
from ..examples import FIELDS, Concept, blank, example_from, label_of, named, pick
from ..rows import Found, Row, rows
from ..tables import Gathered, concepts_in, read_table
from .base import Reader

FORMAT = 1
_PAIR = ("positive", "negative", "family", "concept")


class JsonLines(Reader):
    """Pairs or labelled examples, one per line."""

    what = "our own: pairs or labelled examples, one JSON object per line (what `steerlab data make` writes)"
    expects = (
        '{"positive": example, "negative": example} or {"label": "positive", "prompt": …, "answer": …} on each line'
    )
    general: ClassVar[bool] = True

    def recognises(self, found: Found) -> bool:
        """Any JSON Lines or JSON list."""
        return found.kind in ("jsonl", "json")

    def concepts(self, found: Found) -> tuple[Concept, ...]:
        """The concepts that rows name, or the header."""
        if not _own(found):
            return concepts_in(found)
        counts: dict[str, int] = {}
        for row in rows(found):
            if not blank(value := row.values.get("concept")):
                counts[str(value)] = counts.get(str(value), 0) + 1
        said = _header(found).get("concept", "")
        return tuple(Concept(None, name, rows=n) for name, n in counts.items()) or (
            (Concept(None, said),) if said else ()
        )

    def read(self, found: Found, *, concept: str | None = None) -> Contrast:
        """Pairs or labelled examples, in their order."""
        if not _own(found):
            return read_table(found, concept)
        header = _header(found)
        known = self.concepts(found) if "concept" in found.columns else ()
        chosen = pick(known, concept, found) if known else None
        name = chosen.name if chosen else named(header.get("concept", ""), concept, found)
        gathered = Gathered(found)
        for number, row in enumerate(rows(found)):
            if "contrast" in row.values:
                if number:
                    raise DataError(f"{found.given}, {row.where} is a header, which stands on the first line alone.")
            elif _about(row, chosen, found):
                _gather(gathered, row, found)
        return gathered.contrast(name, header.get("source"))


def write(contrast: Contrast, path: str | PathLike[str]) -> None:
    """Write a contrast as JSON Lines, whole or not at all; reading it gives the same contrast and digest.

    Raises `ArtefactError` where the file can't be written, `DataError` where a text is no Unicode.
    """
    about = {"format": FORMAT, "concept": contrast.concept, "source": contrast.source}
    if contrast.paired:
        sides = ({"positive": p.to_json(), "negative": n.to_json()} for p, n in contrast.pairs)
    else:
        classes = (("positive", contrast.positive), ("negative", contrast.negative))
        sides = ({"label": label, **e.to_json()} for label, side in classes for e in side)
    neutral = ({"label": "neutral", **e.to_json()} for e in contrast.neutral)
    with whole(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for number, row in enumerate(chain([{"contrast": about}], sides, neutral)):
            try:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            except UnicodeEncodeError as problem:
                raise DataError(
                    f"row {number} of the contrast holds half of a surrogate pair, which can't be written as UTF-8;"
                    f" nothing was written to {path}. Clean the text first."
                ) from problem


def _own(found: Found) -> bool:
    """Whether rows are objects of ours and not columns of a table."""
    first = found.first
    if any(key in first for key in ("contrast", "messages", "tags")):
        return True
    sides = [first[key] for key in ("positive", "negative") if key in first]
    if sides:
        return not any(key in first for key in ("prompt", "instruction", "question", "input"))
    return "label" in first and all(key in (*FIELDS, "label", "concept") for key in first)


def _header(found: Found) -> dict[str, str]:
    given: Any = found.first.get("contrast")
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise DataError(
            f"{found.given}: the header 'contrast' is {given!r}; expected an object with format and concept."
        )
    header = cast("dict[str, Any]", dict(given))
    for key in header:
        if key not in ("format", "concept", "source"):
            raise DataError(
                f"{found.given}: the header has the field {key!r}. {nearest(key, ('format', 'concept', 'source'))}"
            )
    if header.get("format", FORMAT) != FORMAT:
        raise DataError(
            f"{found.given} is written in format {header['format']}; this version reads format {FORMAT}. A newer"
            " steerlab may read it."
        )
    return {key: str(header[key]) for key in ("concept", "source") if header.get(key) is not None}


def _about(row: Row, chosen: Concept | None, found: Found) -> bool:
    """Whether a row belongs to the concept that is read; a neutral one without a concept belongs to every one."""
    given = row.values.get("concept")
    if (given is None) == (chosen is None):
        return chosen is None or str(given) == chosen.name
    if given is None and str(row.values.get("label")).strip().lower() == "neutral":
        return True
    has, lacks = ("has", "the first row lacks") if chosen is None else ("lacks", "the first row has")
    raise DataError(
        f"{found.given}, {row.where} {has} a 'concept', which {lacks}; expected one in every row, or in none (then a"
        " header"
        ' may name it: {"contrast": {"concept": "…"}}).'
    )


def _gather(gathered: Gathered, row: Row, found: Found) -> None:
    values = row.values
    if "positive" in values or "negative" in values:
        for key in values:
            if key not in _PAIR:
                raise DataError(f"{found.given}, {row.where}: a pair has the field {key!r}. {nearest(key, _PAIR)}")
        for side in ("positive", "negative"):
            if values.get(side) is None:
                raise DataError(
                    f"{found.given}, {row.where}: the pair has no {side!r} side; expected both. Add it, or give the row"
                    " a label instead."
                )
        sides = [_side(values, side, found, row.where) for side in ("positive", "negative")]
        gathered.pair(sides[0], sides[1], row.where)
        return
    if "label" not in values:
        told = ", ".join(values) or "none"
        raise DataError(
            f"{found.given}, {row.where} has the fields {told}; expected a pair ('positive' and 'negative') or a"
            " labelled example ('label' with 'prompt' or 'messages')."
            f" {nearest(_first_unknown(values), ('label', *_PAIR[:2]))}"
        )
    label = label_of(values["label"], found, row.where)
    gathered.single(label, example_from(_rest(values), found, row.where, extra=("label", "concept")), row.where)


def _side(values: Mapping[str, Any], side: str, found: Found, where: str) -> Example:
    value = values[side]
    family = values.get("family")
    if family is not None:
        value = {"prompt": value} if isinstance(value, str) else value
        if isinstance(value, Mapping):
            value = {"family": family, **cast("Mapping[str, Any]", value)}
    return example_from(value, found, f"{where}, {side}")


def _rest(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in ("label", "concept")}


def _first_unknown(values: Mapping[str, Any]) -> str:
    return next((key for key in values if key not in FIELDS), "")
