"""Writes AxBench's data for concepts that are named: through any OpenAI-compatible endpoint, or by a model on this machine.

For each concept its genre; answers to plain instructions that have it; hard negatives by polysemy (words of the concept that mean
something else, too; what they mean; whether that is truly something else; answers with the word in that sense); and pairs of an
answer with the concept and one without it to the same instruction. Plain answers are shared by the concepts of a genre. Rule
concepts (`rules`) are checked by their rule. What the writer doesn't answer, or answers unusably, is left out and counted.

Source: AxBench, https://arxiv.org/abs/2501.17148, sections 3 and 4, appendix; the wordings are ours.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ...contrast import Example
from ...data.requests import ELICIT, asked
from ...errors import ConfigError, DataError
from ...files import whole, write_text
from ...judges.answers import Answer
from ...judges.spec import parse_rule
from ...judges.words import stem, words_of
from .folder import LATENT, NAMES, PAIRS, TRAIN
from .pool import GENRES, instructions

NOBODY = "EEEEE"  # what stands for the concept of a shared negative
_GENRE = (
    "A concept is named below. In which kind of text does it turn up most: text, code or math? Answer with that one word.\n\n"
    "Concept: {concept}"
)
_SHORT = "\n\n(Answer in at most {words} words, and say nothing about this request.)"
_AMBIGUOUS = (
    "Name {n} single words that belong to the concept below and that also mean something quite different elsewhere. One a line,"
    " nothing else.\n\nConcept: {concept}"
)
_SENSE = (
    "The word '{word}' belongs to this concept: {concept}. Has it another meaning that has nothing to do with the concept? If so,"
    " give that meaning in one short sentence. If not, answer None."
)
_APART = (
    "Are these two clearly different things? Answer yes or no.\n\nA concept: {concept}\n\n"
    "A meaning of the word '{word}': {sense}"
)
_IN_THAT_SENSE = (
    "{instruction}\n\n(Use the word '{word}' in this meaning: {sense} Keep this out of the answer altogether: {concept}. At most"
    " {words} words.)"
)


class Asker(Protocol):
    """Answers messages, None where there is no answer (`judges.client.Client`)."""

    def answers(self, messages: Sequence[str]) -> list[Answer | None]:
        """An answer for each message."""
        ...


@dataclass(frozen=True)
class Named:
    """A concept to write for: its words; its genre, where that is known; the rule that checks it, where there is one."""

    words: str
    genre: str = ""
    rule: str = ""
    ref: str = ""


@dataclass(frozen=True)
class WriteOptions:
    """How much is written.

    `examples` answers with each concept (and as many plain ones a genre) to fit on, `evals` of each class to
    detect in, `hard` hard negatives from `ambiguous` words, none longer than `words` words."""

    examples: int = 72
    evals: int = 36
    hard: int = 24
    ambiguous: int = 10
    words: int = 90
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.examples, self.evals, self.ambiguous, self.words) < 1 or self.hard < 0:
            raise ConfigError(
                f"examples is {self.examples}, evals {self.evals}, ambiguous {self.ambiguous}, words {self.words},"
                f" hard {self.hard}; expected at least 1 (hard: 0)."
            )


@dataclass
class Written:
    """The tables of the layout, and what was left out, by reason."""

    train: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    latent: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    pairs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    names: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    wanted: int = 0

    def drop(self, reason: str) -> None:
        """Count what is left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def told(self) -> str:
        """The counts in words: what was wanted is written or left out."""
        made = len(self.train) + len(self.latent)
        lost = (
            "; ".join(f"{n} × {reason}" for reason, n in sorted(self.dropped.items(), key=lambda p: -p[1])) or "nothing"
        )
        concepts = f"{len(self.pairs)} pairs, for {len(self.names)} concepts"
        return f"{made} texts of {self.wanted} wanted, and {concepts}; left out: {lost}"

    def to_json(self) -> dict[str, Any]:
        """The counts as plain data."""
        return {
            "wanted": self.wanted,
            "train": len(self.train),
            "latent": len(self.latent),
            "pairs": len(self.pairs),
            "dropped": self.dropped,
        }


def write(
    writer: Asker,
    concepts: Sequence[Named],
    options: WriteOptions = WriteOptions(),
    pool: Mapping[str, Sequence[str]] | None = None,
) -> Written:
    """Every table for these concepts. `pool` has instructions by genre, in place of those that are built in.

    Raises `DataError` where no concept is named, or the pool is too small for the texts that share no instruction.
    """
    if not concepts:
        raise DataError("no concept is named; give some, or a metadata.jsonl that has them.")
    out = Written()
    genres = _genres(writer, concepts, out)
    used = sorted({*genres, "text"}, key=GENRES.index)
    fit, held = {}, {}
    for genre in used:
        every = _shuffled(pool[genre] if pool else instructions(genre), options.seed)
        if len(every) < options.examples + options.evals:
            raise DataError(
                f"the genre {genre} has {len(every)} instructions, and {options.examples} + {options.evals} different ones are"
                " needed; give more, or write fewer examples."
            )
        fit[genre], held[genre] = every[: options.examples], every[options.examples :]
    plain = {genre: _plain(writer, fit[genre], options) for genre in used}
    for genre in dict.fromkeys(genres):
        for prompt, text in zip(fit[genre], plain[genre], strict=True):
            _keep(
                out, out.train, text, _row(prompt, text, NOBODY, genre, "negative", "-1"), "a plain answer is missing"
            )
    for key, (concept, genre) in enumerate(zip(concepts, genres, strict=True)):
        _one(writer, out, key, concept, genre, fit[genre], plain[genre], held, options)
        out.names.append({
            "concept_id": key, "concept": concept.words, "ref": concept.ref, "concept_genres_map": {concept.words: [genre]},
            **({"rule": concept.rule} if concept.rule else {}),
        })  # fmt: skip
    return out


def _one(
    writer: Asker, out: Written, key: int, concept: Named, genre: str, prompts: Sequence[str], plain: Sequence[str | None],
    held: Mapping[str, Sequence[str]], options: WriteOptions,
) -> None:  # fmt: skip
    """A concept's own rows."""
    shows = _with(writer, prompts, concept, options, out)
    for prompt, text, without in zip(prompts, shows, plain, strict=True):
        row = _row(prompt, text, concept.words, genre, "positive", str(key))
        _keep(out, out.train, text, row, "an answer with the concept is missing")
        if text is not None and without is not None:
            out.pairs.append({
                "input": prompt, "winning_output": text, "losing_output": without, "output_concept": concept.words,
                "concept_genre": genre, "concept_id": str(key),
            })  # fmt: skip
    fresh = held[genre][: options.evals]
    for prompt, text in zip(fresh, _with(writer, fresh, concept, options, out), strict=True):
        row = _row(prompt, text, concept.words, genre, "positive", str(key))
        _keep(out, out.latent, text, row, "an answer with the concept is missing")
    others = held["text"][-options.evals :]
    for prompt, text in zip(others, _plain(writer, others, options), strict=True):
        _keep(
            out,
            out.latent,
            text,
            _row(prompt, text, concept.words, "text", "negative", str(key)),
            "a plain answer is missing",
        )
    if options.hard and not concept.rule:  # a rule's words have no second sense
        _hard(writer, out, key, concept, genre, held[genre], options)


class Sense(NamedTuple):
    """A word of a concept, and another meaning of it."""

    word: str
    sense: str


def _hard(
    writer: Asker, out: Written, key: int, concept: Named, genre: str, prompts: Sequence[str], options: WriteOptions
) -> None:
    """Answers with the concept's ambiguous words in their other sense."""
    senses = _senses(writer, concept, options, out)
    if not senses:
        out.wanted += options.hard
        for _ in range(options.hard):
            out.drop("no word of the concept has another sense")
        return
    given = [(prompts[n % len(prompts)], senses[n % len(senses)]) for n in range(options.hard)]
    messages = [
        _filled(_IN_THAT_SENSE, instruction=prompt, word=s.word, sense=s.sense, concept=concept.words, words=options.words)
        for prompt, s in given
    ]  # fmt: skip
    for (prompt, s), answer in zip(given, writer.answers(messages), strict=True):
        text = _text(answer)
        row = _row(prompt, text, f"{s.word}//{s.sense}", genre, "hard negative", str(key))
        if text is not None and stem(s.word) not in {stem(w) for w in words_of(text)}:
            out.wanted += 1
            out.drop("a hard negative lacks its word")
        else:
            _keep(out, out.latent, text, row, "a hard negative is missing")


def _senses(writer: Asker, concept: Named, options: WriteOptions, out: Written) -> list[Sense]:
    """Ambiguous words of a concept with another sense each, those kept that are truly something else."""
    (listed,) = writer.answers([_filled(_AMBIGUOUS, n=options.ambiguous, concept=concept.words)])
    words = _words(_text(listed) or "")[: options.ambiguous]
    said = writer.answers([_filled(_SENSE, word=word, concept=concept.words) for word in words])
    found = [
        Sense(w, " ".join(text.split())) for w, a in zip(words, said, strict=True) if (text := _text(a)) is not None
    ]
    found = [s for s in found if not s.sense.lower().startswith("none")]
    told = writer.answers([_filled(_APART, concept=concept.words, word=s.word, sense=s.sense) for s in found])
    kept = [s for s, a in zip(found, told, strict=True) if _yes(_text(a) or "")]
    if len(kept) < len(words):
        out.dropped["a word without another sense"] = (
            out.dropped.get("a word without another sense", 0) + len(words) - len(kept)
        )
    return kept


def _with(
    writer: Asker, prompts: Sequence[str], concept: Named, options: WriteOptions, out: Written
) -> list[str | None]:
    """Answers with the concept; of a rule concept those alone that keep its rule."""
    messages = [
        asked(Example.ask(p), ELICIT[k % len(ELICIT)], concept.words).instruction + _filled(_SHORT, words=options.words)
        for k, p in enumerate(prompts)
    ]
    texts = [_text(answer) for answer in writer.answers(messages)]
    if not concept.rule:
        return texts
    judge = parse_rule(concept.rule)
    kept = [
        t if t is not None and judge.present(judge(t, Example.ask(p))) else None
        for p, t in zip(prompts, texts, strict=True)
    ]
    broken = sum(t is not None and k is None for t, k in zip(texts, kept, strict=True))
    if broken:
        out.dropped["of them: the answer doesn't keep the rule"] = (
            out.dropped.get("of them: the answer doesn't keep the rule", 0) + broken
        )
    return kept


def _plain(writer: Asker, prompts: Sequence[str], options: WriteOptions) -> list[str | None]:
    return [_text(a) for a in writer.answers([p + _filled(_SHORT, words=options.words) for p in prompts])]


def _genres(writer: Asker, concepts: Sequence[Named], out: Written) -> list[str]:
    """Each concept's genre; text where the writer names none, which is counted."""
    open_ = [c for c in concepts if c.genre not in GENRES]
    told = dict(
        zip((c.words for c in open_), writer.answers([_filled(_GENRE, concept=c.words) for c in open_]), strict=True)
    )
    found: list[str] = []
    for concept in concepts:
        genre = concept.genre if concept.genre in GENRES else None
        if genre is None:
            named = [w for w in words_of(_text(told[concept.words]) or "") if w in GENRES]
            genre = named[-1] if named else None
        if genre is None:
            out.drop("a genre that wasn't named (taken for text)")
        found.append(genre or "text")
    return found


def _keep(out: Written, table: list[dict[str, Any]], text: str | None, row: dict[str, Any], reason: str) -> None:
    out.wanted += 1
    if text is None:
        out.drop(reason)
    else:
        table.append(row)


def _row(prompt: str, text: str | None, words: str, genre: str, category: str, key: str) -> dict[str, Any]:
    return {
        "input": prompt, "output": text, "output_concept": words, "concept_genre": genre, "category": category,
        "dataset_category": "instruction", "concept_id": key,
    }  # fmt: skip


def _filled(template: str, **slots: str | int) -> str:
    """The template with its slots filled once: braces in what is put in stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda m: str(slots[m.group(1)]), template)


def _text(answer: Answer | None) -> str | None:
    """An answer's text; None where there is none, or nothing in it."""
    text = "" if answer is None else re.sub(r"<think>.*?(?:</think>|$)", "", answer.text, flags=re.DOTALL).strip()
    return text or None


def _words(text: str) -> list[str]:
    """Single words, one a line, without marks and numbers before them."""
    lines = (re.sub(r"^[\W\d_]+|[\W_]+$", "", line) for line in text.splitlines())
    return list(dict.fromkeys(line.lower() for line in lines if line and len(line.split()) == 1))


def _yes(text: str) -> bool:
    said = [w for w in words_of(text) if w in ("yes", "no")]
    return bool(said) and said[-1] == "yes"


def _shuffled(texts: Iterable[str], seed: int) -> list[str]:
    found = list(dict.fromkeys(texts))
    random.Random(seed).shuffle(found)
    return found


# --- files ----------------------------------------------------------------------------------------------------------


def save(written: Written, folder: str | Path) -> list[Path]:
    """The layout's files, and a report of what was left out. Raises `DataError` where pyarrow is missing."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as problem:
        raise DataError(
            "writing Parquet needs pyarrow, which is not installed: pip install 'steerlab[data]'."
        ) from problem
    folder = Path(folder)
    made: list[Path] = []
    for name, rows in ((TRAIN, written.train), (LATENT, written.latent), (PAIRS, written.pairs)):
        if rows:
            path = folder / f"{name}.parquet"
            with whole(path) as part:
                parquet.write_table(arrow.Table.from_pylist(rows), part)
            made.append(path)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written.names)
    report = json.dumps(written.to_json(), indent=1, ensure_ascii=False) + "\n"
    return [*made, write_text(folder / f"{NAMES}.jsonl", lines), write_text(folder / "report.json", report)]


def named_in(path: str | Path) -> list[Named]:
    """The concepts that a metadata.jsonl names, with their genres and rules (Concept500's names, say). Raises `DataError`."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return [
            Named(
                row["concept"],
                next(iter(row.get("concept_genres_map", {}).get(row["concept"], [])), ""),
                row.get("rule", ""),
                row.get("ref", ""),
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DataError(
            f"{path} can't be read as AxBench's metadata.jsonl (a line has 'concept'): {problem!r}."
        ) from problem
