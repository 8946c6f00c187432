"""The data of a made steering: written, filtered by a judge that doesn't measure later, with near misses left alone.

Without a rule two judges are trained on disjoint families of what was written: one filters what is fitted, the other measures.
Near misses are answers to requests for other traits (named by the writer where it can, else common ones): they stand among the
data's neutral examples, so that what is fitted is the trait and not being asked for something.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..contrast import Contrast, Example
from ..data import MakeOptions, make, write
from ..data.requests import asked
from ..engines.base import Sampling
from ..errors import DataError
from ..files import write_text
from ..judges.base import Judge
from ..judges.learned import FOLDS, LearnedJudge
from ..judges.spec import parse_rule
from .instructions import unlike
from .wordings import chosen

if TYPE_CHECKING:
    from ..engines.base import Runner

SHARES = (0.2, 0.2, 0.6)  # judge that filters, judge that measures, what is fitted
NEAR = 4
APART = (
    0.1  # by how much an answer must show more of the trait than its plain counterpart; a judge of few texts is unsure
)
ASK = (
    "A writer gives texts this trait: {concept}. Name {n} other traits of texts that a careless reader could mistake for it,"
    " one on each line, each in two to five words, nothing else."
)


@dataclass(frozen=True)
class Written:
    """What is fitted, the judge's rule, and what was done, for the report."""

    contrast: Contrast
    rule: str
    told: dict[str, Any]


def written(
    writer: Runner,
    concept: str,
    instructions: Sequence[Example],
    folder: Path,
    options: MakeOptions,
    rule: str | None,
) -> Written:
    """Write, filter and keep the data in `folder`. Raises `DataError` where the writer doesn't show the trait."""
    judge = None if rule is None else parse_rule(rule)
    wordings, figures = _wordings(writer, concept, instructions, folder, options)
    options = replace(options, elicit=wordings)
    made = make(writer, concept, instructions, out=folder / "written.jsonl", judge=judge, options=options)
    told: dict[str, Any] = {"pairs": made.report.made, "wanted": made.report.wanted, "dropped": made.report.told()}
    told |= {"wordings": list(wordings), "wordings_tried": {w: round(a, 3) for w, a in figures.items()}}
    if rule is None:
        fitted, rule, more = _judged(made.contrast, folder, options.seed)
        told |= more
    else:
        fitted = made.contrast
    near, traits = near_misses(writer, concept, instructions, options)
    told["near_misses"] = list(traits)
    fitted = replace(fitted, concept=concept, neutral=(*fitted.neutral, *near))
    write(fitted, folder / "data.jsonl")
    return Written(fitted, rule, {**told, "fitted": len(fitted), "neutral": len(near)})


def _wordings(
    writer: Runner, concept: str, instructions: Sequence[Example], folder: Path, options: MakeOptions
) -> tuple[tuple[str, ...], dict[str, float]]:
    """The wordings that this writer is asked in, tried once and kept."""
    path = folder / "wordings.json"
    if not path.is_file():
        kept, figures = chosen(writer, concept, instructions, options.max_new_tokens, options.seed)
        write_text(path, json.dumps({"kept": kept, "auroc": figures}, indent=1, ensure_ascii=False) + "\n")
    found = json.loads(path.read_text(encoding="utf-8"))
    return tuple(found["kept"]), found["auroc"]


def _judged(made: Contrast, folder: Path, seed: int) -> tuple[Contrast, str, dict[str, Any]]:
    """What is fitted, filtered by one learned judge, and the rule of the other, which measures."""
    try:
        parts = made.split(*SHARES, seed=seed)
    except DataError as problem:
        raise DataError(
            f"{len(made)} pairs are too few, or of too few wordings, for two judges and a fit ({problem}) Ask for more pairs"
            " (--pairs), give instructions of more kinds, or a rule that tells the trait (--rule words:...)."
        ) from problem
    files = [folder / "filter.jsonl", folder / "judge.jsonl"]
    for part, file in zip(parts, files, strict=False):
        write(_in_families(replace(part, neutral=())), file)
    filtering, measuring = (LearnedJudge(str(file)) for file in files)
    try:
        quality = {"filter": filtering.quality, "judge": measuring.quality}
    except DataError as problem:
        raise DataError(
            f"answers with and without the trait aren't told apart ({problem}) The model doesn't show it, or too few answers"
            " were written: look at written.jsonl, describe the trait in other words, ask for more pairs (--pairs), give a"
            " rule that tells it (--rule words:...), or have another model write (--writer)."
        ) from problem
    kept = [(p, n) for p, n in parts[2].pairs if _further(filtering, p, n)]
    if len(kept) < 8:
        raise DataError(
            f"the judge keeps {len(kept)} of {len(parts[2])} pairs; a fit needs at least 8. Ask for more pairs (--pairs), or"
            " give a rule (--rule words:...)."
        )
    positive, negative = zip(*kept, strict=True)
    filtered = replace(parts[2], positive=positive, negative=negative)
    rule = f"learned,data={str(files[1]).replace(',', ',,')}"  # a comma in a value is doubled
    return filtered, rule, {"judges": quality, "filtered_out": len(parts[2]) - len(kept)}


def _further(judge: Judge, positive: Example, negative: Example) -> bool:
    """Whether the one answer surely shows more of the trait than the other; not where the judge can't tell of either."""
    more, less = (judge(e.answer or "", e).value for e in (positive, negative))
    return more is not None and less is not None and more - less > APART


def _in_families(part: Contrast) -> Contrast:
    """Families on which a judge can be tried unseen: wordings where these are enough, else instructions, a pair each."""
    if len({n.family for n in part.negative}) >= FOLDS:
        return part
    sides = (part.positive, part.negative)
    positive, negative = (
        tuple(replace(e, family=n.instruction) for e, n in zip(side, part.negative, strict=True)) for side in sides
    )
    return replace(part, positive=positive, negative=negative)


def near_misses(
    writer: Runner, concept: str, instructions: Sequence[Example], options: MakeOptions
) -> tuple[list[Example], tuple[str, ...]]:
    """Answers to requests for traits that aren't this one, and these traits."""
    traits = _named(writer, concept) or unlike(concept, NEAR)
    if not traits:
        return [], ()
    prompts = [
        asked(e.without_answer(), options.elicit[k % len(options.elicit)], traits[k % len(traits)])
        for k, e in enumerate(instructions[-4 * NEAR :])
    ]
    sampling = Sampling(options.max_new_tokens, options.temperature, seed=options.seed)
    said = [(p, _reply(writer, p, sampling)) for p in prompts]
    return [replace(p, answer=text) for p, text in said if text], traits


def _reply(writer: Runner, prompt: Example, sampling: Sampling) -> str:
    """What the writer says; nothing where it refuses the prompt."""
    try:
        return writer.generate([prompt], None, sampling)[0].text.strip()
    except DataError:
        return ""


def _named(writer: Runner, concept: str) -> tuple[str, ...]:
    """Traits that the writer names; none where its answer is no list of short phrases."""
    said = _reply(writer, Example.ask(ASK.format(concept=concept, n=NEAR)), Sampling(80))
    lines = [re.sub(r"^\s*(?:[-•*]|\d+[.)])\s*", "", line).strip(" .") for line in said.splitlines()]
    good = [line for line in lines if 2 <= len(line.split()) <= 6 and concept.lower() not in line.lower()]
    return tuple(dict.fromkeys(good))[:NEAR] if len(good) >= NEAR else ()


def sample(contrast: Contrast, count: int) -> list[dict[str, str]]:
    """Some pairs for a person to look at."""
    step = max(1, len(contrast) // count)
    return [
        {"instruction": n.instruction, "with": cast("str", p.answer), "without": cast("str", n.answer)}
        for p, n in contrast.pairs[::step][:count]
    ]
