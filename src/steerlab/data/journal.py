"""A journal beside the output of a long job: a line per finished piece, so that an interrupted job can go on.

The first line says what the job is; a journal of another job is never continued. A line that an interruption cut short
is dropped, and its piece is done again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from ..errors import ArtefactError, DataError


class Journal:
    """The finished pieces of one job, on disk where it has a path.

    Raises `DataError` where the path holds the journal of another job, and says what differs.
    """

    def __init__(self, path: Path | None, job: Mapping[str, Any]) -> None:
        self.path = path
        self.pieces: list[Any] = []
        self._job = json.loads(json.dumps(job))
        if path is not None and path.exists():
            self._resume(path)

    @classmethod
    def beside(cls, out: str | os.PathLike[str] | None, job: Mapping[str, Any]) -> Journal:
        """The journal of an output file (`pairs.jsonl.journal`), or one in memory alone."""
        return cls(None if out is None else Path(f"{os.fspath(out)}.journal"), job)

    def add(self, piece: Any) -> None:
        """Note a finished piece; it is on the disk when this returns."""
        if self.path is not None:
            new = not self.path.exists()
            lines = [*([{"job": self._job}] if new else []), {"piece": piece}]
            self._append("".join(json.dumps(line) + "\n" for line in lines))
        self.pieces.append(piece)

    def end(self) -> None:
        """Remove the file: the job is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _append(self, text: str) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as problem:
            raise ArtefactError(
                f"{self.path} can't be written: {problem.strerror or problem}. What was finished before is kept; free"
                " some space, and run the same command again to go on."
            ) from problem

    def _resume(self, path: Path) -> None:
        whole, good = path.read_bytes(), 0
        for number, line in enumerate(whole.splitlines(keepends=True), 1):
            try:
                if not line.endswith(b"\n"):
                    break
                row = cast("dict[str, Any]", json.loads(line))
                if number == 1:
                    self._same(path, row["job"])
                else:
                    self.pieces.append(row["piece"])
            except (ValueError, KeyError, TypeError) as problem:
                if isinstance(problem, DataError):
                    raise
                raise DataError(
                    f"{path}, line {number} is no line of a journal. Remove the file to start anew, or give another"
                    " output."
                ) from problem
            good += len(line)
        if good < len(whole):
            os.truncate(path, good)
        if good == 0:
            path.unlink()

    def _same(self, path: Path, job: Any) -> None:
        before = cast("dict[str, Any]", job)
        keys = [
            k for k in (*self._job, *(k for k in before if k not in self._job)) if before.get(k) != self._job.get(k)
        ]
        if keys:
            told = "; ".join(f"{k}: {_short(before.get(k))} there, {_short(self._job.get(k))} here" for k in keys[:3])
            raise DataError(
                f"{path} is the journal of another job ({told}). Run that job again to finish it, remove the file to"
                " start anew, or give another output."
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def settled(thing: object, depth: int = 6) -> Any:
    """What settles how an object acts, as plain data that is the same in every process: its class and its fields."""
    if thing is None or isinstance(thing, (str, int, float, bool)):
        return thing
    if isinstance(thing, re.Pattern):
        return [thing.pattern, thing.flags]
    if isinstance(thing, Mapping):
        return {str(k): settled(v, depth) for k, v in cast("Mapping[object, object]", thing).items()}
    if isinstance(thing, (list, tuple)):
        return [settled(v, depth) for v in cast("Iterable[object]", thing)]
    if isinstance(thing, (set, frozenset)):  # in whatever order: string hashes differ between processes
        return sorted(json.dumps(settled(v, depth), sort_keys=True) for v in cast("Iterable[object]", thing))
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if not depth:
        return kind
    if isinstance(thing, types.FunctionType):
        return [thing.__qualname__, thing.__code__.co_code.hex(), settled(thing.__code__.co_consts, depth - 1)]
    if (known := getattr(thing, "fingerprint", None)) is not None:  # an engine: its model, and not all that it holds
        return [kind, settled(known, depth - 1)]
    names = (
        [f.name for f in dataclasses.fields(thing)]
        if dataclasses.is_dataclass(thing)
        else [*getattr(thing, "__dict__", ())]
    )
    return {"kind": kind, **{name: settled(getattr(thing, name), depth - 1) for name in names}}
