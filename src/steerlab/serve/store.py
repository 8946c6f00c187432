"""The steerings of a server: one safetensors file for each name, written beside and renamed.

A name is a version: what it means never changes. Another content under a taken name is refused; the same content again
changes nothing. A folder may be shared by several servers (replicas): what one takes in or removes is so for all of them at the
next request, as each looks at the file before it trusts what it has read. A file that can't be served is set aside with its
reason, and hides none of the others. A folder belongs to one server unless all that use it share it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import struct
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any

from ..edits import Descend, OneSided
from ..errors import ArtefactError, SteerlabError, nearest
from ..steering import Steering
from .locks import Held
from .problems import Problem

log = logging.getLogger("steerlab.serve")
NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?", re.ASCII)
DIGEST = re.compile(r"[0-9a-f]{8,64}", re.ASCII)
RESERVED = ("base",)
HEADER = 512 << 10  # bytes of a safetensors header; a steering's is a few kilobytes
INTERVENTIONS = 512
STEPS = 200  # of an edit that descends at every token
FURTHEST = 2**31


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A steering under its name."""

    name: str
    digest: str
    size: int
    steering: Steering

    @classmethod
    def load(cls, path: Path, name: str | None = None) -> Entry:
        """A file under a name, its own unless told otherwise. Raises `ArtefactError`."""
        steering = Steering.load(path)
        if len(steering.interventions) > INTERVENTIONS:
            raise ArtefactError(
                f"{path} has {len(steering.interventions)} interventions; at most {INTERVENTIONS} are served."
            )
        for i in steering.interventions:
            edit = i.edit.inner if isinstance(i.edit, OneSided) else i.edit
            if isinstance(edit, Descend) and edit.steps > STEPS:
                raise ArtefactError(f"{path} descends {edit.steps} steps at each token; at most {STEPS} are served.")
            bounds = [
                b for w in (*i.positions.prompt, *i.positions.generated) for b in (w.start, w.stop) if b is not None
            ]
            if any(abs(b) > FURTHEST for b in bounds):
                raise ArtefactError(f"{path} has positions beyond {FURTHEST} tokens.")
        return cls(name or path.stem, steering.digest, path.stat().st_size, steering)

    def told(self) -> dict[str, Any]:
        """What lists say of it."""
        s = self.steering
        return {
            "object": "steering",
            "name": self.name,
            "digest": self.digest,
            "bytes": self.size,
            "sites": [str(site) for site in s.sites],
            "positions": list(dict.fromkeys(str(i.positions) for i in s.interventions)),
            "edits": [i.edit.kind for i in s.interventions],
            "controls": [i.control.kind for i in s.interventions],
            "domain": [None if abs(bound) == float("inf") else bound for bound in s.domain],
            "prompt": s.prompt is not None,
            "method": _sound(s.meta.method.get("name")),
            "model": s.meta.model,
            "range": _sound(s.meta.range),
        }


Stamp = tuple[int, int, int]  # a file's number, time of change and size


class Store:
    """Steerings by name and digest, in a folder.

    `accept` holds a file's steering against the model before it is served; it raises a `SteerlabError` for what doesn't fit.
    `take` is what is served of a file's steering: itself, or the same taken over for this model. `reserved` are names that
    no steering may have, such as the model's own.
    """

    def __init__(
        self,
        folder: Path,
        most: int,
        *,
        shared: bool = False,
        accept: Callable[[Steering], None] | None = None,
        take: Callable[[Steering], Steering] = lambda steering: steering,
        reserved: Sequence[str] = (),
    ) -> None:
        self.folder, self.most, self._take, self._reserved = folder, most, take, tuple(reserved)
        self._shared, self._accept = shared, accept
        self._entries: dict[str, Entry] = {}
        self._stamps: dict[str, Stamp] = {}
        self._aside: dict[str, tuple[Stamp, str]] = {}  # files that can't be served, and why
        self._lock, self._held = RLock(), Held(folder, shared=shared)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def aside(self) -> dict[str, str]:
        """Names whose files can't be served, and why."""
        return {name: why for name, (_, why) in self._aside.items()}

    def all(self) -> list[Entry]:
        """All of them, by name."""
        with self._lock:
            if self._shared:
                self._look_at_all()
            return sorted(self._entries.values(), key=lambda entry: entry.name)

    def find(self, name: str) -> Entry | None:
        """A steering by its name, its digest, or at least 8 first digits of it; None where there is none."""
        with self._lock:
            if self._shared and NAME.fullmatch(name):
                self._look_at(name)
            if name in self._entries:
                return self._entries[name]
            if len(name) >= 8:
                if self._shared:
                    self._look_at_all()
                found = [e for e in self._entries.values() if e.digest.startswith(name)]
                if len({e.digest for e in found}) == 1:
                    return found[0]
            return None

    def get(self, name: str) -> Entry:
        """The same. Raises `Problem` 404 with the nearest name, 409 for a file that can't be served."""
        found = self.find(name)
        if found is None and name in self._aside:
            raise Problem(409, f"the steering {name!r} can't be served: {self._aside[name][1]}", "bad_steering")
        if found is None:
            raise self._missing(name)
        return found

    def load(self, path: Path, name: str | None = None) -> Entry:
        """A file under a name, its own unless told otherwise, as it is served here. Raises `ArtefactError`."""
        entry = Entry.load(path, name)
        return replace(entry, steering=self._take(entry.steering))

    def open(self) -> None:
        """Take the folder and read it; what a killed upload has left goes.

        Raises `ArtefactError` where the folder can't be used, and where another server has it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held.take()
            for part in () if self._shared else self.folder.glob(".*.part"):  # another one may be writing
                part.unlink(missing_ok=True)
            with self._lock:
                self._look_at_all()
        except OSError as problem:
            raise ArtefactError(
                f"the folder {self.folder} of steerings can't be used: {problem.strerror}."
            ) from problem

    def close(self) -> None:
        """Leave the folder to others."""
        self._held.leave()

    def check_name(self, name: str) -> None:
        """Raise `Problem` 400 for what can't be a steering's name here, 409 where another's differs in case alone."""
        check_name(name, self._reserved)
        with self._lock:
            if twin := next((n for n in self._entries if n != name and n.lower() == name.lower()), None):
                raise Problem(
                    409, f"the name {name!r} differs from the steering {twin!r} in case alone; give this one another, such as"
                    f" {name[:60]}-2.", "name_taken",
                )  # fmt: skip

    def read(self, name: str, data: bytes) -> Entry:
        """What an upload holds, checked as far as that goes without a model. Raises `Problem` 400 or 409."""
        self.check_name(name)
        check_header(data)
        with self._lock:
            if len(self._entries) >= self.most and name not in self._entries:
                raise Problem(409, f"{self.most} steerings are kept here already; remove one.", "store_full")
        with _beside(self.folder, data) as part:
            try:
                return self.load(part, name)
            except SteerlabError as problem:
                raise Problem(400, str(problem).replace(str(part), f"the upload {name!r}"), "bad_steering") from problem

    def write(self, entry: Entry, data: bytes) -> bool:
        """Keep an upload; False where its name meant the same before. Raises `Problem` 409 for a taken name."""
        with self._lock:
            self.check_name(entry.name)
            self._look_at(entry.name)
            known = self._entries.get(entry.name)
            if known is not None and known.digest == entry.digest:
                return False
            if known is not None or entry.name in self._aside:
                by = "a file that can't be served" if known is None else known.digest[:12]
                raise Problem(
                    409, f"the name {entry.name!r} is taken by {by}; a name never changes its meaning, so give"
                    f" this one another, such as {entry.name[:60]}-2.", "name_taken",
                )  # fmt: skip
            if not _first(self._path(entry.name), data):
                return self.write(entry, data)  # somebody else was faster: is it the same?
            self._entries[entry.name] = entry
            self._stamps[entry.name] = _stamp(self._path(entry.name)) or (0, 0, 0)
            return True

    def remove(self, name: str) -> Entry | None:
        """Forget a steering, by its name alone; None for a file that couldn't be served. Requests that run with it go on.

        Raises `Problem` 404.
        """
        with self._lock:
            self._look_at_all()
            if name not in self._entries and name not in self._aside:
                raise self._missing(name)
            self._path(name).unlink(missing_ok=True)
            return self._forget(name)

    def bytes_of(self, entry: Entry) -> bytes:
        """The file of a steering. Raises `Problem` 404 where it was removed meanwhile."""
        try:
            return self._path(entry.name).read_bytes()
        except OSError as problem:
            raise Problem(404, f"the steering {entry.name!r} was just removed.", "steering_not_found") from problem

    def _missing(self, name: str) -> Problem:
        near = nearest(name[:80], self._entries)
        return Problem(404, f"there is no steering {name[:80]!r} here. {near}", "steering_not_found", param="steering")

    def _look_at_all(self) -> None:
        """What others have put there and removed."""
        there = {path.stem for path in self.folder.glob("*.safetensors")}
        for name in sorted(there | set(self._entries) | set(self._aside)):
            self._look_at(name)

    def _look_at(self, name: str) -> None:
        """Read a file that is new or another one than before; one that can't be served is set aside, and the log told once."""
        stamp = _stamp(self._path(name))
        if stamp is None:
            self._forget(name)
        elif stamp != self._stamps.get(name) and stamp != self._aside.get(name, (None, ""))[0]:
            try:
                self.check_name(name)
                entry = self.load(self._path(name))
                if self._accept is not None:
                    self._accept(entry.steering)
            except (Problem, SteerlabError, OSError) as problem:
                if isinstance(problem, Problem) and problem.status >= 500:
                    raise  # the server is ending: nothing is known of the file
                self._set_aside(name, stamp, str(problem))
            except Exception:  # whatever is wrong with one file, the others are served
                log.error("a file in the store broke what reads it", exc_info=True, extra={"told": {"file": name}})
                self._set_aside(name, stamp, "it breaks what reads it; the server's log says how.")
            else:
                self._aside.pop(name, None)
                self._entries[name], self._stamps[name] = entry, stamp

    def _set_aside(self, name: str, stamp: Stamp, why: str) -> None:
        if _stamp(self._path(name)) is None:
            return  # removed meanwhile
        self._forget(name)
        why = why.replace(str(self._path(name)), f"the file of {name[:80]!r}")
        self._aside[name] = (stamp, why)
        log.error("a file in the store can't be served", extra={"told": {"file": name, "why": why}})

    def _forget(self, name: str) -> Entry | None:
        self._stamps.pop(name, None)
        self._aside.pop(name, None)
        return self._entries.pop(name, None)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def readable(folder: Path) -> list[Path]:
    """The files of a folder that hold a steering which can be served somewhere."""
    found: list[Path] = []
    for path in sorted(folder.glob("*.safetensors")):
        with suppress(SteerlabError, OSError):  # the store sets it aside, and says why
            Entry.load(path)
            found.append(path)
    return found


def _stamp(path: Path) -> Stamp | None:
    """What tells a file from another one of its name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _first(path: Path, data: bytes) -> bool:
    """Write a file whole unless there is one; False where there is."""
    with _beside(path.parent, data) as part:
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.chmod(0o644)
        try:
            os.link(part, path)  # unlike renaming, never in another's place
        except FileExistsError:
            return False
        except OSError as problem:
            if problem.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            if path.exists():
                return False
            part.replace(path)  # a disk without links
    return True


def check_name(name: str, reserved: Sequence[str] = ()) -> None:
    """Raise `Problem` 400 for what can't be a steering's name; `reserved` are taken, in whatever case."""
    if name.lower() in {r.lower() for r in (*RESERVED, *reserved)}:
        raise Problem(
            400, f"a steering can't be called {name[:80]!r}: that is the model's own name, alone or in another case; give it"
            f" another, such as {name[:60]}-2.", "bad_name",
        )  # fmt: skip
    if not NAME.fullmatch(name) or ".." in name or DIGEST.fullmatch(name):
        raise Problem(
            400, f"a steering can't be called {name[:80]!r}; expected 1 to 64 letters, digits, '_', '.' and '-' (these two not at"
            " an end), not 'base', and nothing that looks like a digest.", "bad_name",
        )  # fmt: skip


def check_header(data: bytes) -> None:
    """Raise `Problem` 400 for what isn't a safetensors file of a sensible header, before anything reads it."""
    if len(data) < 8:
        raise Problem(400, f"the upload has {len(data)} bytes; expected a safetensors file.", "not_safetensors")
    (length,) = struct.unpack("<Q", data[:8])
    if data[8:9] != b"{" or length + 8 > len(data):
        raise Problem(
            400, "the upload isn't a whole safetensors file; expected one that Steering.save wrote (pickles and archives are"
            " never read).", "not_safetensors",
        )  # fmt: skip
    if length > HEADER:
        raise Problem(400, f"the upload has a header of {length} bytes; at most {HEADER} are read.", "not_safetensors")
    try:
        head = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as problem:
        raise Problem(400, "the upload's header isn't JSON.", "not_safetensors") from problem
    if not isinstance(head, dict):
        raise Problem(400, "the upload's header isn't a JSON object.", "not_safetensors")


@contextmanager
def _beside(folder: Path, data: bytes) -> Generator[Path]:
    """The data as a file in the folder that nobody sees and that goes again."""
    try:
        handle, name = tempfile.mkstemp(prefix=".upload.", suffix=".part", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as problem:
        raise Problem(
            503, f"the upload can't be kept now ({problem.strerror}); nothing was changed.", "disk"
        ) from problem


def _sound(value: object) -> Any:
    """A JSON value as it is, or None where it can't be written as JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return value
