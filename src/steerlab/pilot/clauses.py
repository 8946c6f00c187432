"""Clauses, the pieces that answers are made of, and how they become text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .grammar import capitalise, fix_articles

_OPENED = re.compile(r'(?<=, ")[a-z]')


@dataclass(frozen=True, slots=True)
class Clause:
    """A clause without capital or full stop, so that it can stand alone or inside another one.

    `kind` is "say" (a statement), "do" (an imperative) or "line" (a greeting or signature that stays as it is).
    `past` tells which tense a clause added to it should take.
    """

    text: str
    kind: str = "say"
    lead: str = ""
    past: bool = False
    end: str = "."
    breaks: bool = False  # a line break follows (or, for the last line, goes before)

    def bare(self) -> str:
        """The clause with its lead, lower case, without its mark."""
        return f"{self.lead}, {self.text}" if self.lead else self.text

    def sentence(self) -> str:
        """The clause as a sentence."""
        return finish(self.bare(), self.end) if self.kind != "line" else fix_articles(self.text)

    def marked(self) -> bool:
        """Whether a concept may change it."""
        return self.kind != "line"

    def saying(self, text: str, *, end: str | None = None) -> Clause:
        """The same clause in other words, its lead taken in."""
        return replace(self, text=text, lead="", end=self.end if end is None else end)


def finish(text: str, end: str = ".") -> str:
    """A capital at the start, a mark at the end, articles that agree."""
    text = _OPENED.sub(lambda m: m.group(0).upper(), capitalise(fix_articles(text.strip())))
    if text.endswith(('."', '!"', '?"', ".", "!", "?")):
        return text
    if text.endswith('"') and end:
        return f'{text[:-1]}{end}"'
    if text.endswith((":", ",")):
        text = text[:-1]
    return text + end


def render(clauses: Sequence[Clause]) -> str:
    """The clauses as running text."""
    out: list[str] = []
    for i, clause in enumerate(clauses):
        text = clause.sentence()
        if clause.breaks and clause.kind == "line" and i == len(clauses) - 1:
            out.append("\n" + text)
        elif clause.breaks:
            out.append(text + "\n")
        else:
            out.append(text + " ")
    return "".join(out).replace(" \n", "\n").strip()
