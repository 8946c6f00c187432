"""Three concepts on a model that nobody here trained (stories260k, which goes on with a story), as a suite.

A prompt is the opening of a story, and an answer is what the model itself goes on to write. `girl`: the opening names a girl,
or a boy. `together`: it names two children, or one. `speech`: somebody speaks in a sentence before it, or is told to have
spoken. What such a small model soon forgets (moods, animals) makes no concept here. Brought out is a concept on openings
of the other side (plain ones, for speech), taken away on its own. Training, dev and test share no opening, name or sentence.

Judges share no word with what made the data: pronouns, and words inside quotation marks. Whether a reply reads well is
judged by the words and the word order of the model's own unsteered texts. There are no items with right answers: cost is
KL and perplexity of the model's own texts.
"""

from __future__ import annotations

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
from steerlab.judges.words import words_of

SHARED = Path(os.environ.get("STEERLAB_SHARED", Path(__file__).resolve().parents[2] / "shared"))
MODEL = SHARED / "models/stories260k"
CONCEPTS = ("girl", "together", "speech")
SPLITS = ("train", "dev", "test")
FRAMES = {
    "train": ("One day, {} went to the park.", "{} had a big box.", "In the morning, {} looked out of the window.",
              "{} went outside to play.", "{} found something under the bed."),
    "dev": ("Once upon a time, {} sat in the garden.", "After lunch, {} went for a walk.", "{} opened the little door."),
    "test": ("{} sat down near the old tree.", "That day, {} had a new idea.", "It was late when {} came home.", "{} saw a red ball."),
}  # fmt: skip
GIRLS = {"train": ("Lily", "Sara", "Mia", "Anna"), "dev": ("Lucy", "Amy", "Sue"), "test": ("Jane", "Emma", "Mary")}
BOYS = {"train": ("Tom", "Ben", "Max", "Tim"), "dev": ("Sam", "Jack", "Bob"), "test": ("John", "Joe", "Dan")}
SPOKEN = {  # said, and told
    "train": (('"Hello!" said Mom.', "Mom said hello."), ('"Come here!" said Dad.', "Dad told them to come."),
              ('"What is that?" asked the boy.', "The boy asked what it was."), ('"Look!" said the girl.', "The girl told them to look."),
              ('"Let us play," said the boy.', "The boy wanted to play.")),
    "dev": (('"Thank you," said Mom.', "Mom gave thanks."), ('"I am here," said Dad.', "Dad was there."),
            ('"Can I help?" asked the girl.', "The girl wanted to help.")),
    "test": (('"Wait!" said the boy.', "The boy told them to wait."), ('"It is time," said Mom.', "Mom said that it was time."),
             ('"Where are you?" asked Dad.', "Dad asked where they were."), ('"I know," said the girl.', "The girl knew.")),
}  # fmt: skip
ASKED = {"girl": ("This is a story of a girl.", "This is a story of a boy."),
         "together": ("This is a story of two friends.", "This is a story of a child."),
         "speech": ('"Hello," said Mom.', "Mom was at home.")}  # fmt: skip
SHE, HE, THEY = {"she", "her", "hers", "herself"}, {"he", "him", "his", "himself"}, {"they", "them", "their", "theirs"}
TOKENS = 48


@dataclass(frozen=True)
class PronounJudge(Judge):
    """The share of some pronouns among those of the third person; 0 in a text without any, missing for an empty one."""

    wanted: frozenset[str]

    def __call__(self, reply: str, example: sl.Example) -> Score:
        words = words_of(reply)
        found = [w for w in words if w in SHE | HE | THEY]
        if not words:
            return Score.missing("the reply is empty")
        return Score(sum(w in self.wanted for w in found) / max(1, len(found)), f"{len(found)} pronouns")


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
    """The three concepts. `pairs` are fitted on, a third as many plain openings come with them."""

    pairs: int = 48
    batch_size: int = 64

    def engine(self) -> sl.HFEngine:
        return _engine(self.batch_size)

    def files(self) -> Sequence[str | os.PathLike[str]]:
        return [MODEL / "model.safetensors", Path(__file__)]

    def tasks(self) -> tuple[Task, ...]:
        return tuple(Task(name, "story", "concepts") for name in CONCEPTS)

    def contrast(self, task: str, seed: int) -> sl.Contrast:
        return _contrast(self, task, seed)

    def drawn(self, task: str, seed: int) -> sl.Contrast:
        """The pairs of a task and seed, their answers written by the model."""
        rng = np.random.default_rng(seed)
        every = sides(task, "train")
        chosen = [every[k] for k in rng.choice(len(every), self.pairs, replace=self.pairs > len(every))]
        both = [self.answered([pair[n] for pair in chosen], seed) for n in (0, 1)]
        kept = [(p, n) for p, n in zip(*both, strict=True) if p.answer and n.answer]
        plain = openings("train")
        neutral = self.answered([plain[k] for k in rng.choice(len(plain), self.pairs // 3)], seed + 1)
        return sl.Contrast(
            tuple(p for p, _ in kept), tuple(n for _, n in kept), True, task, f"openings of stories, seed {seed}",
            neutral=tuple(e for e in neutral if e.answer),
        )  # fmt: skip

    def prompts(self, task: str, direction: str, split: str, n: int, seed: int) -> Sequence[sl.Example]:
        every = openings(split) if (task, direction) == ("speech", "elicit") else [
            pair[direction == "elicit"] for pair in sides(task, split)
        ]  # fmt: skip
        every = list(dict.fromkeys(every))
        rng = np.random.default_rng((seed, SPLITS.index(split)))
        return [sl.Example.ask(every[k]) for k in rng.permutation(len(every))[:n]]

    def judge(self, task: str) -> Judge:
        return {
            "girl": PronounJudge(frozenset(SHE)),
            "together": PronounJudge(frozenset(THEY)),
            "speech": SpeechJudge(),
        }[task]

    def fluent(self) -> Judge:
        return fluency(self.batch_size)

    def prompt_settings(self, task: str, seed: int) -> dict[str, Any]:
        positive, negative = ASKED[task]
        return {"positive": positive, "negative": negative, "placement": "prefix"}

    def neutral(self, split: str, n: int, seed: int) -> Sequence[sl.Example]:
        return self.answered(openings(split)[:n], seed + 2)

    def texts(self, split: str, n: int) -> Sequence[str]:
        return [f"{e.instruction} {e.answer}" for e in self.answered(openings(split)[:n], 700 + SPLITS.index(split))]

    def answered(self, prompts: Sequence[str], seed: int) -> list[sl.Example]:
        """Prompts with what the model goes on to write."""
        asked = [sl.Example.ask(p, family=p) for p in prompts]
        replies = self.engine().generate(asked, None, Sampling(TOKENS, temperature=0.8, seed=seed)) if asked else []
        return [replace(e, answer=r.text) for e, r in zip(asked, replies, strict=True)]


def sides(task: str, split: str) -> list[tuple[str, str]]:
    """Every opening of a split as it shows a concept, and as it doesn't."""
    girls, boys = GIRLS[split], BOYS[split]
    if task == "girl":
        return [(f.format(g), f.format(b)) for f in FRAMES[split] for g, b in zip(girls, boys, strict=True)]
    if task == "together":
        twos = [two for g, b in zip(girls, boys, strict=True) for two in ((g, b), (b, g))]
        return [(f.format(f"{one} and {other}"), f.format(one)) for f in FRAMES[split] for one, other in twos]
    return [(f"{said} {o}", f"{told} {o}") for said, told in SPOKEN[split] for o in openings(split)]


def openings(split: str) -> list[str]:
    """Every frame of a split with every name of it."""
    return [frame.format(name) for frame in FRAMES[split] for name in (*GIRLS[split], *BOYS[split])]


@lru_cache(maxsize=1)
def _engine(batch_size: int) -> sl.HFEngine:
    engine = sl.load(str(MODEL), template="plain", batch_size=batch_size)
    engine.name = "stories260k"
    return engine


@lru_cache(maxsize=8)
def _contrast(suite: StoriesSuite, task: str, seed: int) -> sl.Contrast:
    return suite.drawn(task, seed)


@lru_cache(maxsize=1)
def fluency(batch_size: int) -> FluencyJudge:
    """What reads well, by the model's own unsteered texts, which may stop in mid-sentence."""
    starts = openings("train") * 8
    replies = _engine(batch_size).generate(starts, None, Sampling(TOKENS, temperature=0.8, seed=900))
    texts = [f"{o} {r.text}" for o, r in zip(starts, replies, strict=True)]
    counts = Counter(w for text in texts for w in words_of(text))
    small = frozenset(w for w, _ in counts.most_common(120) if len(w) < 6)
    return FluencyJudge(frozenset(w for w, n in counts.items() if n > 1), small, learn_order(texts, least=2), 0.3)
