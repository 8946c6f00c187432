"""Consistency over wordings or languages: singleton Fleiss' κ_S beside the plain one, and how often the answer is right
(C-3PO).

Items are questions (of a persona or culture); raters are the languages or wordings that they are put in. An answer is
mapped to one of the item's categories; one that matches none is a hallucination, a category of its own in κ_S, so that
hallucinating everywhere isn't agreement. κ alone can rise by collapsing to one answer: `right` stands beside it, where the
data says what is right.

arXiv 2605.12515 (C-3PO); its formula was not to be had, κ_S here is a reconstruction from the abstract. The built-in model:
facts of people it knows, in the wordings that it was taught.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from .. import pilot
from ..contrast import Contrast, Example
from ..judges.words import words_of
from .base import Condition, Metric, Row, Rows, Stage, Suite, mean_of
from .measures import fleiss, fleiss_singleton
from .reading import table, text, texts

RATERS = 4


class Wording(NamedTuple):
    """One way to put a question: which item it is of, in which wording or language, and the answers that it may have."""

    item: str
    rater: str
    prompt: Example
    categories: tuple[tuple[str, ...], ...]  # each a canonical answer, and what else stands for it
    right: str | None


@dataclass(frozen=True)
class Consistency(Suite[Wording]):
    """`n` items, each in all its wordings."""

    about: ClassVar[str] = "the same question in other wordings or languages: agreement that hallucinations can't feign"
    paper: ClassVar[str] = "https://arxiv.org/abs/2605.12515"
    layout: ClassVar[str] = (
        "id, language (or wording), question, categories (a list; synonyms with | between, the canonical one first),"
        " perhaps answer and system"
    )

    def of_pilot(self, variant: str) -> Sequence[Wording]:
        found: dict[str, dict[str, Wording]] = {}
        examples = pilot.abilities(variant, n=60 * self.n, seed=self.seed, split="test", only=("people",))["people"]
        known: dict[str, set[str]] = {}
        for e in examples:
            known.setdefault(e.tags["attribute"], set()).add(e.tags["right"])
        for e in examples:
            name = f"{e.tags['person']}: {e.tags['attribute']}"
            mine = found.setdefault(name, {})
            if len(mine) < RATERS:
                categories = tuple((v,) for v in sorted(known[e.tags["attribute"]]))
                made = Wording(name, str(len(mine)), e.without_answer(), categories, e.tags["right"])
                mine.setdefault(e.instruction, made)
        full = [list(mine.values()) for mine in found.values() if len(mine) > 1]
        return [w for mine in full[: self.n] for w in mine]

    def contrast(self, variant: str) -> Contrast:
        return pilot.contrast("formal", n=64, seed=self.seed, variant=variant)

    def read(self, path: str) -> Sequence[Wording]:
        found: list[Wording] = []
        for cells in table(path, ("id", "question", "categories"), self.layout):
            row = cells[1]
            rater = str(row.get("language") or row.get("wording") or len(found))
            categories = tuple(tuple(s.strip() for s in c.split("|")) for c in texts(cells, "categories"))
            system = row.get("system")
            prompt = Example.ask(text(cells, "question"), system=str(system) if system else None)
            answer = row.get("answer")
            found.append(Wording(str(row["id"]), rater, prompt, categories, None if answer is None else str(answer)))
        return found

    def rows(self, stage: Stage, condition: Condition, items: Sequence[Wording]) -> list[Row]:
        found: list[Row] = []
        for n, (w, reply) in enumerate(zip(items, stage.replies([w.prompt for w in items], condition), strict=True)):
            said = category(reply, w.categories)
            found.append(
                {
                    "unit": w.item, "item": n, "set": "", "rater": w.rater, "category": said,
                    "nothing": float(said is None), "right": None if w.right is None else float(said == w.right),
                    "prompt": w.prompt.instruction, "reply": reply,
                }
            )  # fmt: skip
        return found

    def metrics(self, items: Sequence[Wording]) -> tuple[Metric, ...]:
        found = [
            Metric(
                "kappa_S",
                "agreement over wordings, each hallucination a category of its own",
                _kappa(single=True),
                "nothing",
                wanted=1,
                bounded=True,
            ),
            Metric("kappa", "Fleiss' kappa with all hallucinations as one category", _kappa(single=False), "nothing"),
            mean_of("matches nothing", "nothing", "answers that match no category", wanted=-1, share=True),
        ]
        if any(w.right is not None for w in items):
            found.append(mean_of("right", "right", "answers that match the right category", wanted=1, share=True))
        return tuple(found)


def category(reply: str, categories: Sequence[Sequence[str]]) -> str | None:
    """The canonical name of the only category whose words stand in the reply; None where none does, or several do."""
    said = f" {' '.join(words_of(reply))} "
    found = [c[0] for c in categories if any(f" {' '.join(words_of(name))} " in said for name in c)]
    return found[0] if len(set(found)) == 1 else None


def _kappa(single: bool) -> Callable[[Rows], float | None]:
    def of(rows: Rows) -> float | None:
        items: dict[tuple[str, int], list[str | None]] = {}
        seen: dict[tuple[str, object], int] = {}
        for r in rows:  # a unit that a resample drew twice is two items
            turn = seen[r["unit"], r["item"]] = seen.get((r["unit"], r["item"]), -1) + 1
            items.setdefault((r["unit"], turn), []).append(r["category"])
        rated = list(items.values())
        return fleiss_singleton(rated) if single else fleiss([[c or "nothing" for c in item] for item in rated])

    return of
