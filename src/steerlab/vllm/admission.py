"""A request's steering, read and checked before anything runs: it is served exactly, or fails with a sentence.

What a client writes under `steerlab` (in `extra_args`, or over HTTP as a string in `vllm_xargs`): a name, or names and strengths
in the grammar `0.8*formal-0.5*verbose`, or JSON:

    {"steering": [{"name": "formal", "strength": 0.8, "positions": "all"}, "verbose"], "readouts": ["formal"], "head": 3}

`readouts` are steerings whose own axis is read at each token. `head` is how many of the prompt's first tokens are the template's,
where the client knows; it is found by the chat template otherwise. What the workers get is an object that names files by their
digests, and the salt is a digest of the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal, cast

from ..controls import Gate
from ..engines.likeness import misfits
from ..engines.readout import Readout, readouts
from ..errors import ArtefactError, DataError, UnsupportedError, nearest
from ..positions import Positions
from ..steering import Intervention, Steering
from .asks import wanted
from .batch import Plan, looks_of, rows_of, same_gate
from .rows import refused
from .settings import KEY
from .tables import Size

KEPT = 1024  # files that are remembered
Tell = Literal["each", "so far", "end", "never"]


@dataclass(frozen=True)
class Part:
    """One steering of a request: the digest of its file, how strongly, and where instead of where it was fitted to act."""

    digest: str
    strength: float
    positions: str | None


@dataclass(frozen=True)
class Asked:
    """What the workers get, as plain data in a request's `extra_args`.

    `reads` has the digest and the name of each steering whose axis is read; `tell` says when what was found is told: `each`
    time that there are tokens, all `so far` each time, at the `end`, or `never`.
    """

    parts: tuple[Part, ...]
    head: int
    key: str
    reads: tuple[tuple[str, str], ...] = ()
    tell: Tell = "never"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        parts = [[p.digest, p.strength, p.positions] for p in self.parts]
        reads = [list(one) for one in self.reads]
        return {"resolved": parts, "head": self.head, "key": self.key, "reads": reads, "tell": self.tell}

    @classmethod
    def of(cls, parts: Sequence[Part], head: int, reads: Sequence[tuple[str, str]] = ()) -> Asked:
        """With its key: a digest of all that decides what is computed."""
        told = json.dumps([[p.digest, p.strength, p.positions] for p in parts])
        return cls(tuple(parts), head, hashlib.sha256(told.encode()).hexdigest(), tuple(reads))

    @classmethod
    def from_json(cls, row: object) -> Asked:
        """What `to_json` wrote. Raises `UnsupportedError` for a request that nothing has resolved."""
        given = cast("Mapping[str, Any]", row) if isinstance(row, Mapping) else {}
        if "resolved" not in given:
            raise UnsupportedError("a steered request came to the engine past steerlab's admission; it is not served.")
        parts, reads = (Part(*p) for p in given["resolved"]), ((str(d), str(n)) for d, n in given["reads"])
        return cls(tuple(parts), int(given["head"]), str(given["key"]), tuple(reads), given["tell"])

    @property
    def salt(self) -> str:
        """What keeps its prefix-cache blocks apart: the key, and where the template's head ends. Reading alone needs none."""
        return f"steerlab:{self.key}:{self.head}" if self.parts else ""

    @property
    def rows(self) -> str:
        """What tells its rows of the tables from others: the key, and what is read."""
        return ":".join((self.key, *(digest for digest, _ in self.reads)))


class Files:
    """Steerings by digest, kept in memory and on disk in a folder of the server's own, where nobody changes them."""

    def __init__(self, kept: Path) -> None:
        self._kept, self._lock = kept, Lock()
        self._known: OrderedDict[str, Steering] = OrderedDict()
        self._acting: OrderedDict[tuple[Part, ...], tuple[Intervention, ...]] = OrderedDict()

    def keep(self, steering: Steering) -> str:
        """Its digest; from now on workers find it."""
        digest = steering.digest
        path = self._kept / f"{digest}.safetensors"
        if not path.exists():
            steering.save(path)
        self._remember(digest, steering)
        return digest

    def get(self, digest: str) -> Steering:
        """The steering of that digest. Raises `ArtefactError`, also where a file isn't what its name says."""
        with self._lock:
            if digest in self._known:
                self._known.move_to_end(digest)
                return self._known[digest]
        steering = Steering.load(self._kept / f"{digest}.safetensors")
        if steering.digest != digest:
            raise ArtefactError(f"the file of steering {digest[:12]} holds another one; it is not served.")
        self._remember(digest, steering)
        return steering

    def acting(self, parts: Sequence[Part]) -> tuple[Intervention, ...]:
        """All that a request does to activations, in the order in which it acts; what has the strength 0 is left out."""
        key = tuple(parts)
        with self._lock:
            if key in self._acting:
                self._acting.move_to_end(key)
                return self._acting[key]
        found = interventions(self, parts)
        with self._lock:
            self._acting[key] = found
            if len(self._acting) > KEPT:
                self._acting.popitem(last=False)
        return found

    def reads(self, digests: Iterable[str]) -> tuple[Readout, ...]:
        """The read-outs of steerings, one after another. Raises `UnsupportedError` for an edit that has no axis."""
        return tuple(read for digest in digests for read in readouts(self.get(digest)))

    def has(self, digest: str) -> bool:
        """Whether the steering of that digest is kept: files are never taken away."""
        return digest in self._known or (self._kept / f"{digest}.safetensors").is_file()

    def _remember(self, digest: str, steering: Steering) -> None:
        with self._lock:
            self._known[digest] = steering
            self._known.move_to_end(digest)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)


def interventions(files: Files, parts: Sequence[Part]) -> tuple[Intervention, ...]:
    """All that a request does to activations, in the order in which it acts; what has the strength 0 is left out."""
    made: list[Intervention] = []
    for part in parts:
        steering = files.get(part.digest).scaled(part.strength)
        given = None if part.positions is None else Positions.parse(part.positions)
        made += [i if given is None else replace(i, positions=given) for i in steering.interventions]
    acting = [i for i in made if i.control.most != (0.0, 0.0)]
    return tuple(sorted(acting, key=lambda i: i.site.depth))


@dataclass(frozen=True)
class Known:
    """What is known of the served model: its name, its fingerprint (None where its files can't be read), its template."""

    name: str
    fingerprint: dict[str, Any] | None
    template: str


class Admission:
    """Reads requests. `head` finds the template's head in a prompt's ids; it is asked where a position needs it alone."""

    def __init__(
        self, folder: Path | None, files: Files, size: Size, model: Known, head: Callable[[Sequence[int]], int], *,
        classes: int, adopt: bool = False,
    ) -> None:  # fmt: skip
        self._folder, self._files, self._size, self.model, self._head = folder, files, size, model, head
        self._classes, self._adopt = classes, adopt
        self._read: dict[str, tuple[tuple[int, int, int], str, list[str]]] = {}
        self._fits: dict[str, list[str]] = {}
        self._said: dict[str, list[str]] = {}

    def resolve(self, given: object, ids: Sequence[int]) -> Asked:
        """What the workers get. Raises `SteerlabError` with a sentence for whatever can't be served exactly."""
        asking = wanted(given)
        parts: list[Part] = []
        for name, strength, positions in asking.terms:
            digest = self._named(name)
            if any(part.digest == digest for part in parts):
                raise DataError(f"the steering {name!r} is asked for twice; give it once.")
            steering = self._files.get(digest)
            if steering.prompt is not None and steering.prompt.strength * strength and not asking.prompted:
                raise UnsupportedError(
                    f"the steering {name!r} has a prompt, which vLLM can't put into a conversation; write it there yourself"
                    ' and say "prompted": true.'
                )
            parts.append(Part(digest, strength, positions))
        acting = self._files.acting(parts)
        asked = Asked.of(parts, 0, [(self._named(name), name) for name in asking.readouts])
        reads = self._files.reads(digest for digest, _ in asked.reads)
        if reasons := self._refused(asked.rows, acting, reads):
            raise UnsupportedError(f"this request can't be steered exactly: {'; '.join(reasons)}.")
        anchored = any(w.anchor == "body" for i in acting for w in i.positions.prompt)
        head = asking.head
        if head is None:
            head = self._head(ids) if anchored else 0
        head = min(head, max(len(ids) - 1, 0))
        if len({i.positions for i in acting}) + bool(reads) > 1:  # one set of positions makes one class
            self._check_classes(len(Plan.of(asked.key, acting, len(ids), head, reads).classes))
        tells = bool(reads) or any(isinstance(i.control, Gate) for i in acting)
        return replace(asked, head=head, tell="never" if not tells else "each" if asking.each else "end")

    def _check_classes(self, needed: int) -> None:
        if needed > self._classes:
            raise UnsupportedError(
                f"this request's tokens are steered in {needed} different ways, by their positions, and this server takes"
                f' {self._classes} (start it with "classes": {needed}).'
            )

    def _refused(self, key: str, acting: Sequence[Intervention], reads: Sequence[Readout]) -> list[str]:
        reasons = self._said.get(key)
        if reasons is None:
            if len(self._said) > 8 * KEPT:
                self._said.clear()
            reasons = self._said[key] = self._unfit(acting, reads)
        return reasons

    def _unfit(self, acting: Sequence[Intervention], reads: Sequence[Readout] = ()) -> list[str]:
        """Why the tables can't hold it, in words."""
        reasons = [reason for i in acting if (reason := refused(i))]
        reasons += [
            f"{r.site} is to be read, and vLLM is read at block outputs alone" for r in reads if r.site.part != "resid"
        ]
        if reasons:
            return reasons
        gates = [i.control for i in acting if isinstance(i.control, Gate)]
        if any(not same_gate(gate, gates[0]) for gate in gates):
            return ["it has several gates, and a request takes one here (which may stand before several edits)"]
        found = [self._size.refused(layer, row) for layer, row in rows_of(acting).items()]
        found += [
            self._size.unseen(layer, look) for layer, look in looks_of(gates[0] if gates else None, reads).items()
        ]
        return [why for why in found if why]

    def _named(self, name: str) -> str:
        """The digest of the steering of that name (or digest), checked against the model."""
        if name in self._fits:
            return self._fitting(name, name, self._fits[name])
        found = self._file(name)
        if found is None:
            there = [] if self._folder is None else [p.stem for p in self._folder.glob("*.safetensors")]
            raise ArtefactError(f"there is no steering {name[:80]!r} here. {nearest(name[:80], there)}")
        path, state = found
        known = self._read.get(name)
        if known is None or known[0] != state:
            steering = Steering.load(path)
            known = self._read[name] = (state, self.keep(steering), self._misfits(steering))
        return self._fitting(known[1], name, known[2])

    def _file(self, name: str) -> tuple[str, tuple[int, int, int]] | None:
        """Where the file of that name is, and what would change with it; None where there is none."""
        if self._folder is None or "/" in name or "\\" in name or "\0" in name or name.startswith("."):
            return None
        path = f"{self._folder}/{name}.safetensors"
        try:
            found = os.stat(path)
        except OSError:
            return None
        return (path, (found.st_mtime_ns, found.st_size, found.st_ino)) if stat.S_ISREG(found.st_mode) else None

    def keep(self, steering: Steering) -> str:
        """Make a steering known by its digest, whatever it is called."""
        digest, reasons = self._files.keep(steering), self._misfits(steering)
        if digest not in self._fits or not reasons:
            self._fits[digest] = reasons
        return digest

    def refuses(self, steering: Steering) -> list[str]:
        """Why it can't be served at any strength, in words."""
        misfits = self._misfits(steering)
        acting = tuple(i for i in steering.interventions if i.control.most != (0.0, 0.0))
        return misfits or self._unfit(acting)

    def _fitting(self, digest: str, name: str, reasons: Sequence[str]) -> str:
        if reasons:
            raise ArtefactError(f"the steering {name!r} doesn't fit the model served here: {'; '.join(reasons)}.")
        return digest

    def _misfits(self, steering: Steering) -> list[str]:
        meta, model = steering.meta, self.model
        reasons = [
            f"its {i.edit.kind} at {i.site} has the width {i.edit.width}, and the site here {self._size.width}"
            for i in steering.interventions
            if i.site.part == "resid" and i.edit.width != self._size.width
        ]
        if meta.fingerprint is None or self._adopt:
            return reasons
        if model.fingerprint is None:
            reasons.append(
                f"it was fitted on {meta.model or 'some model'}, and the weights' files of {model.name} can't be read to compare"
                ' (start with --adopt, or "adopt": true, to take it over as it is)'
            )
        else:
            reasons += misfits(
                meta, model.name, model.fingerprint, model.template, 'start with --adopt, or "adopt": true'
            )
        return reasons


def asked(extra: Mapping[str, Any] | None) -> object | None:
    """What a request's `extra_args` ask of steerlab, or None."""
    return None if not extra else extra.get(KEY)


def kept_folder() -> Path:
    """The server's own folder, the same in all its processes. Raises `UnsupportedError` where it was never made."""
    given = os.environ.get("STEERLAB_VLLM_KEPT")
    if not given:
        raise UnsupportedError(
            "steerlab's folder is not known to this process; the plug-in wasn't loaded at the start."
        )
    return Path(given)
