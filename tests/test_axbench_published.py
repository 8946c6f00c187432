"""AxBench's published data and the built-in model's own: what is read, what is written, and detection on a model that is real."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow.parquet as parquet
import pytest
from safetensors.torch import load_file

from steerlab import pilot
from steerlab.bench.axbench.arms import READ, TRAINED, usual
from steerlab.bench.axbench.board import board
from steerlab.bench.axbench.exporting import exported
from steerlab.bench.axbench.folder import FolderAxBench
from steerlab.bench.axbench.pilot import PilotAxBench
from steerlab.bench.axbench.rating import RuleRater
from steerlab.bench.axbench.run import run
from steerlab.bench.axbench.units import AxPlan
from steerlab.bench.axbench.writing import save
from steerlab.cli.bench import _tasks
from steerlab.evals.unit import ArmPlan
from steerlab.evals.workers import local
from steerlab.methods.base import method
from steerlab.testing.precision import EXACT


@pytest.fixture(scope="module")
def concept10(shared):
    """Concept10 on a real model of a quarter of a million parameters, which writes plain text."""
    model = shared / "models" / "stories260k"
    return FolderAxBench(
        str(shared / "data" / "axbench_concept10" / "2b_l20"), str(model), template="plain", batch_size=16
    )


def test_concept10_is_read_as_it_is(concept10):
    table = parquet.read_table(f"{concept10.path}/train_data.parquet").to_pylist()
    tasks = concept10.tasks()
    assert [t.name for t in tasks] == [str(n) for n in range(10)]
    assert Counter(t.genre for t in tasks)["text"] > 5
    for task in tasks:
        rows = [r for r in table if str(r["concept_id"]) == task.name]
        assert concept10.words(task.name) == rows[0]["output_concept"]
        data = concept10.contrast(task.name, 0)
        assert [e.answer for e in data.positive] == [r["output"] for r in rows]
        shared_ = [r for r in table if str(r["concept_id"]) == "-1" and r["concept_genre"] == task.genre]
        assert [e.answer for e in data.negative] == [r["output"] for r in shared_]
    held = parquet.read_table(f"{concept10.path}/latent_eval_data.parquet").to_pylist()
    every = {t.name: concept10.rows(t.name, 36, 36) for t in tasks}
    for kind, name in (("positive", "positive"), ("negative", "negative"), ("hard", "hard negative")):
        wanted = Counter(str(r["concept_id"]) for r in held if r["category"] == name)
        assert {k: len(getattr(r, kind)) for k, r in every.items()} == {k: wanted[k] for k in every}
    assert len(concept10.instructions("3", 10, suppress=False)) == 10
    assert concept10.instructions("3", 10, suppress=False) == concept10.instructions("3", 10, suppress=False)
    asked = concept10.instructions("3", 4, suppress=True)
    assert all(concept10.words("3") in e.instruction for e in asked)


def test_detection_on_the_published_files(concept10, tmp_path, pytestconfig):
    """Every method's AUROC, from the latents of all tokens that are kept, by other code (the definition: all pairs).

    Two concepts, of text and of code; with --full all ten. The bar at the end is for the mean of all ten; a model of stories
    can't tell code (.38), so the short run holds the text alone to it.
    """
    arms = (
        ArmPlan("diff_means", "diff_means", {"pooling": "token", "site": "2"}),
        *(ArmPlan(name, name, {"pooling": "response", "site": "2"}) for name in ("probe", "random")),
        ArmPlan("lm_vector", "lm_vector", {"site": "2", "factors": [1.0], "epochs": 1}), ArmPlan("prompt", "prompt"),
    )  # fmt: skip
    tasks = tuple(t.name for t in concept10.tasks()) if pytestconfig.getoption("--full") else ("0", "2")
    plan = AxPlan(arms, tasks, ("detection",), rows=36, hard=36, shared=50, most=512, tokens=16)
    with local(concept10, 1, threads=1) as pool:
        found = run(concept10, plan, tmp_path, pool)
    made = board(found, title="Concept10", meter={})
    assert made.failed == []
    held = parquet.read_table(f"{concept10.path}/latent_eval_data.parquet").to_pylist()
    held = [row for row in held if str(row["concept_id"]) in tasks]
    assert made.counts["texts"] == len(held)
    engine = concept10.engine()
    longer = 0
    for row in held:
        n = len(engine.tokenizer(row["input"])["input_ids"]) + len(
            engine.tokenizer(row["output"], add_special_tokens=False)["input_ids"]
        )
        longer += n + (engine.renderer.close is not None) > engine.context
    assert made.counts["cut"] == longer
    assert made.counts["cut_fitted"] > 0, "texts that are fitted on are cut, too, and counted"
    for task in plan.tasks:
        kept = load_file(tmp_path / "latents" / f"{found.units.latents[task].inputs}.safetensors")
        row, label = kept[f"{task}/row"].numpy(), kept[f"{task}/label"].numpy()
        for arm in ("diff_means", "probe", "random", "lm_vector"):
            values = kept[f"{task}/{arm}"].numpy()
            highest = np.array([values[row == k].max() for k in range(len(label))], dtype=np.float64)
            p, n = highest[label == 1][:, None], highest[label == 0][None]
            by_pairs = float(((p > n) + 0.5 * (p == n)).mean())
            assert made.line(arm).concepts[task]["detected"]["auroc"] == pytest.approx(by_pairs, abs=EXACT)
        assert task in made.line("prompt").concepts
    assert "touches nothing" in made.line("prompt").none
    judged = tasks if pytestconfig.getoption("--full") else ("0",)
    means = {
        arm: np.mean([made.line(arm).concepts[task]["detected"]["auroc"] for task in judged])
        for arm in ("diff_means", "random")
    }
    assert means["diff_means"] > max(0.7, means["random"])


# --- the built-in model's own ---------------------------------------------------------------------------------------


def test_the_pilots_texts_show_what_they_should():
    of = PilotAxBench()
    for task in ("sea", "pirate", "bullets", "german"):
        rows = of.rows(task, 12, 8)
        judge = pilot.concept(task).judge
        assert (len(rows.positive), len(rows.negative), len(rows.hard)) == (12, 12, 8)
        shows = {
            k: np.mean([bool(judge.present(judge(e.answer, e))) for e in getattr(rows, k)])
            for k in ("positive", "negative", "hard")
        }
        assert shows["positive"] >= 0.75
        assert shows["negative"] <= 0.1
        assert shows["hard"] <= 0.4
        fitted_on = {e.instruction for p in of.contrast(task, 0).pairs for e in p}
        assert not fitted_on & {e.instruction for e in rows.all}
        assert of.rows(task, 12, 8) == rows
        plain, asked = (of.instructions(task, 4, suppress=s) for s in (False, True))
        assert [e.tags.get("concept") for e in plain] == [None] * 4
        assert [e.tags.get("concept") for e in asked] == [task] * 4
        rater = of.rater(task)
        assert isinstance(rater, RuleRater)
        gold = rater.rate([e.answer for e in asked], asked)
        assert np.mean([r.score() for r in gold]) > 1.0, "the generator's own answers are rated well"


def test_twenty_concepts_of_every_genre():
    of = PilotAxBench()
    names = _tasks(of, None, False)
    assert len(set(names)) == 20
    genres = {t.name: t.genre for t in of.tasks()}
    assert {genres[n] for n in names} == set(genres.values())
    assert {genres[n] for n in _tasks(of, None, True)} >= {"topic", "style"}
    assert _tasks(of, "sea, german", False) == ("sea", "german")
    assert len(_tasks(of, "3", True)) == 3


def test_the_usual_arms_are_ten_methods_and_more():
    for small in (True, False):
        arms = usual(small=small)
        methods = [a for a in arms if a.method and a.name != "random"]
        assert len(methods) >= 10
        assert {*READ, *TRAINED} <= {a.name for a in arms}
        for arm in methods:
            method(arm.method, arm.settings)
            assert arm.label


def test_the_pilots_data_goes_out_and_comes_back(tmp_path):
    of = PilotAxBench(pairs=6)
    made = exported(of, ("sea", "german"), rows=5, hard=4)
    assert len(made.train) + len(made.latent) + sum(made.dropped.values()) == made.wanted
    save(made, tmp_path)
    back = FolderAxBench(str(tmp_path), "none")
    assert [back.words(t.name) for t in back.tasks()] == ["images of the sea", "German"]
    rows, own = back.rows("0", 9, 9), of.rows("sea", 5, 4)
    assert [e.answer for e in rows.positive] == [e.answer for e in own.positive if len(e.messages) == 1]
    assert back.contrast("1", 0).paired
