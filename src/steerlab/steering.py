"""A Steering: the one thing that is fitted, saved, composed, served and exported.

An `Intervention` says what (`Edit`), where (`Site`), when (`Positions`) and how much (`Control`). A `Steering` is an
ordered list of them, perhaps with a prompt. It is immutable, holds no model, and is one safetensors file on disk.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

from . import artefact, controls, edits, plugins, ranges
from .contrast import Message
from .controls import Constant, Control, Decision
from .deltas import WeightEdit
from .edits import Clamp, Edit, Push
from .errors import ArtefactError, EditError, SteerlabError, nearest
from .meta import Meta as Meta
from .positions import ALL, NOT_TEMPLATE, Positions
from .sites import Site

if TYPE_CHECKING:
    from os import PathLike

    from torch import Tensor

Placement = Literal["prefix", "suffix", "system"]
PLACEMENTS: tuple[Placement, ...] = ("prefix", "suffix", "system")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt arm: an instruction put into the conversation. Strength is −1, 0 or 1.

    `placement` is before or after the text of the last user turn, or in the system message (at its end, where there is
    one).
    """

    positive: str
    negative: str | None = None
    placement: Placement = "suffix"
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise EditError(f"a prompt is placed at {self.placement!r}; expected one of {', '.join(PLACEMENTS)}.")
        legal = (-1, 0, 1) if self.negative is not None else (0, 1)
        if self.strength not in legal:
            why = "" if self.negative is not None else " (it has no negative text)"
            raise EditError(f"a prompt has the strength {self.strength:g}; expected one of {legal}{why}.")

    def scaled(self, k: float) -> Prompt:
        """The prompt at k times the strength."""
        return replace(self, strength=self.strength * k)

    def apply(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The conversation with the instruction in it."""
        text = {1: self.positive, -1: self.negative}.get(int(self.strength))
        if not text:
            return tuple(messages)
        if self.placement == "system":
            if messages[0].role == "system":
                return (Message("system", f"{messages[0].content} {text}"), *messages[1:])
            return (Message("system", text), *messages)
        *before, last = messages
        content = f"{text} {last.content}" if self.placement == "prefix" else f"{last.content} {text}"
        return (*before, Message(last.role, content))


@dataclass(frozen=True, eq=False)
class Intervention:
    """One edit at one site, at some positions, as strongly as a control says."""

    site: Site
    edit: Edit
    positions: Positions = NOT_TEMPLATE
    control: Control = field(default_factory=Constant)

    def __post_init__(self) -> None:
        low, high = self.control.most
        if low < self.edit.domain[0] or high > self.edit.domain[1]:
            raise EditError(
                f"{self.edit.kind} at {self.site} takes strengths in [{self.edit.domain[0]:g}, {self.edit.domain[1]:g}];"
                f" got {low:g}" + (f" to {high:g}." if high != low else ".")
            )
        if problem := self.control.problem(self.positions) or self._misplaced():
            raise EditError(problem + ".")
        late = [str(s) for s in self.control.reads if s.depth > self.site.depth]
        if late and not _ahead(self.control):
            raise EditError(
                f"the control at {self.site} reads {', '.join(late)}, which a forward pass reaches only later; read at or"
                " before the site that it acts on."
            )

    def _misplaced(self) -> str | None:
        """Why an edit of weights can't act as it is told to, or one of activations there; None where it can."""
        if isinstance(self.edit, WeightEdit) != self.site.on_weights:
            wants, gets = ("a weight matrix", "mlp.down_proj@3") if self.edit.on == "weights" else ("activations", "3")
            example = f"w:{gets}" if self.edit.on == "weights" else gets
            return f"{self.edit.kind} edits {wants}, and {self.site} isn't such a site; give one like {example!r}"
        if self.site.on_weights and self.positions != ALL:
            return (
                f"{self.edit.kind} at {self.site} has the positions {self.positions}; a weight edit acts on every token,"
                " so give positions='all' (ALL)"
            )
        if self.site.on_weights and not (isinstance(self.control, Constant) or _ahead(self.control)):
            return (
                f"{self.edit.kind} at {self.site} has a {self.control.kind} control, and a weight edit has one strength for"
                " all tokens; give Constant, or a gate that decides ahead"
            )
        return None

    def scaled(self, k: float) -> Intervention:
        """The same edit at k times the strength; tensors are never scaled."""
        return replace(self, control=self.control.scaled(k))


@dataclass(frozen=True, eq=False)
class Steering:
    """An ordered list of interventions, perhaps with a prompt; immutable, with no model inside.

    Interventions act in depth order, and within one site in list order (clamps don't commute, and the order is kept
    everywhere). `a + b` is both; `scaled(k)` turns the one strength axis.
    """

    interventions: tuple[Intervention, ...] = ()
    prompt: Prompt | None = None
    meta: Meta = field(default_factory=Meta)

    def __post_init__(self) -> None:
        kept = tuple(
            replace(i, edit=artefact.settle(i.edit), control=artefact.settle(i.control))
            for i in sorted(self.interventions, key=lambda i: i.site.depth)
        )
        object.__setattr__(self, "interventions", kept)

    def __add__(self, other: Steering) -> Steering:
        a, b = self.meta.fingerprint, other.meta.fingerprint
        if a is not None and b is not None and not same_model(a, b):
            raise ArtefactError(
                f"these steerings belong to different models ({self.meta.model} and {other.meta.model}); only steerings"
                " of one model can be added."
            )
        if self.prompt is not None and other.prompt is not None:
            raise ArtefactError("both steerings carry a prompt; add at most one, or join their texts into one prompt.")
        if None not in (self.meta.template, other.meta.template) and self.meta.template != other.meta.template:
            raise ArtefactError(
                f"these steerings belong to different chat templates ({self.meta.template} and {other.meta.template}), so"
                " their positions don't mean the same; fit them with one template."
            )
        meta = self.meta if a is not None or b is None else other.meta
        joined = replace(meta, method={}, data={}, figures={}, range=None)
        return Steering(self.interventions + other.interventions, self.prompt or other.prompt, joined)

    def scaled(self, k: float) -> Steering:
        """The same steering at k times the strength: 0 leaves the model untouched, −1 is the opposite pole.

        A calibrated range goes with it: what was safe up to 1.2 is safe up to 0.6 of twice the strength. Raises `EditError`
        outside an edit's domain.
        """
        if not math.isfinite(k):
            raise EditError(f"a strength is {k}; expected a finite number (0 = untouched, 1 = as fitted).")
        prompt = None if self.prompt is None else self.prompt.scaled(k)
        meta = self.meta if self.meta.range is None else replace(self.meta, range=ranges.rescaled(self.meta.range, k))
        return replace(self, interventions=tuple(i.scaled(k) for i in self.interventions), prompt=prompt, meta=meta)

    def one_sided(self) -> Steering:
        """The same steering with every `Clamp` served as a `Push`: it moves towards a pole and never back.

        Raises `EditError` where there is no clamp.
        """
        if not any(isinstance(i.edit, Clamp) for i in self.interventions):
            kinds = ", ".join(type(i.edit).__name__ for i in self.interventions) or "none"
            raise EditError(f"there is no clamp to serve one-sided; the edits are: {kinds}.")
        made = [
            replace(i, edit=Push(i.edit.q, i.edit.positive, i.edit.negative)) if isinstance(i.edit, Clamp) else i
            for i in self.interventions
        ]
        return replace(
            self,
            interventions=tuple(made),
            meta=replace(self.meta, method={**self.meta.method, "one_sided": True}, range=None),
        )

    @property
    def ahead(self) -> tuple[Decision, ...]:
        """The gates and networks that decide before a row runs."""
        return tuple(i.control for i in self.interventions if isinstance(i.control, Decision) and i.control.ahead)

    def decided(self, read: Callable[[Site], Tensor]) -> Steering:
        """The same steering with all of these decided, by a row's activation `[d]` at each site."""
        made = [
            replace(i, control=i.control.decided(read(i.control.site)))
            if isinstance(i.control, Decision) and i.control.ahead
            else i
            for i in self.interventions
        ]
        return replace(self, interventions=tuple(made))

    def adopted(self, engine: Model) -> Steering:
        """The same steering said to belong to another model or template: you take it over as it is, at your own risk.

        For a fine-tune of the model it was fitted on, say. Engines go on refusing sites and widths that don't exist.
        """
        meta = replace(
            self.meta,
            model=engine.name,
            revision=None,
            fingerprint=engine.fingerprint,
            template=engine.template,
            range=None,
        )  # a range was measured on the model that it was fitted on
        return replace(self, meta=meta)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites it acts on, in depth order, each once."""
        return tuple(dict.fromkeys(i.site for i in self.interventions))

    @property
    def domain(self) -> tuple[float, float]:
        """The strengths that every part of it takes, as multiples of what is set now."""
        low, high = -math.inf, math.inf
        for i in self.interventions:
            least, most = i.edit.domain
            size = max(abs(v) for v in i.control.most) or 1.0
            low, high = max(low, least / size), min(high, most / size)
        if self.prompt is not None:
            low, high = max(low, -1.0 if self.prompt.negative is not None else 0.0), min(high, 1.0)
        return (low, high)

    @property
    def digest(self) -> str:
        """SHA-256 over interventions and prompt alone: the same behaviour has the same digest, whatever its history."""
        document, tensors = self._document()
        told = {key: document[key] for key in ("interventions", "prompt")}
        h = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for name in sorted(tensors):
            h.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
            h.update(tensors[name].numpy().tobytes())
        return h.hexdigest()

    def save(self, path: str | PathLike[str]) -> None:
        """One safetensors file with a JSON header, written beside and renamed. Raises `ArtefactError`."""
        document, tensors = self._document()
        artefact.write(path, document, tensors)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a file that `save` wrote, or one on the hub (`hf://owner/name`); older formats are migrated.

        Raises `ArtefactError` for an unreadable file, an unknown kind or a newer format. Whether it fits a model is
        asked when it meets one (`Runner.refuses`).
        """
        document, tensors = artefact.read(plugins.brought(path))
        if "generator" in document:
            raise ArtefactError(
                f"{path} is a generator, which writes steerings from descriptions; have it write one:"
                " `steerlab generator write FILE DESCRIPTION --out FILE`, or Generator.load(path, engine)(description)."
            )
        document = _migrated(document, path)
        extra = set(document) - {"format", "interventions", "prompt", "meta"}
        if extra:
            raise ArtefactError(f"{path} has the unknown entries {sorted(extra)} in its header; it is not read.")
        try:
            interventions = tuple(_intervention(row, tensors) for row in document["interventions"])
            prompt = None if document["prompt"] is None else _prompt(document["prompt"])
            return cls(interventions, prompt, _meta(document["meta"]))
        except ArtefactError as problem:
            raise ArtefactError(f"{path}: {problem}") from problem
        except (
            SteerlabError,
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            AttributeError,
            RuntimeError,
        ) as problem:
            raise ArtefactError(f"{path} doesn't hold a valid steering: {problem!r}.") from problem

    def _document(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        rows: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for n, i in enumerate(self.interventions):
            edit, edit_tensors = artefact.flatten(i.edit, f"{n}.edit")
            control, control_tensors = artefact.flatten(i.control, f"{n}.control", tensors)
            tensors |= edit_tensors | control_tensors
            rows.append({"site": str(i.site), "positions": i.positions.to_json(), "edit": edit, "control": control})
        return {
            "format": FORMAT,
            "interventions": rows,
            "prompt": None if self.prompt is None else asdict(self.prompt),
            "meta": artefact.plain(asdict(self.meta)),
        }, tensors


class Model(Protocol):
    """What a steering needs to know of a model."""

    @property
    def name(self) -> str:
        """Its name or folder."""
        ...

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        """What tells it from others; None where that can't be read."""
        ...

    @property
    def template(self) -> str:
        """SHA-256 of its chat template, or "plain"."""
        ...


def same_model(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of one model, in whatever dtype it was loaded.

    `shape` (architecture and sizes) must be equal; `sketch`, values sampled from named weights, must agree within the
    rounding of 16-bit formats where both have them.
    """
    if a.get("shape") != b.get("shape"):
        return False
    first: Mapping[str, list[float]] = a.get("sketch") or {}
    second: Mapping[str, list[float]] = b.get("sketch") or {}
    return all(
        agree(x, y) for name in first.keys() & second.keys() for x, y in zip(first[name], second[name], strict=False)
    )


def agree(x: float, y: float) -> bool:
    """Whether two sampled weights are one within the rounding of 16-bit formats."""
    return abs(x - y) <= 0.01 * max(abs(x), abs(y)) + 1e-5


def _ahead(control: Control) -> bool:
    return isinstance(control, Decision) and control.ahead


def _kinds() -> dict[str, type[Edit]]:
    return {**edits.kinds(), **edits.kinds("weights")}


def _intervention(row: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Intervention:
    edit, control = _restored(row["edit"], tensors, _kinds), _restored(row["control"], tensors, controls.kinds)
    return Intervention(Site.parse(row["site"]), edit, Positions.from_json(row["positions"]), control)


def _restored(row: Mapping[str, Any], tensors: Mapping[str, Tensor], kinds: Callable[[], Mapping[str, type]]) -> Any:
    try:
        return artefact.restore(row, tensors, kinds())
    except ArtefactError:
        plugins.bring()  # a kind of somebody else's, at any depth, is known once its package is imported
        return artefact.restore(row, tensors, kinds())


def _prompt(row: Mapping[str, Any]) -> Prompt:
    return artefact.made(Prompt, row, {})


def _meta(row: Any) -> Meta:
    known = [f.name for f in fields(Meta)]
    if not isinstance(row, dict):
        raise ArtefactError(f"the file's meta is {type(row).__name__}; expected a JSON object.")
    for name in cast("dict[str, Any]", row):
        if name not in known:
            raise ArtefactError(f"a valid steering's meta has no field {name[:80]!r}. {nearest(name[:80], known)}")
    return Meta(**row)


def _migrated(document: dict[str, Any], path: str | PathLike[str]) -> dict[str, Any]:
    """The document in today's format."""
    given = document.get("format")
    if not isinstance(given, int) or given < 1:
        raise ArtefactError(f"{path} has the format {given!r}; expected a number from 1 to {FORMAT}.")
    if given > FORMAT:
        raise ArtefactError(
            f"{path} is of format {given}; this steerlab reads up to format {FORMAT}. Upgrade steerlab to read it."
        )
    for step in range(given, FORMAT):
        document = MIGRATIONS[step](document)
    return document


FORMAT = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # from format n to n + 1
