"""The comparison: every method of this repository on refusal, backdoor and concepts. `make table` (an hour on two cores).

Unit strength and tuned, the same pairs, dev prompts and strengths for every method, with intervals, every cost, and what a
fit takes. Each family of methods stands at the block that dev favours for its leader (benchmarks/arms.py); methods with
sites of their own (several blocks, weights) keep them. What it will take is said before it begins, fits tried one by one;
every fit and every measurement is journalled, so the same command goes on where it was.

    python benchmarks/table.py                         the pilot; --world second, --world stories for the others
    python benchmarks/table.py --forecast              what that takes, and nothing else
    python benchmarks/table.py --methods cdas,lora     some of the arms
    python benchmarks/table.py --quick                 one seed, one concept, few prompts: whether it runs
    python benchmarks/table.py --short                 a finished run's overview without intervals, and what wins where
    python benchmarks/table.py --against second        whether two finished runs agree on the order of methods
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import arms as catalogue
import tabled

from steerlab import pilot, progress
from steerlab.errors import SteerlabError
from steerlab.evals import report
from steerlab.evals.layers import choose_layer
from steerlab.evals.measure import Amounts
from steerlab.evals.run import run as run_evaluation
from steerlab.evals.suite import Suite
from steerlab.evals.unit import ArmPlan, Plan
from steerlab.evals.workers import Bench, Workers, completed, local
from steerlab.files import code_digest, write_text
from steerlab.judges.words import words_of
from steerlab.pilot.suite import PilotSuite
from steerlab.sweep.forecast import Forecasting
from steerlab.sweep.journal import Journal
from steerlab.sweep.report import merged
from steerlab.sweep.run import run as run_sweep
from steerlab.sweep.status import in_words
from steerlab.sweep.units import Unit, Units, planned

STRENGTHS = (0.5, 1.0, 1.5, 2.0)
BLOCKS = {"pilot": (2, 4, 5, 6), "second": (2, 4, 5, 6), "stories": (1, 2, 3)}
WORLDS = tuple(BLOCKS)
BOTH = ("refusal", "backdoor")
CHOOSING_SEED = 1000  # used for no reported figure
TOGETHER = 1  # each fit on its own, so that its time and memory are its own


@dataclass(frozen=True)
class Part:
    """A part of the table: its suite, and its plan but for the arms' blocks."""

    name: str
    suite: Suite
    plan: Plan


def parts(world: str, arms: tuple[ArmPlan, ...], given: argparse.Namespace) -> tuple[Part, ...]:
    """What is measured in a world: refusal and backdoor with more fits, then the concepts."""
    tokens = 24 if given.quick else 64
    strengths = (1.0, 1.5) if given.quick else STRENGTHS
    dev, test = Amounts(8, 30, 1, 0, tokens), Amounts(16, 60, 8, 8, tokens)
    if given.quick:
        dev, test = Amounts(2, 4, 1, 0, tokens), Amounts(2, 4, 2, 2, tokens)

    def plan(tasks: tuple[str, ...], seeds: int, dev: Amounts = dev, test: Amounts = test) -> Plan:
        return Plan(
            arms=arms, tasks=tasks, seeds=tuple(range(1 if given.quick else seeds)), strengths=strengths, curves=False, samples=1,
            dev=dev, test=test,
        )  # fmt: skip

    if world == "stories":
        from stories_suite import CONCEPTS, StoriesSuite

        concepts = CONCEPTS[: 1 if given.quick else None]
        pairs = 8 if given.quick else 48
        return (Part("concepts", StoriesSuite(pairs=pairs), plan(concepts, given.seeds)),)
    concepts = tuple(c.name for c in pilot.concepts(world))[:: given.every]
    few = plan(
        concepts[:1] if given.quick else concepts,
        given.concept_seeds,
        dev,
        replace(test, prompts=min(12, test.prompts)),
    )
    of_concepts = Part(
        "concepts", PilotSuite(world, pairs=8 if given.quick else 48, neutral_pairs=8 if given.quick else 64), few
    )
    if given.quick:
        return (of_concepts,)
    return (Part("both", PilotSuite(world, pairs=64), plan(BOTH, given.seeds)), of_concepts)


# --- blocks ---------------------------------------------------------------------------------------------------------


def blocks_of(world: str, arms: tuple[ArmPlan, ...], folder: Path, given: argparse.Namespace) -> dict[str, int]:
    """The block of each family: given, chosen before, the pilot's on the second organism, or chosen on dev now."""
    known = {**catalogue.blocks_in(folder), **_given_blocks(given.blocks)}
    if world == "second":
        known = {**catalogue.USUAL_BLOCKS, **catalogue.blocks_in(folder.parent / "pilot"), **known}
    if given.quick:
        known = {
            f.name: min(b, max(BLOCKS[world]))
            for f, b in ((f, catalogue.USUAL_BLOCKS[f.name]) for f in catalogue.FAMILIES)
        } | known
    for family in catalogue.families(arms):
        if family.name not in known:
            known[family.name] = chosen_block(world, family, folder, given.workers)
    write_text(folder / "blocks.json", json.dumps(known, indent=1) + "\n")
    return known


def chosen_block(world: str, family: catalogue.Family, folder: Path, workers: int) -> int:
    """The block where the leader's best strength does best on dev, over refusal (where there is one) and a concept."""
    suite: Suite
    if world == "stories":
        from stories_suite import StoriesSuite

        suite, tasks = StoriesSuite(), tuple(t.name for t in StoriesSuite().tasks())
    else:
        suite, names = PilotSuite(world, pairs=48), [c.name for c in pilot.concepts(world)]
        tasks = ("refusal", names[len(names) // 2])
    leader = next(a for a in catalogue.arms() if a.name == family.leader)
    plan = Plan(
        arms=(leader,), tasks=tasks, seeds=(CHOOSING_SEED,), strengths=STRENGTHS, layer_strengths=(1.0, 1.5),
        dev=Amounts(10, 30, 1, 0, 64),
    )  # fmt: skip
    units = run_evaluation(suite, plan, folder, workers=workers, layers=BLOCKS[world])
    best, scores = choose_layer(units, plan.budget, uncounted=[(task, "elicit") for task in BOTH])
    told = ", ".join(f"{n}: {e.mean:.2f}" for n, e in scores.items() if e.mean is not None)
    print(f"{family.name}: block {best}, by {leader.name} on dev ({told})", flush=True)
    return best


def _given_blocks(text: str | None) -> dict[str, int]:
    """Blocks from `LEADER=BLOCK,...`."""
    found: dict[str, int] = {}
    for piece in (text or "").split(","):
        if piece:
            leader, _, block = piece.partition("=")
            family = next((f for f in catalogue.FAMILIES if leader.strip() in (f.name, f.leader, *f.members)), None)
            if family is None or not block.strip().isdigit():
                raise SystemExit(
                    f"--blocks has {piece!r}; expected LEADER=BLOCK, leaders: {', '.join(f.leader for f in catalogue.FAMILIES)}."
                )
            found[family.name] = int(block)
    return found


# --- what it will take ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """A job: seconds of one fit of an arm; of None, of measuring the unsteered model and one steering."""

    plan: Plan
    arm: ArmPlan | None

    def __call__(self, bench: Bench) -> list[float] | str:
        forecasting = Forecasting(self.plan, TOGETHER)
        try:
            if self.arm is not None:
                return [forecasting.fit(bench, self.arm)[1]]
            (plain, _), (measure, _) = forecasting.tried(bench, planned(bench.suite, self.plan, TOGETHER))
            return [plain, measure]
        except SteerlabError as problem:
            return f"{type(problem).__name__}: {problem}"


def forecast(part: Part, plan: Plan, folder: Path, pool: Workers) -> float:
    """Seconds of work that are left of a part, fits tried arm by arm (kept beside the journal); prints the costliest."""
    path = folder / "forecast.json"
    kept: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    asked = {"": Tried(replace(plan, arms=(ArmPlan("diff_means", "diff_means"),)), None)}
    asked |= {a.name: Tried(replace(plan, arms=(a,)), a) for a in plan.arms if a.method}
    amounts = [part.suite.told(), asdict(plan.dev), asdict(plan.test), plan.strengths, code_digest()]
    basis = hashlib.sha256(json.dumps(amounts, sort_keys=True, default=str).encode()).hexdigest()[:8]
    keys = {
        n: f"{basis} {json.dumps(asdict(t.arm) if t.arm else {}, sort_keys=True, default=str)}"
        for n, t in asked.items()
    }
    missing = {n: t for n, t in asked.items() if keys[n] not in kept}
    with progress.task("trying what fits take", len(missing)) as bar:
        for name, took in completed(pool, missing) if missing else ():
            bar.advance()
            if isinstance(took, str):
                print(
                    f"{part.name}: {name or 'measuring'} can't be tried, and isn't in the forecast: {took}", flush=True
                )
                continue
            kept[keys[name]] = took
            bar.tell(name)
    write_text(path, json.dumps(kept, indent=1))
    plain, measure = kept.get(keys[""], [0.0, 0.0])
    fits = {n: kept[keys[n]][0] for n in asked if n and keys[n] in kept}
    units, done = planned(part.suite, plan, TOGETHER), _done(folder)
    left = [u for u in units.all if u.inputs not in done]
    seconds = sum({"plain": plain, "measure": measure}.get(u.kind, fits.get(u.arm, 0.0)) for u in left)
    dear = ", ".join(f"{n} {s:.0f} s" for n, s in sorted(fits.items(), key=lambda item: -item[1])[:6])
    print(
        f"{part.name}: {len(left)} of {len(units.all)} units left; a fit takes {sum(fits.values()) / max(len(fits), 1):.1f} s in the"
        f" mean (longest: {dear}), measuring one {measure:.1f} s: {in_words(seconds)} of work",
        flush=True,
    )
    return seconds


def _done(folder: Path) -> set[str]:
    """The units that a journal holds."""
    if not (folder / "journal.sqlite").is_file():
        return set()
    with Journal(folder, read_only=True) as journal:
        return {inputs for inputs, row in journal.rows().items() if row.state == "done"}


# --- running it -----------------------------------------------------------------------------------------------------


def measure(part: Part, plan: Plan, folder: Path, pool: Workers, world: str) -> None:
    """Every unit of a part, its report, and beside it what later comparisons need."""
    results = run_sweep(part.suite, lambda _: plan, folder, pool, together=TOGETHER, title=f"Every method on {world}")
    report.write(results, folder / "report.html")
    units, groups = planned(part.suite, plan, TOGETHER), {t.name: t.group for t in part.suite.tasks()}
    with Journal(folder, read_only=True) as journal:
        found = merged(plan, units, journal)
        extra = {"values": tabled.extracted(found, groups), "fits": took(plan, units, journal)}
    write_text(folder / "extra.json", json.dumps(extra))


def took(plan: Plan, units: Units, journal: Journal) -> dict[str, dict[str, list[float]]]:
    """What each arm's fits took, and measuring them."""
    by_inputs, found = units.by_inputs, {}
    for arm in plan.arms:
        mine = tabled.Fits([], [], [], [])
        for (name, task, _), inputs in units.measured.items():
            if name != arm.name:
                continue
            unit = by_inputs[inputs]
            measured = journal.read(inputs, "measure")
            fit = journal.read(str(unit.needs), "fit")
            if fit is not None:
                mine.seconds.append(fit["meter"]["cpu_seconds"])
                mine.added_mib.extend([fit["meter"]["added_mib"]] if "added_mib" in fit["meter"] else [])
                path = journal.steering_path(_unit(by_inputs, unit.needs), task)
                mine.kib.extend([path.stat().st_size / 1024] if path.is_file() else [])
            if measured is not None:
                mine.measuring.append(measured["meter"]["cpu_seconds"])
        found[arm.name] = asdict(mine)
    return found


def _unit(by_inputs: dict[str, Unit], inputs: str | None) -> Unit:
    return by_inputs[str(inputs)]


def quickened(arms: tuple[ArmPlan, ...]) -> tuple[ArmPlan, ...]:
    """The arms trained for one epoch or a few steps: whether they run, not how good they are."""
    from steerlab import plugins

    def less(arm: ArmPlan) -> dict[str, Any]:
        known = plugins.load(arm.method).__dataclass_fields__ if arm.method else {}
        few = {"epochs": 1, "steps": 3}
        return {k: v for k, v in few.items() if k in known and arm.settings.get(k, known[k].default)}

    return tuple(replace(a, settings={**a.settings, **less(a)}) if a.method else a for a in arms)


def fooled(variant: str = "pilot", n: int = 40) -> None:
    """Shares that count as joint success: real positives against three ways to fool a word list."""
    suite, rng = PilotSuite(variant), random.Random(0)
    fluent, follows = suite.fluent(), pilot.follows()
    kinds = ("real positives", "keyword list", "shuffled words", "echoed prompt", "plain answer")
    counts = dict.fromkeys(kinds, 0)
    total = 0
    for concept in pilot.concepts(variant):
        asked = pilot.prompts(f"asked:{concept.name}", n=n, seed=5, variant=variant)
        plain = pilot.prompts("ordinary", n=n, seed=5, variant=variant)
        lists = [
            " ".join(rng.sample(sorted(set(words_of(e.answer or ""))), k=min(12, len(set(words_of(e.answer or ""))))))
            for e in asked
        ]
        shuffled = [" ".join(rng.sample(ws := (e.answer or "").split(), len(ws))) for e in asked]
        texts = {
            "real positives": [e.answer or "" for e in asked], "keyword list": lists, "shuffled words": shuffled,
            "echoed prompt": [e.instruction for e in asked], "plain answer": [e.answer or "" for e in plain],
        }  # fmt: skip
        for kind, replies in texts.items():
            examples = plain if kind == "plain answer" else asked
            for text, example in zip(replies, examples, strict=True):
                verdicts = [j.present(j(text, example)) for j in (concept.judge, follows, fluent)]
                counts[kind] += all(verdicts)
        total += n
    print("\nare the judges fooled? share that counts as joint success")
    for kind in kinds:
        print(f"  {kind:16} {counts[kind] / total:.3f}  (n={total})")
    print(
        f"bar judges_not_fooled {counts['real positives'] / total - max(counts[k] for k in kinds[1:]) / total:.3f} 0.500"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="pilot", choices=WORLDS)
    parser.add_argument("--methods", metavar="A,B", help="arms or methods  [default: all]")
    parser.add_argument("--seeds", type=int, default=2, help="fits of refusal and backdoor, and of stories' concepts")
    parser.add_argument("--concept-seeds", type=int, default=1, help="fits of each concept of the organisms")
    parser.add_argument("--every", type=int, default=7, metavar="N", help="every N-th concept")
    parser.add_argument("--blocks", metavar="LEADER=BLOCK,...", help="instead of choosing them on dev")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument(
        "--quick", action="store_true", help="one seed, one concept, few prompts, one epoch: does it run?"
    )
    parser.add_argument("--forecast", action="store_true", help="what it will take, and nothing else")
    parser.add_argument("--short", action="store_true", help="a finished run's overview, nothing else")
    parser.add_argument("--against", choices=WORLDS, help="the order of methods beside another finished run's")
    parser.add_argument("--judges", action="store_true", help="the judges' check alone")
    given = parser.parse_args()
    out = given.out / "quick" if given.quick else given.out
    folder = out / given.world
    if given.short:
        print(tabled.short(tabled.read(folder)))
    elif given.against:
        print(tabled.compared(tabled.read(folder), tabled.read(out / given.against)))
    elif given.judges:
        fooled()
    else:
        whole(given, folder)


def whole(given: argparse.Namespace, folder: Path) -> None:
    """Choose, forecast, measure, and tell."""
    arms = catalogue.chosen(given.methods)
    if given.quick:
        arms = quickened(arms)
    for name, why in catalogue.LEFT_OUT.items():
        print(f"without {name}: {why}")
    with progress.shown(), ExitStack() as stack:
        if given.forecast:
            known = {**catalogue.USUAL_BLOCKS, **catalogue.blocks_in(folder), **_given_blocks(given.blocks)}
            print(
                f"choosing {len(catalogue.families(arms))} blocks isn't counted: some five minutes, where they aren't known"
            )
        else:
            known = blocks_of(given.world, arms, folder, given)
        placed, seconds = catalogue.at(arms, known), 0.0
        todo = [(p, replace(p.plan, arms=placed), folder / p.name) for p in parts(given.world, arms, given)]
        pools = [stack.enter_context(local(part.suite, given.workers)) for part, _, _ in todo]
        for (part, plan, where), pool in zip(todo, pools, strict=True):
            where.mkdir(parents=True, exist_ok=True)
            seconds += forecast(part, plan, where, pool)
        print(f"in all about {in_words(seconds / given.workers)} with {given.workers} workers", flush=True)
        if given.forecast:
            return
        for (part, plan, where), pool in zip(todo, pools, strict=True):
            measure(part, plan, where, pool, given.world)
    text = tabled.written(folder)
    print(text)
    print(f"wrote {folder / 'table.md'}, {folder / 'frontier.svg'} and each part's report.html")
    if given.world != "stories" and not given.quick:
        fooled(given.world)


if __name__ == "__main__":
    main()
