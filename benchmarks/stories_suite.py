"""Three concepts on a model that nobody here trained (stories260k, which goes on with a story), as a suite.

A prompt is the opening of a story. In the data a sentence before it shows the concept (an unhappy event, a wild animal,
somebody who speaks) or its counterpart (a happy one, a thing, reported speech), and the answers are what the model itself
goes on to write. Brought out is a concept on openings alone, taken away on openings with such a sentence before them.
Training, dev and test share no sentence, no opening and no name.

Judges share no word with the sentences: sadness is the mean valence of the other words of the VADER lexicon, animals are
the others of a CC0 list. Whether a reply reads well is judged by the words and the word order of the model's own unsteered
texts. There are no items with right answers: cost is KL and perplexity of the model's own texts.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import steerlab as sl
from steerlab.engines.base import Sampling
from steerlab.evals.suite import Suite, Task
from steerlab.judges.base import Judge, Score
from steerlab.judges.fluency import FluencyJudge, learn_order
from steerlab.judges.rule import LexiconJudge, stem, words_of

SHARED = Path(os.environ.get("STEERLAB_SHARED", Path(__file__).resolve().parents[2] / "shared"))
MODEL, LEXICON = SHARED / "models/stories260k", SHARED / "data/sentiment_lexicon/vader_lexicon.txt"
ANIMALS = SHARED / "data/wordlists/animals_common.json"
SPLITS = ("train", "dev", "test")
SHARES = {"train": (0, 5), "dev": (5, 8), "test": (8, 12)}  # of frames, sentences and names
NAMES = ("Lily", "Tom", "Sara", "Ben", "Mia", "Max", "Anna", "Tim", "Lucy", "Sam", "Amy", "Jack")
FRAMES = (
    "One day, {} went to the park.", "Once upon a time, there was a child named {}.", "{} had a big box.",
    "In the morning, {} looked out of the window.", "{} and a friend were in the garden.", "{} went outside to play.",
    "It was late and {} was at home.", "{} found something under the bed.", "{} sat down near the old tree.",
    "After lunch, {} went for a walk.", "{} opened the little door.", "That day, {} had a new idea.",
)  # fmt: skip
SENTENCES = {  # the concept, its counterpart
    "sadness": tuple(zip((
        "The toy broke.", "Nobody came to the party.", "It rained all day and there was no game.", "The ice cream fell on the floor.",
        "The friend went far away.", "The ball was lost.", "The kite was gone.", "Mom was sick.",
        "The tower fell down.", "There was no cake left.", "The swing was broken.", "The door was shut and it was dark."),
        ("The toy was new.", "Everybody came to the party.", "The sun was out all day and there was a game.", "The ice cream was big and sweet.",
         "The friend came to stay.", "The ball was found.", "The kite was high up.", "Mom was home.",
         "The tower stood up tall.", "There was a lot of cake left.", "The swing was ready.", "The door was open and it was bright."),
        strict=True)),
    "animals": tuple(zip(
        ("A lion was there.", "There was a monkey.", "A fox came by.", "There was a frog.", "A tiger was there.", "A wolf came by.",
         "There was an elephant.", "A goat was there.", "A zebra came by.", "There was a turtle.", "A snake was there.", "A crocodile came by."),
        ("A chair was there.", "There was a table.", "A truck came by.", "There was a cup.", "A lamp was there.", "A train came by.",
         "There was a box.", "A book was there.", "A bike came by.", "There was a hat.", "A bed was there.", "A car came by."),
        strict=True)),
    "speech": tuple(zip(
        ('"Hello!" said Mom.', '"Come here!" said Dad.', '"What is that?" asked the boy.', '"Look!" said the girl.', '"Let us play," said the boy.',
         '"Thank you," said Mom.', '"I am here," said Dad.', '"Can I help?" asked the girl.',
         '"Wait!" said the boy.', '"It is time," said Mom.', '"Where are you?" asked Dad.', '"I know," said the girl.'),
        ("Mom said hello.", "Dad told them to come.", "The boy asked what it was.", "The girl told them to look.", "The boy wanted to play.",
         "Mom gave thanks.", "Dad was there.", "The girl wanted to help.",
         "The boy told them to wait.", "Mom said that it was time.", "Dad asked where they were.", "The girl knew."),
        strict=True)),
}  # fmt: skip
TOKENS = 48


@dataclass(frozen=True)
class SadJudge(Judge):
    """Below 0 on the mean valence of lexicon words, brought from [-4, 4] to [1, 0]; missing for a text without any."""

    valence: dict[str, float]

    def __call__(self, reply: str, example: sl.Example) -> Score:
        found = [self.valence[w] for w in words_of(reply) if w in self.valence]
        return Score(0.5 - sum(found) / len(found) / 8) if found else Score.missing("no word of the lexicon")


@dataclass(frozen=True)
class SpeechJudge(Judge):
    """The share of words inside quotation marks."""

    threshold: float = 0.2

    def __call__(self, reply: str, example: sl.Example) -> Score:
        pieces = reply.split('"')
        inside, all_of_them = (sum(len(words_of(p)) for p in ps) for ps in (pieces[1::2], pieces))
        return Score(inside / all_of_them) if all_of_them else Score.missing("the reply is empty")


@dataclass(frozen=True)
class StoriesSuite(Suite):
    """The three concepts. `pairs` are fitted on, a third as many openings without any sentence come with them."""

    pairs: int = 48
    batch_size: int = 64

    def engine(self) -> sl.HFEngine:
        return _engine(self.batch_size)

    def files(self) -> Sequence[str | os.PathLike[str]]:
        return [MODEL / "model.safetensors", LEXICON, ANIMALS, Path(__file__)]

    def tasks(self) -> tuple[Task, ...]:
        return tuple(Task(name, "story", "concepts") for name in SENTENCES)

    def contrast(self, task: str, seed: int) -> sl.Contrast:
        sentences, starts = part(SENTENCES[task], "train"), openings("train")
        rng = np.random.default_rng(seed)
        drawn = [
            (sentences[rng.integers(len(sentences))], starts[rng.integers(len(starts))]) for _ in range(self.pairs)
        ]
        sides = [self._answered([f"{s[side]} {o}" for s, o in drawn], seed) for side in (0, 1)]
        kept = [(p, n) for p, n in zip(*sides, strict=True) if p.answer and n.answer]
        plain = self._answered([starts[rng.integers(len(starts))] for _ in range(self.pairs // 3)], seed + 1)
        return sl.Contrast(
            tuple(p for p, _ in kept), tuple(n for _, n in kept), True, task, f"openings of stories, seed {seed}",
            neutral=tuple(e for e in plain if e.answer),
        )  # fmt: skip

    def prompts(self, task: str, direction: str, split: str, n: int, seed: int) -> Sequence[sl.Example]:
        starts, sentences = openings(split), part(SENTENCES[task], split)
        rng = np.random.default_rng((seed, SPLITS.index(split)))
        order = [starts[k] for k in rng.permutation(len(starts))[:n]]
        if direction == "elicit":
            return [sl.Example.ask(o) for o in order]
        return [sl.Example.ask(f"{sentences[k % len(sentences)][0]} {o}") for k, o in enumerate(order)]

    def judge(self, task: str) -> Judge:
        return judges()[task]

    def fluent(self) -> Judge:
        return fluency(self.batch_size)

    def prompt_settings(self, task: str, seed: int) -> dict[str, Any]:
        positive, negative = part(SENTENCES[task], "train")[seed % 5]
        return {"positive": positive, "negative": negative, "placement": "prefix"}

    def neutral(self, split: str, n: int, seed: int) -> Sequence[sl.Example]:
        return self._answered(openings(split)[:n], seed + 2)

    def texts(self, split: str, n: int) -> Sequence[str]:
        starts = openings(split)[:n]
        return [f"{e.instruction} {e.answer}" for e in self._answered(starts, 700 + SPLITS.index(split))]

    def _answered(self, prompts: Sequence[str], seed: int) -> list[sl.Example]:
        """Prompts with what the model goes on to write."""
        asked = [sl.Example.ask(p, family=p) for p in prompts]
        replies = self.engine().generate(asked, None, Sampling(TOKENS, temperature=0.8, seed=seed)) if asked else []
        return [replace(e, answer=r.text) for e, r in zip(asked, replies, strict=True)]


def part(things: Sequence[Any], split: str) -> Sequence[Any]:
    """A split's share of frames, names or sentences."""
    return things[slice(*SHARES[split])]


def openings(split: str) -> list[str]:
    """Every frame of a split with every name of it."""
    return [frame.format(name) for name in part(NAMES, split) for frame in part(FRAMES, split)]


@lru_cache(maxsize=1)
def _engine(batch_size: int) -> sl.HFEngine:
    engine = sl.load(str(MODEL), template="plain", batch_size=batch_size)
    engine.name = "stories260k"
    return engine


@lru_cache(maxsize=1)
def judges() -> dict[str, Judge]:
    """Each concept's judge, without the words of the sentences."""
    used = {stem(w) for pairs in SENTENCES.values() for pair in pairs for s in pair for w in words_of(s)}
    rows = (row.split("\t") for row in LEXICON.read_text(encoding="utf-8").splitlines() if row.strip())
    valence = {word: float(value) for word, value, *_ in rows if stem(word) not in used}
    animals = json.loads(ANIMALS.read_text(encoding="utf-8"))["animals"]
    animals = [
        *animals,
        "bird",
        "bunny",
        "puppy",
        "kitty",
        "kitten",
        "butterfly",
        "bug",
    ]  # a child's words, which it lacks
    return {
        "sadness": SadJudge(valence),
        "animals": LexiconJudge(tuple(a for a in animals if stem(a) not in used), enough=2),
        "speech": SpeechJudge(),
    }


@lru_cache(maxsize=1)
def fluency(batch_size: int) -> FluencyJudge:
    """What reads well, by the model's own unsteered texts."""
    starts = openings("train") * 10
    replies = _engine(batch_size).generate(starts, None, Sampling(TOKENS, temperature=0.8, seed=900))
    texts = [f"{o} {r.text}" for o, r in zip(starts, replies, strict=True)]
    counts = Counter(w for text in texts for w in words_of(text))
    small = frozenset(w for w, _ in counts.most_common(120) if len(w) < 6)
    return FluencyJudge(frozenset(w for w, n in counts.items() if n > 1), small, learn_order(texts, least=2))
