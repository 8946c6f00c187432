"""Steered texts to be labelled by reading, blind to method and strength; and the judges against those labels.

    python benchmarks/labels.py draw --out sheet          sheet.jsonl to read, sheet.key.jsonl with what made each text
    python benchmarks/labels.py agree                     the judges against benchmarks/labels.jsonl (--labels: another file)

`draw` fits several methods on behaviours of the built-in model, lets each reply to held-out prompts at strengths of both signs,
and writes as many texts as asked, shuffled: what was asked, the reply, what the behaviour is. Who labels gives three ratings
from 0 to 2: `present` (the behaviour), `follows` (the instruction's subject and task; null where the reply is nothing but a
refusal or hostility), `fluent`. `agree` prints kappa, weighted kappa and rank agreement with intervals over behaviours, and
where judges and labels part.

`labels.jsonl` was read twice, on 2026-11-22, by a large language model, text by text and independently (forwards and backwards),
from the sheet and these definitions alone: no method, strength, word list or judge was known to it. No person has read it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import uuid
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import arms as catalogue
import torch

from steerlab import pilot, progress
from steerlab.contrast import Example
from steerlab.engines.base import Sampling, Trainable
from steerlab.evals.agree import Agreement, Rater, compared
from steerlab.evals.unit import ArmPlan
from steerlab.files import write_text
from steerlab.methods.base import method
from steerlab.pilot.suite import PilotSuite

SEED = 3000  # used for no reported figure
TASKS = (
    "refusal", "backdoor", "sea", "kitchen", "money", "pirate", "formal", "polite", "angry", "gloomy", "bullets", "questions", "spanish", "capitals",
)  # fmt: skip
ARMS = "cdas rank 1,cdas rank 8,cdas published,diff_means,probe,lm_vector,reft_r1,random,prompt"
STRENGTHS = (-1.0, -0.5, 0.5, 1.0, 1.25, 1.5)
DIRECTIONS = ("elicit", "suppress")
RATINGS = ("present", "follows", "fluent")


def texts(
    suite: PilotSuite, engine: Trainable, task: str, arms: tuple[ArmPlan, ...], each: int
) -> Iterator[dict[str, Any]]:
    """Replies to both kinds of prompts: of the model as it is, and of every arm at every strength."""
    data = suite.contrast(task, SEED)
    found = {"unsteered": None}
    for arm in arms:
        assert arm.method is not None
        settings = {**(suite.prompt_settings(task, SEED) if arm.method == "prompt" else {}), **arm.settings}
        found[arm.name] = method(arm.method, settings).fit(engine, data)
    for n, (name, steering) in enumerate(found.items()):
        strengths = (0.0,) if steering is None else (-1.0, 1.0) if name == "prompt" else STRENGTHS
        for direction in DIRECTIONS:
            for k, strength in enumerate(strengths):
                prompts = suite.prompts(task, direction, "test", each, SEED + 50 * n + k)
                replies = engine.generate(
                    list(prompts), None if steering is None else steering.scaled(strength), Sampling(64)
                )
                for prompt, reply in zip(prompts, replies, strict=True):
                    yield {"task": task, "arm": name, "strength": strength, "asked": direction == "suppress",
                           "instruction": prompt.instruction, "reply": reply.text, "prompt": told(prompt), "tags": dict(prompt.tags)}  # fmt: skip


def told(prompt: Example) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in prompt.messages]


def draw(out: Path, count: int, each: int) -> None:
    suite, rng = PilotSuite(pairs=32), random.Random(SEED)
    engine, arms = suite.engine(), catalogue.at(catalogue.chosen(ARMS), catalogue.USUAL_BLOCKS)
    arms = tuple(a for a in arms if a.method)
    drawn: list[dict[str, Any]] = []
    with progress.shown(), progress.task("fitting and replying", len(TASKS)) as bar:
        for task in TASKS:
            bar.tell(task)
            path = out.with_name(f"{out.name}.{task}.json")  # a task that is done isn't done again
            if not path.is_file():
                write_text(path, json.dumps(list(texts(suite, engine, task, arms, each)), ensure_ascii=False))
            mine, seen = json.loads(path.read_text(encoding="utf-8")), set[str]()
            rng.shuffle(mine)
            groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
            for row in mine:
                groups.setdefault((row["arm"], row["strength"]), []).append(row)
            share = count // len(TASKS) + (TASKS.index(task) < count % len(TASKS))
            for row in chain.from_iterable(zip_longest(*groups.values())):  # each once before any comes twice
                if row is not None and len(seen) < share and row["reply"] not in seen:
                    seen.add(row["reply"])
                    drawn.append(row)
            bar.advance()
    rng.shuffle(drawn)
    for n, row in enumerate(drawn):
        row["id"] = n
    shown = ("id", "task", "instruction", "reply")
    write_text(
        Path(f"{out}.jsonl"), "".join(json.dumps({k: r[k] for k in shown}, ensure_ascii=False) + "\n" for r in drawn)
    )
    write_text(
        Path(f"{out}.key.jsonl"),
        "".join(json.dumps({k: r[k] for k in r if k not in shown[1:]}, ensure_ascii=False) + "\n" for r in drawn),
    )
    print(f"wrote {len(drawn)} texts: {out}.jsonl to read, {out}.key.jsonl not to be looked at before")


def agree(path: Path) -> None:
    """The two readings with each other, then the built-in rule judges with their mean, yes or no and by degree.

    Yes is a mean of 1 or more; a rating that one reading lacks is missing. Intervals draw behaviours.
    """
    run, suite = uuid.uuid4().hex[:8], PilotSuite()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    tasks = [row["task"] for row in rows]
    print(
        f"run {run}: {len(rows)} texts, {len(set(tasks))} behaviours, {len({r['arm'] for r in rows})} ways of steering"
    )
    judges = {"follows": pilot.follows(), "fluent": pilot.fluent()}
    read: dict[str, list[bool | None]] = {}
    verdicts: dict[str, list[bool | None]] = {}
    for what in RATINGS:
        degrees: list[float | None] = []
        verdicts[what] = []
        for row in rows:
            one = judges.get(what) or suite.judge(row["task"])
            score = one(row["reply"], Example.from_json({"messages": row["prompt"], "tags": row["tags"]}))
            degrees.append(score.value)
            verdicts[what].append(one.present(score))
        a, b = ([r["readings"][k][what] for r in rows] for k in (0, 1))
        labels = [None if None in pair else sum(pair) / 2 for pair in zip(a, b, strict=True)]
        read[what] = [None if v is None else v >= 1 for v in labels]
        between = compared(Rater("one reading", _floats(a)), Rater("the other", _floats(b)), families=tasks)
        print(f"{what}: the two readings: kappa {between.kappa}, weighted {between.quadratic}")
        found = compared(Rater("labels", _floats(read[what])), Rater("rule", _floats(verdicts[what])), families=tasks)
        shown(what, found, run)
        by_degree = compared(Rater("labels", labels), Rater("rule", degrees, 0.5), families=tasks)
        print(f"  by degree: Spearman {by_degree.spearman}")
        parted = [
            row["id"]
            for row, x, y in zip(rows, read[what], verdicts[what], strict=True)
            if None not in (x, y) and x != y
        ]
        print(f"  they part on {', '.join(map(str, parted)) or 'none'}")
    both = [
        Rater(name, [None if None in v else float(all(v)) for v in zip(*of.values(), strict=True)])
        for name, of in (("labels", read), ("rule", verdicts))
    ]
    shown("all three (joint success)", compared(*both, families=tasks), run)


def _floats(values: Sequence[float | bool | None]) -> list[float | None]:
    return [None if v is None else float(v) for v in values]


def shown(what: str, found: Agreement, run: str) -> None:
    print(
        f"{what}: the same in {found.same}, kappa {found.kappa} (n={found.n}, {found.missing} not judged); labels by row {found.table}"
    )
    name, kappa = f"labels_{what.split()[0]}_kappa", found.kappa.mean
    if kappa is None:
        print(f"no bar {name}: there is no kappa of these (one of the two always says the same, or nothing was judged)")
    else:
        print(f"bar {name} {kappa:.3f} 0.6 {run}{'' if kappa >= 0.6 else '   (short)'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "agree"))
    parser.add_argument("--out", type=Path, default=Path("runs/labels/sheet"))
    parser.add_argument("--labels", type=Path, default=Path(__file__).with_name("labels.jsonl"))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--each", type=int, default=1, help="prompts of each kind for an arm and strength")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "draw":
        draw(given.out, given.count, given.each)
    else:
        agree(given.labels)


if __name__ == "__main__":
    main()
