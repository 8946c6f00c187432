"""Sweeps: the same results as an evaluation, however often they are killed, wherever they run, and what fails said."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import children
import steerlab as sl
from steerlab import cli
from steerlab.errors import ArtefactError, ConfigError
from steerlab.evals.unit import run_unit
from steerlab.evals.workers import Inline, Processes, _seeing, completed
from steerlab.sweep.config import Sweep
from steerlab.sweep.journal import Journal, Row, locked
from steerlab.sweep.run import run
from steerlab.sweep.status import remaining, status
from steerlab.sweep.units import planned
from sweeping import asked, world


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return world(tmp_path_factory.mktemp("sweep"))


def ran(path, out, workers=None, **settings):
    """A sweep in this process, one thread; gives its results and the digests of every unit."""
    sweep = Sweep.read(path)
    suite = sweep.suite()
    with workers or Inline(suite, 1) as pool:
        results = run(suite, partial(sweep.plan, suite), out, pool, together=sweep.together, **settings)
    return results, digests(out)


def digests(out) -> dict[str, str | None]:
    with Journal(Path(out), read_only=True) as journal:
        return {row.inputs: row.outputs for row in journal.rows().values()}


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    return ran(asked(folder), out)


@pytest.fixture
def steerlab(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words: object):
        with pytest.raises(SystemExit) as end:
            cli.main([str(w) for w in words])
        told = capsys.readouterr()
        return end.value.code or 0, told.out, told.err

    return call


# --- results ----------------------------------------------------------------------------------------------------------------


def test_a_sweep_finds_what_an_evaluation_finds(folder, tmp_path):
    path = asked(folder, together=1, strengths=[1.0, 1.5], names=("key",))
    results, _ = ran(path, tmp_path)
    sweep = Sweep.read(path)
    suite = sweep.suite()
    plan = sweep.plan(suite, 2)
    engine = suite.engine()
    whole = run_unit(suite, plan, "key", 0, engine)
    assert {a.name for a in plan.arms} == {"diff_means@0", "diff_means@1", "das@0", "das@1", "random@0", "random@1"}
    with Journal(tmp_path, read_only=True) as journal:
        units = planned(suite, plan, 1)
        plain = journal.read(units.plain["key", 0], "plain")
        assert (plain["plain"], plain["base"]) == (whole["plain"], whole["base"])
        for arm in plan.arms:
            found = journal.read(units.measured[arm.name, "key", 0], "measure")["arm"]
            assert found["digest"] == whole["arms"][arm.name]["digest"]
            assert found["directions"] == whole["arms"][arm.name]["directions"]
            fit = units.by_inputs[units.by_inputs[units.measured[arm.name, "key", 0]].needs]
            assert sl.Steering.load(journal.steering_path(fit, "key")).digest == found["digest"]
    assert {row.arm for row in results.table} == {"unsteered", *(a.name for a in plan.arms)}
    assert {(row.arm, row.layer) for row in results.layers} == {
        (m, n) for m in ("diff_means", "das", "random") for n in (0, 1)
    }


def test_concepts_are_fitted_together_where_the_method_can(undisturbed, folder):
    sweep = Sweep.read(asked(folder))
    suite = sweep.suite()
    units = planned(suite, sweep.plan(suite, 2), 2)
    fits = {(u.arm, u.tasks) for u in units.all if u.kind == "fit"}
    assert ("das@0", ("key", "again")) in fits
    assert ("diff_means@0", ("key",)) in fits
    assert len(fits) == 2 + 4 + 4
    assert len(units.all) == len(undisturbed[1]) == 2 + 10 + 12
    assert None not in undisturbed[1].values()


# --- killed -----------------------------------------------------------------------------------------------------------------


def test_a_sweep_killed_anywhere_ends_as_an_undisturbed_one(undisturbed, folder, tmp_path):
    words = ["-m", "steerlab", "sweep", str(asked(folder)), "--out", str(tmp_path), "--workers", "1"]
    for done in (1, 8):
        process = children.start(words)
        until(tmp_path, done, process)
        process.kill()
        process.wait()
        left = digests(tmp_path)
        assert 0 < sum(v is not None for v in left.values()) < len(left), "it was killed in the middle of it"
    told = status(tmp_path)
    assert (told.ended, told.at_work) == (False, False)
    assert "run the same command to go on" in told.words
    (tmp_path / "units" / ".fit.json.left.part").write_text("{", encoding="utf-8")
    strange = tmp_path / "somebody's" / ".own.part"
    strange.parent.mkdir()
    strange.touch()
    _, found = ran(asked(folder), tmp_path)
    assert found == undisturbed[1]
    assert status(tmp_path).words == f"{len(found)} of {len(found)} units done; finished"
    assert list(tmp_path.rglob("*.part")) == [strange], "what the killed ones hadn't written to its end is gone"


def test_a_killed_worker_loses_its_unit_alone(undisturbed, folder, tmp_path):
    path = asked(folder)
    pool = Processes(Sweep.read(path).suite(), 2)
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path,), daemon=True)
    killer.start()
    _, found = ran(path, tmp_path, pool)
    killer.join()
    assert found == undisturbed[1]
    with Journal(tmp_path, read_only=True) as journal:
        assert sorted(row.tried for row in journal.rows().values()) == [1] * (len(found) - 1) + [2]


def kill_a_worker(out) -> None:
    """The first worker that the journal shows at work, whose name ends in its process."""
    while True:
        if count(out, "done") >= 2:
            with Journal(out, read_only=True) as journal:
                claimed = [row for row in journal.rows().values() if row.state == "claimed"]
            if claimed:
                os.kill(int(claimed[0].worker.rpartition(":")[2]), signal.SIGKILL)
                return
        time.sleep(0.002)


def until(out, done, process, seconds=300) -> None:
    """Wait until the journal has so many units done."""
    end = time.monotonic() + seconds
    while count(out, "done") < done:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.01)


def count(out, state) -> int:
    try:
        with Journal(Path(out), read_only=True) as journal:
            return sum(row.state == state for row in journal.rows().values())
    except ArtefactError:  # no journal yet, or one without tables
        return 0


def test_a_damaged_result_is_done_again_and_nothing_else(undisturbed, folder, tmp_path):
    path = asked(folder)
    ran(path, tmp_path)
    steering, unit = sorted((tmp_path / "steerings").iterdir())[0], sorted((tmp_path / "units").glob("measure-*"))[0]
    steering.write_bytes(steering.read_bytes()[:-8])
    unit.write_text(unit.read_text().replace('"effect": [', '"effect": [9.0, ', 1))
    _, found = ran(path, tmp_path)
    assert found == undisturbed[1]
    with Journal(tmp_path, read_only=True) as journal:
        assert sorted(row.tried for row in journal.rows().values()) == [1] * (len(found) - 2) + [2, 2]


def test_more_seeds_go_on_with_what_is_there(undisturbed, folder, tmp_path):
    ran(asked(folder, names=("key",)), tmp_path)
    first = digests(tmp_path)
    _, more = ran(asked(folder, names=("key",), seeds=2), tmp_path)
    assert first.items() < more.items()
    with Journal(tmp_path, read_only=True) as journal:
        assert {row.tried for row in journal.rows().values()} == {1}


def test_two_sweeps_never_share_a_folder(folder, tmp_path):
    with locked(tmp_path), pytest.raises(ArtefactError, match="another sweep is at work"):
        ran(asked(folder), tmp_path)


# --- failures ---------------------------------------------------------------------------------------------------------------


def test_a_concept_that_cannot_be_fitted_is_reported_beside_the_others(steerlab, folder, tmp_path):
    path = asked(folder, names=("key", "mute"), together=2)
    code, shown, said = steerlab("sweep", path, "--out", tmp_path, "--workers", "1", "--json")
    assert code == 1
    told = json.loads(shown)
    failed = {f["unit"]: f["reason"] for f in told["failed"]}
    assert set(failed) == {"measure das@0 on mute, seed 0", "measure das@1 on mute, seed 0"}
    assert all("trains on answers" in reason for reason in failed.values())
    assert {row["arm"] for row in told["table"]} >= {"das@0", "das@1", "diff_means@0"}
    assert "units failed" in (tmp_path / "report.html").read_text()
    assert "measure das@0 on mute" in said
    _, shown, _ = steerlab("sweep", "status", tmp_path)
    assert "2 failed" in shown.splitlines()[0]
    assert "failed, tried 0 times: measure das@0 on mute, seed 0" in shown


class Flaky(Inline):
    """Workers whose first tries at measuring fail: all of them, or so many."""

    def __init__(self, suite, failures):
        super().__init__(suite, 1)
        self.left = failures

    def give(self, worker, key, job):
        if type(job).__name__ == "_Measure" and self.left > 0:
            self.left -= 1
            super().give(worker, key, fails)
        else:
            super().give(worker, key, job)


def fails(bench):
    raise OSError("the wire is cut")


def test_what_fails_is_tried_again_then_reported(undisturbed, folder, tmp_path):
    path = asked(folder)
    suite = Sweep.read(path).suite()
    results, found = ran(path, tmp_path / "a", Flaky(suite, 2), retries=2)
    assert found == undisturbed[1]
    assert results.failed == []
    results, found = ran(path, tmp_path / "b", Flaky(suite, 3), retries=2)
    assert [(f["attempts"], f["reason"]) for f in results.failed] == [(3, "OSError: the wire is cut")]
    assert sum(v is None for v in found.values()) == 1
    assert "1 of" in results.notes[0]
    _, found = ran(path, tmp_path / "b")
    assert found == undisturbed[1], "the same command tries again what had failed"


def test_a_job_that_fails_elsewhere_raises_here(folder):
    suite = Sweep.read(asked(folder)).suite()
    with Processes(suite, 1) as pool, pytest.raises(RuntimeError, match="the wire is cut"):
        list(completed(pool, {"a": fails}))


def test_a_model_that_cannot_be_loaded_is_said_once(folder, tmp_path):
    (tmp_path / "model").mkdir()
    suite = Sweep.read(asked(folder)).suite()
    broken = replace(suite, parts=tuple(replace(part, model=str(tmp_path / "model")) for part in suite.parts))
    with Processes(broken, 1) as pool, pytest.raises(ArtefactError, match="can't be loaded"):
        pool.known()


# --- how it stands ----------------------------------------------------------------------------------------------------------


def test_the_time_left_is_that_of_the_units_that_are_missing():
    def row(kind, arm, state, seconds=None, worker=None, claimed=None):
        return Row("", kind, "", arm, state, 1, worker, claimed, seconds, None, None)

    rows = [
        row("fit", "a", "done", 10.0), row("fit", "a", "done", 20.0), row("measure", "a", "done", 4.0),
        row("fit", "a", "waiting"), row("measure", "b", "waiting"),
        row("fit", "a", "claimed", worker="1", claimed=95.0), row("measure", "a", "claimed", worker="2", claimed=10.0),
    ]  # fmt: skip
    assert remaining(rows, 100.0) == pytest.approx((15 + 4 + (15 - 5) + 0) / 2)
    assert remaining(rows[3:], 100.0) is None


def test_status_reads_while_a_sweep_writes(folder, tmp_path, steerlab):
    words: list[str] = []

    class Watched(Inline):
        def wait(self, seconds=None):
            found = super().wait(seconds)
            words.append(status(tmp_path).words)
            return found

    path = asked(folder, names=("key",))
    ran(path, tmp_path, Watched(Sweep.read(path).suite(), 1))
    total = len(digests(tmp_path))
    assert words[0] == f"0 of {total} units done; 1 running"
    assert words[-1].startswith(f"{total - 1} of {total} units done; 1 running, about 0 s left")
    code, shown, _ = steerlab("sweep", "status", tmp_path, "--json")
    assert code == 0
    assert json.loads(shown)["ended"] is True
    code, _, said = steerlab("sweep", "status", tmp_path / "elsewhere")
    assert code == 2
    assert "there is no sweep in" in said


def test_a_dry_run_counts_what_a_run_does(steerlab, undisturbed, folder, tmp_path):
    code, shown, said = steerlab(
        "sweep", asked(folder), "--out", tmp_path / "none", "--workers", "1", "--dry-run", "--json"
    )
    assert code == 0, said
    assert not (tmp_path / "none").exists()
    told = json.loads(shown)
    assert told["units"] == {"plain": 2, "fit": 10, "measure": 12}
    assert sum(told["units"].values()) == len(undisturbed[1])
    batch = sl.method("das").batch_size
    assert told["steps"] == 2 * 2 * -(-10 // batch), (
        "two concepts at two layers, one epoch over 12 of 20 pairs less two held out"
    )
    ran(asked(folder), tmp_path / "run")
    size = sum(f.stat().st_size for sub in ("units", "steerings") for f in (tmp_path / "run" / sub).iterdir())
    assert told["disk_mib"] * 2**20 == pytest.approx(
        size, rel=0.5
    )  # a forecast: half as much again is what it promises
    assert told["memory_mib"] > 100


def test_each_worker_sees_gpus_of_its_own(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with _seeing(1, 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    with _seeing(1, 1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    with pytest.raises(ConfigError, match="has no more"), _seeing(1, 2):
        pass
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6"


# --- on a cluster -----------------------------------------------------------------------------------------------------------


def test_ray_gives_the_same_and_a_killed_worker_loses_its_unit_alone(undisturbed, folder, tmp_path):
    pytest.importorskip("ray", reason="Ray isn't installed (pip install 'steerlab[ray]')")
    from steerlab.evals.workers_ray import RayWorkers

    path = asked(folder)
    pool = RayWorkers(Sweep.read(path).suite(), 2)
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path,), daemon=True)
    killer.start()
    _, found = ran(path, tmp_path, pool)
    killer.join()
    assert found == undisturbed[1]
    with Journal(tmp_path, read_only=True) as journal:
        rows = journal.rows().values()
        assert all(row.worker.startswith("ray ") for row in rows)
        assert sorted(row.tried for row in rows) == [1] * (len(found) - 1) + [2]
