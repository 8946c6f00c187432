"""The journal of a sweep: one SQLite file, one row per unit, and the units' results as files beside it.

A unit is named by the digest of its inputs. Its row says how it stands (waiting, claimed, done, failed), who has it, how
often it was tried, and the digest of its outputs. Its result is written beside and renamed before its row says done, so
that a process killed anywhere leaves a unit either done or to be done, and no result twice. One process writes (it holds
the folder's lock, which the system lets go of when it dies); any other may read at any time (`status`).
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from ..errors import ArtefactError, SteerlabError
from ..files import write_bytes, write_text
from ..steering import Steering
from .units import Unit

FILE = "journal.sqlite"
State = Literal["waiting", "claimed", "done", "failed"]
SCHEMA = """
CREATE TABLE IF NOT EXISTS units (
  inputs TEXT PRIMARY KEY,  -- digest of all that the result rests on
  place INTEGER,            -- in the plan; NULL: an earlier plan's, kept in case it is asked for again
  kind TEXT NOT NULL, name TEXT NOT NULL, arm TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('waiting', 'claimed', 'done', 'failed')),
  tried INTEGER NOT NULL DEFAULT 0, worker TEXT, claimed REAL, seconds REAL,
  outputs TEXT,             -- digest of the result
  reason TEXT               -- of its last failure
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
UNITS, STEERINGS = "units", "steerings"  # folders of a run
TIMES = ("seconds", "cpu_seconds", "peak_mib", "added_mib")  # what a result says of its run, and no digest holds


class Row(NamedTuple):
    """How a unit stands."""

    inputs: str
    kind: str
    name: str
    arm: str
    state: State
    tried: int
    worker: str | None
    claimed: float | None
    seconds: float | None
    outputs: str | None
    reason: str | None


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """The folder for this process alone. Raises `ArtefactError` where another sweep is at work in it."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as problem:
        raise ArtefactError(f"{folder} can't be written: {problem.strerror or problem}.") from problem
    with closing(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise ArtefactError(
                f"another sweep is at work in {folder} (`steerlab sweep status {folder}`); wait for it, or give another folder"
                " with --out."
            ) from problem
        yield


class Journal:
    """The journal of a folder. Close it, or use it in a `with` block."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder
        path = folder / FILE
        if read_only and not path.is_file():
            raise ArtefactError(
                f"there is no sweep in {folder}; expected the folder that `steerlab sweep` wrote (--out)."
            )
        try:
            if read_only:
                self._base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                self._base = sqlite3.connect(path, timeout=30, isolation_level=None)
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("PRAGMA synchronous=NORMAL")
                self._base.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as problem:
            raise ArtefactError(f"{path} can't be opened as a sweep's journal: {problem}.") from problem

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    def _do(self, words: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._base.execute(words, values)
        except sqlite3.Error as problem:
            raise ArtefactError(
                f"{self.folder / FILE} can't be read or written: {problem}. What was finished is kept; is the disk full? Run the"
                " command again to go on."
            ) from problem

    # --- how units stand ----------------------------------------------------------------------------------------------

    def rows(self) -> dict[str, Row]:
        """Every unit of the plan, in its order, by the digest of its inputs."""
        columns = ", ".join(Row._fields)
        found = self._do(f"SELECT {columns} FROM units WHERE place IS NOT NULL ORDER BY place")
        return {row[0]: Row(*row) for row in found}

    def begin(self, units: Iterable[Unit]) -> None:
        """Take up a plan: what is done and whole stays done, all else is to be done, whoever had claimed it."""
        self._do("BEGIN IMMEDIATE")
        self._do("UPDATE units SET place = NULL")
        for place, unit in enumerate(units):
            self._do(
                "INSERT INTO units (inputs, place, kind, name, arm, state) VALUES (?, ?, ?, ?, ?, 'waiting')"
                " ON CONFLICT (inputs) DO UPDATE SET place = excluded.place, kind = excluded.kind, name = excluded.name,"
                " arm = excluded.arm",
                (unit.inputs, place, unit.kind, unit.name, unit.arm),
            )
        self._do("UPDATE units SET state = 'waiting', tried = 0, reason = NULL WHERE state IN ('claimed', 'failed')")
        self._do("COMMIT")
        for row in self.rows().values():
            if row.state == "done" and not self._whole(row):
                self._do("UPDATE units SET state = 'waiting' WHERE inputs = ?", (row.inputs,))

    def claim(self, inputs: str, worker: str) -> None:
        """A unit is given to a worker."""
        self._move(inputs, "waiting", "claimed", "tried = tried + 1, worker = ?, claimed = ?", worker, time.time())

    def done(self, unit: Unit, result: Mapping[str, Any]) -> None:
        """Keep a claimed unit's result, then say so."""
        self.write(unit, result)
        took = "seconds = ?, outputs = ?, reason = NULL"
        self._move(unit.inputs, "claimed", "done", took, result["meter"]["seconds"], outputs_of(result))

    def again(self, inputs: str, reason: str) -> None:
        """A claimed unit gave nothing and is to be tried again."""
        self._move(inputs, "claimed", "waiting", "reason = ?", reason)

    def reopen(self, inputs: str, reason: str) -> None:
        """A unit that was done is to be done again: something is known now that it lacked."""
        self._move(inputs, "done", "waiting", "reason = ?", reason)

    def failed(self, inputs: str, reason: str) -> None:
        """A unit is given up."""
        self._do("UPDATE units SET state = 'failed', reason = ? WHERE inputs = ?", (reason, inputs))

    def _move(self, inputs: str, before: State, after: State, what: str, *values: object) -> None:
        moved = self._do(
            f"UPDATE units SET state = '{after}', {what} WHERE inputs = ? AND state = '{before}'", (*values, inputs)
        )
        if moved.rowcount != 1:
            raise SteerlabError(f"the unit {inputs} isn't {before} any more; is another process writing {self.folder}?")

    # --- facts of the run ---------------------------------------------------------------------------------------------

    def fact(self, name: str) -> Any:
        """What was noted under a name, or None."""
        found = self._do("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if found is None else json.loads(found[0])

    def note(self, facts: Mapping[str, Any]) -> None:
        """Note facts of the run by name: when it began, its last sign of life."""
        for name, value in facts.items():
            self._do("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    # --- results ------------------------------------------------------------------------------------------------------

    def write(self, unit: Unit, result: Mapping[str, Any]) -> None:
        """Keep a result; a fit's steerings are files of their own, that `steerlab generate` takes."""
        told = {k: v for k, v in result.items() if k != "files"}
        if unit.kind == "fit":
            for task, data in result["files"].items():
                write_bytes(self.steering_path(unit, task), data)
            told["saved"] = {task: unit.file(task) for task in result["files"]}
        write_text(self._path(unit.inputs, unit.kind), json.dumps(told, ensure_ascii=False))

    def read(self, inputs: str, kind: str) -> dict[str, Any] | None:
        """A result, or None where it isn't there (or was damaged)."""
        try:
            return json.loads(self._path(inputs, kind).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def steering_path(self, unit: Unit, task: str) -> Path:
        """Where a fitted steering lies."""
        return self.folder / STEERINGS / unit.file(task)

    def _path(self, inputs: str, kind: str) -> Path:
        return self.folder / UNITS / f"{kind}-{inputs}.json"

    def _whole(self, row: Row) -> bool:
        """Whether what a done unit gave is still there, as it was."""
        result = self.read(row.inputs, row.kind)
        if result is None or outputs_of(result) != row.outputs:
            return False
        try:
            saved = {
                task: Steering.load(self.folder / STEERINGS / name) for task, name in result.get("saved", {}).items()
            }
        except SteerlabError:
            return False
        return all(steering.digest == result["digests"][task] for task, steering in saved.items())


def outputs_of(result: Mapping[str, Any]) -> str:
    """The digest of a result: all of it but how long it took and in how much memory."""
    told = {k: v for k, v in result.items() if k not in ("meter", "files", "saved")}
    return hashlib.sha256(json.dumps(_untimed(told), sort_keys=True).encode()).hexdigest()


def _untimed(thing: Any) -> Any:
    if isinstance(thing, Mapping):
        return {k: _untimed(v) for k, v in thing.items() if k not in TIMES}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(thing, (list, tuple)):
        return [_untimed(v) for v in thing]  # pyright: ignore[reportUnknownVariableType]
    return thing


def alive(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
