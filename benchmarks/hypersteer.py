"""A generator of steering vectors on topics that it never saw. `make hypersteer` (minutes).

Topics of the pilot's lexicon are dealt into those that a generator is trained on and those that it is tested on. Beside it
on the unseen ones: nothing, a random direction of the same norm, the generator given another topic's description, and a
vector fitted to the topic's own examples (`lm_vector`), which no generator sees. Measured: cross-entropy of the topic's
held-out answers under plain prompts (nats per token), and the share of greedy replies to plain prompts in which the judge
finds the topic. Intervals: a bootstrap over topics, fits and prompts.

The generator's step was chosen by the loss on topics held out of training (`held_out`).
"""

from __future__ import annotations

import argparse
import math
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

import steerlab as sl
from steerlab import pilot
from steerlab.engines.base import Sampling
from steerlab.evals.stats import Estimate, bootstrap, paired_difference
from steerlab.methods.base import method
from steerlab.methods.generator import Generator
from steerlab.methods.hypersteer import HyperSteer
from steerlab.methods.trained import Trained
from steerlab.progress import shown

SITE = "2"
GENERATOR = {"layers": 0, "step": 0.01, "epochs": 4}
FIT = {"factors": (1.0,), "epochs": 10, "step": 0.1, "batch_size": 8}
STRENGTHS = (1.5, 2.0)  # of replies: at 1 even vectors fitted to two of the topics showed in one reply of ten
DEAL = 0  # seed of which topics are seen
ARMS = ("unsteered", "random", "wrong description", "generator", "lm_vector")
SEEN = ("seen, unsteered", "seen, generator")
Values = list[list[list[float | None]]]  # topics, of fits, of prompts


@dataclass(frozen=True)
class Topic:
    """A topic with its data: pairs to train on, held-out pairs, and plain prompts for replies."""

    concept: pilot.Concept
    answers: Sequence[sl.Example]

    @classmethod
    def unseen(cls, concept: pilot.Concept, n: int) -> Topic:
        pairs = pilot.contrast(concept.name, n=n, seed=1, split="test", neutral=1).pairs
        return cls(concept, [replace(plain, answer=asked.answer) for asked, plain in pairs])


def contrast(concept: pilot.Concept, n: int, seed: int) -> sl.Contrast:
    made = pilot.contrast(concept.name, n=n, seed=seed, neutral=1)
    return replace(made, concept=concept.description, neutral=())


def vector(steering: sl.Steering) -> torch.Tensor:
    (only,) = steering.interventions
    assert isinstance(only.edit, sl.Shift)
    return only.edit.v


def sideways(steering: sl.Steering, seed: int) -> sl.Steering:
    """The same steering in a random direction, of the same norm."""
    (only,), v = steering.interventions, vector(steering)
    other = torch.randn(len(v), generator=torch.Generator().manual_seed(seed))
    return replace(steering, interventions=(replace(only, edit=sl.Shift(other * v.norm() / other.norm())),))


def arms(
    generator: Generator, fitted: Sequence[sl.Steering], topics: Sequence[Topic], seed: int
) -> Mapping[str, Sequence[sl.Steering | None]]:
    """Each arm's steering for each topic."""
    words = [t.concept.description for t in topics]
    written = [generator(w) for w in words]
    return {
        "unsteered": [None] * len(topics),
        "random": [sideways(s, 1000 * seed + n) for n, s in enumerate(written)],
        "wrong description": [*written[1:], written[0]],
        "generator": written,
        "lm_vector": fitted,
    }  # fmt: skip


def entropies(
    engine: sl.HFEngine, topics: Sequence[Topic], steerings: Sequence[sl.Steering | None]
) -> list[list[float]]:
    """Nats per token of each topic's answers."""
    rows = [(e, s) for t, s in zip(topics, steerings, strict=True) for e in t.answers]
    found = iter(engine.logprobs([e for e, _ in rows], [s for _, s in rows]))
    return [[-float(next(found).mean()) for _ in t.answers] for t in topics]


def presence(
    engine: sl.HFEngine, topics: Sequence[Topic], steerings: Sequence[sl.Steering | None], prompts: Sequence[sl.Example]
) -> list[list[float | None]]:
    """Whether the judge finds each topic in each reply."""
    rows = [(p, s) for s in steerings for p in prompts]
    replies = iter(engine.generate([p for p, _ in rows], [s for _, s in rows], Sampling(48)))

    def found(topic: Topic, prompt: sl.Example) -> float | None:
        judge = topic.concept.judge
        verdict = judge.present(judge(next(replies).text, prompt))
        return None if verdict is None else float(verdict)

    return [[found(t, p) for p in prompts] for t in topics]


def told(name: str, e: Estimate) -> None:
    print(f"  {name:34} {e}  (n={e.n}, missing {e.missing})")


@dataclass(frozen=True)
class Figures:
    """What was measured, topic by topic, fit by fit, prompt by prompt; CPU seconds of all fits."""

    costs: dict[str, Values]
    shares: dict[tuple[str, float], Values]
    seconds: dict[str, float]

    @classmethod
    def empty(cls, topics: int) -> Figures:
        costs: dict[str, Values] = {name: [[] for _ in range(topics)] for name in (*ARMS, *SEEN)}
        shares: dict[tuple[str, float], Values] = {(n, s): [[] for _ in range(topics)] for n in ARMS for s in STRENGTHS}
        return cls(costs, shares, {"generator": 0.0, "lm_vector": 0.0})


def measure(
    engine: sl.HFEngine,
    given: argparse.Namespace,
    trains: Sequence[pilot.Concept],
    topics: Sequence[Topic],
    seed: int,
    into: Figures,
) -> None:
    """One fit of each, and all figures of it."""
    begun = time.process_time()
    made = method("hypersteer", {**GENERATOR, "site": SITE, "seed": seed})
    assert isinstance(made, HyperSteer)
    generator = made.fit_generator(engine, [contrast(c, given.pairs, seed) for c in trains])
    into.seconds["generator"] += time.process_time() - begun
    begun = time.process_time()
    alone = method("lm_vector", {**FIT, "site": SITE, "seed": seed})
    assert isinstance(alone, Trained)
    fitted = alone.fit_many(engine, [contrast(t.concept, given.fit_pairs, seed) for t in topics])
    into.seconds["lm_vector"] += time.process_time() - begun
    prompts = pilot.prompts("ordinary", n=given.prompts, seed=3)
    for name, steerings in arms(generator, fitted, topics, seed).items():
        for n, values in enumerate(entropies(engine, topics, steerings)):
            into.costs[name][n].append(values)
        for s in STRENGTHS:
            if name == "unsteered" and (seed or s != STRENGTHS[0]):  # greedy: the same replies every time
                values = [topic[0] for topic in into.shares[name, STRENGTHS[0]]]
            else:
                values = presence(engine, topics, [x.scaled(s) if x else None for x in steerings], prompts)
            for topic, found in zip(into.shares[name, s], values, strict=True):
                topic.append(found)
    seen = [Topic.unseen(c, given.prompts) for c in trains[: len(topics)]]
    for name, steerings in zip(
        SEEN, ([None] * len(seen), [generator(t.concept.description) for t in seen]), strict=True
    ):
        for n, values in enumerate(entropies(engine, seen, steerings)):
            into.costs[name][n].append(values)
    norms = [
        round(sum(float(vector(x).norm()) for x in found) / len(found), 1)
        for found in ([generator(t.concept.description) for t in topics], fitted)
    ]
    means = {
        name: round(mean, 3) if (mean := bootstrap([[t[-1]] for t in values]).mean) is not None else "not judged"
        for name, values in into.costs.items()
    }
    print(
        f"seed {seed}: loss by epoch {generator.meta.figures['loss']}, mean norms written and fitted {norms}, cross-entropies {means}",
        flush=True,
    )


def report(found: Figures, seeds: int, topics: int) -> None:
    run = uuid.uuid4().hex[:8]
    print("cross-entropy of held-out answers under plain prompts, nats per token, at strength 1")
    for name, values in found.costs.items():
        told(name, bootstrap(values))
    for s in STRENGTHS:
        print(f"share of replies with the topic, at strength {s:g}")
        for name in ARMS:
            told(name, bootstrap(found.shares[name, s]))
    print("paired differences")
    gains = {name: paired_difference(found.costs["unsteered"], found.costs[name]) for name in ARMS[1:]}
    for name, e in gains.items():
        told(f"unsteered − {name}", e)
    specific = paired_difference(found.costs["wrong description"], found.costs["generator"])
    told("wrong description − generator", specific)
    told("seen: unsteered − generator", paired_difference(*(found.costs[name] for name in SEEN)))
    more: dict[str, Estimate] = {}
    for name in ("unsteered", "wrong description"):
        more[name] = paired_difference(found.shares["generator", STRENGTHS[-1]], found.shares[name, STRENGTHS[-1]])
        told(f"presence at {STRENGTHS[-1]:g}: generator − {name}", more[name])
    print(
        f"CPU seconds a fit: generator {found.seconds['generator'] / seeds:.0f}, lm_vector {found.seconds['lm_vector'] / seeds:.0f} for {topics} topics"
    )
    print(
        f"bar hypersteer_unseen_gain_over_fitted {(gains['generator'].mean or 0) / (gains['lm_vector'].mean or math.nan):.3f} 0.5 {run}"
    )
    print(f"bar hypersteer_unseen_gain_low {gains['generator'].low:.3f} 0 {run}")
    print(f"bar hypersteer_right_over_wrong_low {specific.low:.3f} 0 {run}")
    print(f"bar hypersteer_presence_gain {more['unsteered'].mean:.3f} 0.1 {run}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--train", type=int, default=200, help="topics that the generator is trained on")
    parser.add_argument("--test", type=int, default=8, help="topics that it isn't")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of each topic, for the generator")
    parser.add_argument("--fit-pairs", type=int, default=16, help="pairs of each topic, for its own vector")
    parser.add_argument("--prompts", type=int, default=6, help="replies, and held-out answers, of each topic")
    given = parser.parse_args()
    torch.set_num_threads(1)
    engine = sl.load("pilot", batch_size=64)
    every = list(pilot.topics())
    random.Random(DEAL).shuffle(every)
    tests, trains = every[: given.test], every[given.test : given.test + given.train]
    topics = [Topic.unseen(c, given.prompts) for c in tests]
    print(
        f"block {SITE}, {len(trains)} topics seen with {given.pairs} pairs each, {len(tests)} unseen ({', '.join(c.description for c in tests)}), {given.seeds} fits"
    )
    print(f"generator: {GENERATOR}; lm_vector: {given.fit_pairs} pairs, {FIT}", flush=True)
    found = Figures.empty(len(topics))
    with shown():
        for seed in range(given.seeds):
            measure(engine, given, trains, topics, seed, found)
    report(found, given.seeds, len(topics))


if __name__ == "__main__":
    main()
