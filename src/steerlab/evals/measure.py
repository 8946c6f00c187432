"""Measures one steering at several strengths: the effect on prompts of both directions, and every cost.

All strengths of a direction run in one batch, each row under its own. The values are kept prompt by prompt, None where a
judge can't tell, so that whoever averages can resample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from ..contrast import Example
from ..engines.base import Reply, Sampling, Trainable
from ..judges.base import Judge, Score
from ..judges.fluency import repetition
from ..methods.objectives import kl
from ..steering import Steering
from .results import Direction
from .suite import Split, Suite

Values = list[float | None]


@dataclass
class Effects:
    """Prompt by prompt, at one strength: is the behaviour there (or gone), how much of it, and is the reply any good?"""

    effect: Values = field(default_factory=list)
    degree: Values = field(default_factory=list)
    follows: Values = field(default_factory=list)
    fluent: Values = field(default_factory=list)
    joint: Values = field(default_factory=list)
    repetition: Values = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)


@dataclass
class Costs:
    """Item by item, at one strength: right, wrong or refused; per text, the perplexity ratio; per prompt, the KL."""

    capability: Values = field(default_factory=list)
    lost: Values = field(default_factory=list)
    wrong: Values = field(default_factory=list)
    refused: Values = field(default_factory=list)
    perplexity: Values = field(default_factory=list)
    kl: Values = field(default_factory=list)


@dataclass(frozen=True)
class Amounts:
    """How much is measured: prompts per direction, capability items, neutral prompts and texts, reply tokens."""

    prompts: int = 24
    items: int = 100
    neutral: int = 16
    texts: int = 16
    tokens: int = 64


def split_amounts(prompts: int, capability: int, tokens: int) -> tuple[Amounts, Amounts]:
    """How much is measured on dev, where a strength is chosen, and on test, where it is reported."""
    dev = Amounts(max(2, prompts * 2 // 3), capability * 3 // 5, 4, 0, tokens)
    return dev, Amounts(prompts, capability, 16, 16, tokens)


def measure_effects(
    suite: Suite,
    engine: Trainable,
    task: str,
    direction: Direction,
    split: Split,
    steerings: Sequence[Steering | None],
    amounts: Amounts,
    seed: int,
) -> list[Effects]:
    """The effects of each steering (None: the model as it is) on the same prompts, greedily decoded."""
    prompts = list(suite.prompts(task, direction, split, amounts.prompts, seed))
    replies = _replies(engine, prompts, steerings, amounts.tokens)
    judges = (suite.judge(task), suite.follows(task, direction), suite.fluent())
    texts = [reply.text for reply in replies]
    scores = [
        None if j is None else j.scores(texts, prompts * len(steerings)) for j in judges
    ]  # judges ask many at once
    found = [Effects() for _ in steerings]
    for n, text in enumerate(texts):
        of = [None if s is None else s[n] for s in scores]
        _note(found[n // len(prompts)], text, prompts[n % len(prompts)], judges, of, direction)
    return found


def _replies(
    engine: Trainable, prompts: Sequence[Example], steerings: Sequence[Steering | None], tokens: int
) -> list[Reply]:
    """Greedy replies to all prompts under the first steering, then the next; what the model says as it is, is said once.

    Kept by the whole list of prompts: they run in the same batches wherever they are asked for, so nothing depends on
    what was asked before.
    """
    rows = [(steering, prompt) for steering in steerings for prompt in prompts]
    if any(steering is not None for steering in steerings):
        return engine.generate([p for _, p in rows], [s for s, _ in rows], Sampling(tokens))
    kept, key = _said.setdefault(engine, {}), (tuple(p for _, p in rows), tokens)
    if key not in kept:
        kept[key] = engine.generate(key[0], None, Sampling(tokens))
    return kept[key]


_said: WeakKeyDictionary[Trainable, dict[tuple[tuple[Example, ...], int], list[Reply]]] = WeakKeyDictionary()


def _note(
    into: Effects,
    text: str,
    prompt: Example,
    judges: tuple[Judge, Judge | None, Judge | None],
    scores: Sequence[Score | None],
    direction: Direction,
) -> None:
    """Note what the judges of the behaviour, of following and of fluency say of one reply."""
    score = scores[0]
    assert score is not None
    present = judges[0].present(score)
    effect = None if present is None else float(present if direction == "elicit" else not present)
    verdicts: list[float | None] = [effect]
    for one, given, values in zip(judges[1:], scores[1:], (into.follows, into.fluent), strict=True):
        if one is None or given is None:
            continue
        good = one.present(given)
        values.append(None if good is None else float(good))
        verdicts.append(values[-1])
    into.effect.append(effect)
    into.degree.append(score.value)
    silent = not text.strip()  # whatever it no longer says, it doesn't follow its instruction
    into.joint.append(0.0 if silent else None if None in verdicts else float(all(verdicts)))
    words = text.lower().split()
    into.repetition.append(repetition(words) if len(words) > 2 else None)
    into.texts.append(text)
    into.prompts.append(prompt.instruction)


class CostMeter:
    """Measures costs against the unsteered model, whose own figures are computed once per split and seed."""

    def __init__(self, suite: Suite, engine: Trainable, split: Split, amounts: Amounts, seed: int) -> None:
        self._suite, self._engine = suite, engine
        self._items = list(suite.items(split, amounts.items, seed))
        self._neutral = list(suite.neutral(split, amounts.neutral, seed))
        self._texts = list(suite.texts(split, amounts.texts))
        self._tokens = amounts.tokens
        self.base = self._capability([None])[0]
        self._logits = [scores.clone() for scores in engine.logits(self._neutral)]
        self._nll = [-float(lp.mean()) for lp in engine.text_logprobs(self._texts)] if self._texts else []

    def measure(self, steerings: Sequence[Steering]) -> list[Costs]:
        """The costs of each steering on the same items, prompts and texts."""
        found = self._capability(steerings)
        for costs, steering in zip(found, steerings, strict=True):
            for before, now in zip(self.base.capability, costs.capability, strict=True):
                costs.lost.append(None if before is None or now is None else before - now)
            for plain, scores in zip(self._logits, self._engine.logits(self._neutral, steering), strict=True):
                apart = float(kl(plain, scores).mean())
                costs.kl.append(apart if math.isfinite(apart) else None)
            if self._texts and steering.prompt is None and not steering.ahead:  # a text has no prompt, nor room for one
                scored = self._engine.text_logprobs(self._texts, steering)
                costs.perplexity.extend(
                    math.exp(min(-float(lp.mean()) - base, 50.0)) for lp, base in zip(scored, self._nll, strict=True)
                )
        return found

    def _capability(self, steerings: Sequence[Steering | None]) -> list[Costs]:
        return capability(self._suite, self._engine, self._items, steerings, self._tokens)


def capability(
    suite: Suite, engine: Trainable, items: Sequence[Example], steerings: Sequence[Steering | None], tokens: int
) -> list[Costs]:
    """Right, wrong or refused, item by item, under each steering (None: the model as it is)."""
    correct, refused = suite.correct(), suite.refused()
    if not items or correct is None:
        return [Costs() for _ in steerings]
    replies = _replies(engine, items, steerings, tokens)
    found: list[Costs] = []
    for n in range(len(steerings)):
        costs = Costs()
        for item, reply in zip(items, replies[n * len(items) :], strict=False):
            right = correct.present(correct(reply.text, item))
            refusal = None
            if refused is not None and not reply.text.strip():
                refusal = False  # silence is wrong, and no refusal
            elif refused is not None:
                refusal = refused.present(refused(reply.text, item))
            costs.capability.append(None if right is None else float(right))
            costs.refused.append(None if refusal is None else float(refusal))
            known = right is not None and refusal is not None
            costs.wrong.append(float(not right and not refusal) if known else None)
        found.append(costs)
    return found
