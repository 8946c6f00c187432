"""A pair of plain text files: one example per line, positives in one file and negatives in the other.

A line is the user's turn, without an answer: methods that compare class means read activations over it. Blank lines
are skipped, and the lines of the two files are not taken for pairs. Named as `positive.txt:negative.txt`, as a folder
that holds `positive.txt` and `negative.txt` (or one `NAME.pos` with its `NAME.neg`), as either file of such a couple,
or by their common name without `.pos` and `.neg`. JSON lists of plain strings are read in place of text files, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

from ...contrast import Contrast, Example
from ...errors import DataError
from ..examples import blank, both, named
from ..rows import Found, absent, lines, look, parse, rows
from .base import Reader

_COUPLES = (("positive.txt", "negative.txt"), ("pos.txt", "neg.txt"))
_SUFFIXES = (".pos", ".neg")


class Couple(NamedTuple):
    """The two files."""

    positive: Path
    negative: Path


class Text(Reader):
    """Two text files, one example per line."""

    what = (
        "two text files, one prompt per line: positive.txt:negative.txt, a folder with both, or NAME.pos with NAME.neg"
    )
    expects = "positive.txt and negative.txt, or NAME.pos and NAME.neg, with one example per line"
    general: ClassVar[bool] = True

    def recognises(self, found: Found) -> bool:
        """A couple of files, or any text file (which then lacks its other half)."""
        return bool(_couples(found)) or found.kind == "text"

    def read(self, found: Found, *, concept: str | None = None) -> Contrast:
        """Each line as a user's turn; unpaired."""
        couples = _couples(found)
        if not couples and found.kind == "missing":
            raise absent(found)
        if len(couples) != 1:
            told = found.told() if not couples else "a folder with " + ", ".join(c.positive.name for c in couples)
            expected = "one couple: " + self.expects if couples else self.expects
            raise DataError(
                f"{found.given} is {told}; expected {expected}. Name the two files as positive.txt:negative.txt."
            )
        couple = couples[0]
        sides = both(found, _examples(couple.positive), _examples(couple.negative), "text file")
        source = found.source if found.kind == "folder" else f"{couple.positive.name}:{couple.negative.name}"
        return Contrast(*sides, concept=named("", concept, found), source=source)


def _couples(found: Found) -> list[Couple]:
    """The files that a path means: none where it means none, several where a folder holds several."""
    path = found.path
    if found.kind == "folder":
        named_so = [Couple(path / p, path / n) for p, n in _COUPLES if p in found.files and n in found.files]
        stems = [name.removesuffix(".pos") for name in found.files if name.endswith(".pos")]
        return named_so or [Couple(*_by_suffix(path / s)) for s in stems if f"{s}.neg" in found.files]
    if found.kind == "missing":
        if all(p.is_file() for p in _by_suffix(path)):
            return [Couple(*_by_suffix(path))]
        # a Windows path holds a colon of its own, so every colon may be the one between the two
        cuts = [i for i, c in enumerate(found.given) if c == ":"]
        halves = [(Path(found.given[:i]), Path(found.given[i + 1 :])) for i in cuts]
        return [Couple(p, n) for p, n in halves if p.is_file() and n.is_file()]
    for couple in (*_COUPLES, _SUFFIXES):
        for mine in couple:
            stem = path.name.removesuffix(mine)
            if path.name.endswith(mine) and (mine in _SUFFIXES or not stem):
                files = [path.with_name(stem + other) for other in couple]
                if all(p.is_file() for p in files):
                    return [Couple(*files)]
    return []


def _by_suffix(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + _SUFFIXES[0]), path.with_name(path.name + _SUFFIXES[1])


def _examples(path: Path) -> list[Example]:
    if path.suffix == ".json":
        return [Example.ask(text) for text in _strings(path)]
    found = look(str(path))
    if found.kind not in ("text", "csv"):
        raise DataError(
            f"{path} is {found.told()}; expected plain text, one example per line. Name its own layout instead."
        )
    texts = (line.strip() for _, line in lines(path))
    return [Example.ask(text) for text in texts if text]


def _strings(path: Path) -> list[str]:
    """A JSON list of plain strings."""
    found = Found(str(path), path, "json")
    value: Any = parse("".join(line for _, line in lines(path)), found)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in cast("list[Any]", value)):
        first = next(rows(found), None)
        told = "no list" if first is None else f"a list of objects ({', '.join(first.values)})"
        raise DataError(f"{path} is {told}; expected a JSON list of plain strings.")
    texts = cast("list[str]", value)
    for number, item in enumerate(texts, 1):
        if blank(item):
            raise DataError(f"{path}, item {number} is blank; expected text. Fill it in, or leave it out.")
    return texts
