"""The comparison: its arms, the frontier, the order of methods on two models, memory of a fit, and a tiny run end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from steerlab import plugins
from steerlab.errors import ArtefactError, ConfigError
from steerlab.evals import charts, frontier
from steerlab.evals.measure import Amounts
from steerlab.evals.order import agreement, kendall
from steerlab.evals.results import Row
from steerlab.evals.stats import Estimate, bootstrap, resampled
from steerlab.evals.unit import ArmPlan, Plan
from steerlab.evals.workers import local
from steerlab.meter import Meter, peak_mib
from steerlab.sweep.journal import Journal
from steerlab.sweep.report import merged
from steerlab.sweep.run import run as run_sweep
from steerlab.sweep.units import planned

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
catalogue = pytest.importorskip("arms", reason="benchmarks/ isn't beside the tests")
import table  # noqa: E402
import tabled  # noqa: E402

NOTHING = Estimate(None, None, None, 0)


# --- arms -----------------------------------------------------------------------------------------------------------


def test_every_method_is_an_arm():
    """Whatever is added to methods/ is compared, or says why not."""
    assert {a.method for a in catalogue.arms() if a.method} | set(catalogue.LEFT_OUT) >= set(plugins.names("methods"))
    names = [a.name for a in catalogue.arms()]
    assert len(set(names)) == len(names)
    assert all(member in names for f in catalogue.FAMILIES for member in f.members)
    assert all(f.leader in f.members for f in catalogue.FAMILIES)


def test_settings_are_those_for_small_models():
    from steerlab.methods.base import method

    for arm in catalogue.arms():
        if arm.method:
            method(arm.method, arm.settings)  # raises for a setting that doesn't exist
    found = {a.name: a for a in catalogue.arms()}
    assert found["lora"].settings == dict(plugins.load("lora").small)


def test_arms_are_chosen_by_name_or_method():
    assert [a.name for a in catalogue.chosen("lora,ablation")] == ["lora", "ablation"]
    assert {"cdas rank 1", "cdas push", "cdas published"} <= {a.name for a in catalogue.chosen("cdas")}
    assert [a.name for a in catalogue.chosen("cdas push")] == ["cdas rank 8", "cdas push"]
    with pytest.raises(ConfigError, match="lora"):
        catalogue.chosen("lorra")


def test_a_family_shares_its_block():
    placed = catalogue.at(catalogue.chosen("das,reps,lora"), {"subspaces, clamped": 2, "vectors, trained": 5})
    assert {a.name: a.settings.get("site") for a in placed} == {"das": "2", "reps": "5", "lora": None}


# --- the frontier ---------------------------------------------------------------------------------------------------


def row(arm, joint, lost, setting="tuned"):
    e = Estimate(joint, joint - 0.05, joint + 0.05, 10)
    cost = Estimate(lost, lost, lost, 10) if lost is not None else NOTHING
    return Row(
        arm, "g", "elicit", setting, "1", e, e, e, cost, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING,
    )  # fmt: skip


ROWS = [
    row("unsteered", 0.1, None, "unit"),
    row("cheap", 0.4, 0.01),
    row("lucky", 0.3, -0.02),  # gains by luck count as nothing lost
    row("beaten", 0.3, 0.05),
    row("strong", 0.9, 0.2),
    row("useless", 0.1, 0.0),
    row("cheap", 0.5, 0.03, "unit"),
    row("unjudged", 0.5, None),
]


def test_what_nobody_beats_is_named():
    found = frontier.spots(ROWS, "g", "elicit")
    assert {s.arm for s in found} == {"cheap", "lucky", "beaten", "strong", "useless"}
    edge = frontier.frontier(found, frontier.unsteered(ROWS, "g", "elicit"))
    assert [s.name for s in edge] == ["lucky", "cheap", "cheap, unit", "strong"]
    words = frontier.in_words(ROWS, "g", "elicit")
    assert words.startswith("lucky (30 % for 0 points), then cheap (40 % for 1 points)") and "beaten" not in words


def test_who_wins_by_less_than_the_interval_is_told_beside():
    rows = [row("unsteered", 0.1, None, "unit"), row("first", 0.5, 0.0), row("close", 0.47, 0.0), row("far", 0.3, 0.0)]
    rows.append(row("luck", 0.12, 0.0))  # its interval holds the unsteered model
    assert frontier.in_words(rows, "g", "elicit") == "first (50 % for 0 points; within its interval close)"
    assert frontier.in_words([rows[0], rows[-1]], "g", "elicit").startswith("nothing does better")


def test_an_unsteered_model_that_was_not_judged_is_not_one_that_scored_nothing():
    rows = [row("first", 0.5, 0.0), row("zero", 0.0, -0.01)]
    assert frontier.unsteered(rows, "g", "elicit") is None
    assert frontier.in_words(rows, "g", "elicit").endswith("(the unsteered model wasn't judged)")
    chart = frontier.panel(rows, "g", "elicit")
    assert chart is not None and "the unsteered model wasn't judged" in chart.description


def test_the_frontier_is_drawn(tmp_path):
    chart = frontier.panel(ROWS, "g", "elicit", "a group")
    text = charts.save([chart], tmp_path / "f.svg", title="t").read_text()
    assert all(f">{name}<" in text for name in ("strong", "lucky", "cheap, unit"))
    assert ">beaten<" not in text and "beaten, tuned" in text  # its mark says what it is
    assert frontier.panel(ROWS, "g", "suppress") is None


# --- the order of methods -------------------------------------------------------------------------------------------


def test_kendall_by_hand():
    assert kendall([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert kendall([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert kendall([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    # ties: pairs (1,2) tied in a; of the other five, all concordant, one tied in b -> 4 / sqrt(5 * 5)
    assert kendall([1, 1, 2, 3], [1, 2, 3, 3]) == pytest.approx(4 / 5)
    assert kendall([1, 1, 1], [1, 2, 3]) is None


def measured(levels, rng, tasks=4, fits=2, prompts=12):
    """Methods of known success, each measured by drawing prompts."""
    return {
        f"m{k}": {("g", "elicit"): [[list((rng.random(prompts) < p).astype(float)) for _ in range(fits)] for _ in range(tasks)]}
        for k, p in enumerate(levels)
    }  # fmt: skip


def test_one_order_on_two_models_is_found():
    rng, levels = np.random.default_rng(0), np.linspace(0.05, 0.95, 10)
    cells = [("g", "elicit")]
    same = agreement(measured(levels, rng), measured(levels, rng), cells)
    assert same.tau.mean > 0.8 and same.tau.low > 0.5 and same.tau.n == 10
    turned = agreement(measured(levels, rng), measured(levels[::-1], rng), cells)
    assert turned.tau.high < -0.5


def test_unrelated_orders_hold_zero_within_the_interval():
    """Over draws of both, tau itself is 0 in the mean, and the interval of most holds what is near it."""
    rng, cells = np.random.default_rng(1), [("g", "elicit")]
    taus = []
    for _ in range(12):
        a, b = (measured(rng.permutation(np.linspace(0.2, 0.8, 8)), rng, tasks=2, fits=1) for _ in range(2))
        taus.append(agreement(a, b, cells, draws=50).tau)
    assert abs(float(np.mean([t.mean for t in taus]))) < 0.3
    assert all(t.low <= t.mean + 0.1 and t.high >= t.mean - 0.25 for t in taus)


def test_methods_without_a_cell_are_left_out():
    rng = np.random.default_rng(2)
    a, b = measured([0.1, 0.5, 0.9], rng), measured([0.1, 0.5, 0.9], rng)
    del b["m1"]
    found = agreement(a, b, [("g", "elicit")])
    assert set(found.scores) == {"m0", "m2"}
    assert agreement(a, b, [("g", "suppress")]).tau.mean is None


def test_resamples_are_those_of_the_bootstrap():
    clusters = [[[1, 0, 1, None], [0, 0, 1]], [[1, 1, 0]]]
    found, drawn = bootstrap(clusters), resampled(clusters)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert np.isnan(resampled([[[None]]])).all()


# --- what a fit takes -----------------------------------------------------------------------------------------------


def test_memory_is_what_the_block_added():
    """Blocks of known size, the larger first: the second isn't hidden by the first, and the process's peak stays."""
    torch.ones(30 * 2**18).sum()
    for mib in (120, 30):
        with Meter(apart=True) as meter:
            torch.ones(mib * 2**18).sum()
        told = meter.figures()
        if "added_mib" not in told:
            pytest.skip("this system can't set its high-water mark back")
        assert told["added_mib"] == pytest.approx(mib, abs=8)  # the allocator's and the interpreter's own few MiB
        assert told["cpu_seconds"] >= 0
    assert peak_mib() == pytest.approx(told["peak_mib"], abs=0.1)  # MiB to a tenth
    assert "added_mib" not in Meter().__enter__().figures()


def test_the_memory_of_a_fit_is_not_that_of_what_started_it():
    """A process that a large one starts begins with the large one's peak in `getrusage`."""
    child = (
        "import torch\nfrom steerlab.meter import Meter\n"
        "with Meter(apart=True) as meter:\n    held = torch.ones(50, 2**18)\nprint(meter.figures().get('added_mib', 50))"
    )
    large = torch.ones(1200, 2**18)  # 1.2 GiB
    found = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert float(found.stdout) == pytest.approx(50, abs=8)  # the allocator's and the interpreter's own few MiB
    assert float(large[0, 0]) == 1.0


def test_a_sweep_serves_a_clamp_one_sided(tmp_path):
    """The one-sided arm shares the fit of the other, and measures another steering."""
    from test_evals import PlantedSuite

    suite = PlantedSuite()
    few = Amounts(prompts=4, items=4, neutral=2, texts=1, tokens=4)
    plan = Plan(
        arms=(ArmPlan("cdas_free", "cdas_free"), ArmPlan("push", one_sided_of="cdas_free")), tasks=("key",), seeds=(0,),
        strengths=(1.0,), dev=few, test=few,
    )  # fmt: skip
    units = planned(suite, plan, 1)
    assert [u.kind for u in units.all] == ["plain", "fit", "measure", "measure"]
    with local(suite, 1) as pool:
        results = run_sweep(suite, lambda _: plan, tmp_path, pool, together=1)
    assert not results.failed and {r.arm for r in results.table} == {"unsteered", "cdas_free", "push"}
    with Journal(tmp_path, read_only=True) as journal:
        (unit,) = merged(plan, units, journal)
        told = table.took(plan, units, journal)
    assert unit["arms"]["push"]["digest"] != unit["arms"]["cdas_free"]["digest"]
    assert told["push"]["seconds"] == told["cdas_free"]["seconds"] != []


# --- the whole ------------------------------------------------------------------------------------------------------


def finished(folder, levels, seed):
    """A finished run's files, as `table.measure` leaves them, with known success of each method."""
    from steerlab.evals.results import Arm, Results

    rng, part = np.random.default_rng(seed), folder / "concepts"
    drawn = measured(levels, rng)
    rows = [row("unsteered", 0.1, None, "unit")]
    found = {}
    for name, cells in drawn.items():
        e = bootstrap(cells["g", "elicit"])
        rows += [row(name, e.mean, 0.02, setting) for setting in ("unit", "tuned")]
        tasks = {
            f"t{n}": {str(k): {"elicit": {s: {"joint": fit} for s in ("unit", "tuned")}} for k, fit in enumerate(fits)}
            for n, fits in enumerate(cells["g", "elicit"])
        }
        found[name] = {"g": tasks}
    results = Results("r", "2026", "t", {}, {}, [], [Arm(n, n) for n in drawn], [1.0], [], [], rows)
    results.save(part / "results.json")
    fits = {n: {"seconds": [2.0, 4.0], "added_mib": [30.0, 50.0], "kib": [9.0], "measuring": [1.0]} for n in drawn}
    (part / "extra.json").write_text(json.dumps({"values": found, "fits": fits}))


def test_finished_runs_are_told_and_compared(tmp_path):
    levels = np.linspace(0.05, 0.95, 6)
    finished(tmp_path / "pilot", levels, 0)
    finished(tmp_path / "second", levels, 1)
    text = tabled.written(tmp_path / "pilot")
    assert (tmp_path / "pilot" / "frontier.svg").is_file() and (tmp_path / "pilot" / "table.md").read_text() == text
    overview = next(line for line in text.splitlines() if line.startswith("| m5 |"))
    assert overview.endswith("| 3.0 | 50 |") and "(2)" in overview
    assert "g elicited: m" in text and "5 |" in text
    short = tabled.short(tabled.read(tmp_path / "pilot"))
    plain = next(line for line in short.splitlines() if line.startswith("| m5 |"))
    assert "[" not in short and plain.endswith("| 3.0 | 50 |") and "g elicited: m" in short
    told = tabled.compared(tabled.read(tmp_path / "pilot"), tabled.read(tmp_path / "second"))
    assert "| tuned | elicited | 6 | " in told
    bars = [line.split() for line in told.splitlines() if line.startswith("bar ")]
    assert bars and all(float(b[2]) > 0.3 for b in bars)
    with pytest.raises(ArtefactError, match="no finished comparison"):
        tabled.read(tmp_path / "stories")


def test_bad_arguments_are_named():
    told = subprocess.run(
        [sys.executable, str(BENCHMARKS / "table.py"), "--world", "moon"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 2 and "stories" in told.stderr
    with pytest.raises(SystemExit, match="LEADER=BLOCK"):
        table._given_blocks("cdas rank 8=two")
    assert table._given_blocks("das=3") == {"subspaces, clamped": 3}
