"""How like two models are: the same, a copy that was resized, quantised or lightly changed, or another model altogether."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ..steering import Meta, agree

Kind = Literal["same", "copy", "other"]
KIN = 0.25  # sampled weights of two rounded copies differ by less than this share of their size; of two models by more than 1
EVERY = 7  # the sketch reads every 7th row (hf_model.sampled), beginning anew where the rows end


class Likeness(NamedTuple):
    """What two fingerprints say of two models, and every difference that was seen, in words."""

    kind: Kind
    differences: tuple[str, ...]


def likeness(there: Mapping[str, Any], here: Mapping[str, Any]) -> Likeness:
    """How like the model that a steering was fitted on (`there`) is to the one at hand (`here`).

    The same: equal sizes and sampled weights that agree within the rounding of 16-bit formats. A copy: all sizes but the
    vocabulary's are equal, and sampled weights differ by less than a quarter of their size, or are packed in one of the two.
    """
    sizes_there, sizes_here = there.get("sizes") or {}, here.get("sizes") or {}
    names = [n for n in sizes_there if n in sizes_here and sizes_there[n] != sizes_here[n]]
    seen = [f"{n.replace('_', ' ')} {sizes_there[n]} there and {sizes_here[n]} here" for n in names]
    resized = names == ["vocab_size"]
    if there.get("shape") != here.get("shape") and not resized:
        return Likeness("other", tuple(seen) or ("its sizes differ",))
    rows = min(sizes_there["vocab_size"], sizes_here["vocab_size"]) if resized else None
    kin = True
    sketch_there, sketch_here = there.get("sketch") or {}, here.get("sketch") or {}
    how_there, how_here = there.get("quantised"), here.get("quantised")
    older = how_there is None and "block" not in sketch_there  # fitted before it was written down
    if how_there != how_here and not older:
        seen.append(f"weights are {how_there or 'not quantised'} there and {how_here or 'not quantised'} here")
    for name in dict.fromkeys((*sketch_there, *sketch_here)):
        if name not in sketch_there or name not in sketch_here:
            where = "there" if name in sketch_here else "here"
            seen.append(f"weights of the {name} are packed {where} and can't be compared")
            continue
        distance = _distance(sketch_there[name], sketch_here[name], rows if name == "embed" else None)
        if distance is None:
            continue
        kin = kin and distance < KIN
        seen.append(f"sampled weights of the {name} differ by {distance:.1%} of their size")
    if not seen:
        return Likeness("same", ())
    compared = bool(sketch_there.keys() & sketch_here.keys())
    return Likeness("copy" if kin and compared else "other", tuple(seen))


def _distance(a: Sequence[float], b: Sequence[float], rows: int | None) -> float | None:
    """Root mean square difference as a share of the first one's; None within the rounding of 16-bit formats.

    With `rows`, only values of rows that both matrices sample alike.
    """
    pairs = list(zip(a, b, strict=False))
    if rows is not None:
        pairs = [pair for n, pair in enumerate(pairs) if n * EVERY < rows]
    if all(agree(x, y) for x, y in pairs):
        return None
    size = math.sqrt(sum(x * x for x, _ in pairs))
    return math.sqrt(sum((x - y) ** 2 for x, y in pairs)) / size if size else math.inf


class Misfit(NamedTuple):
    """One reason why a steering isn't meant for a model: what differs, and what to do instead of taking it over."""

    what: str
    instead: str


def compared(meta: Meta, model: str, fingerprint: Mapping[str, Any], template: str) -> list[Misfit]:
    """Why a steering isn't meant for a model and template; nothing where it doesn't say what it was fitted on.

    `meta` is the steering's; `model`, `fingerprint` and `template` are those at hand.
    """
    if meta.fingerprint is None:
        return []
    reasons: list[Misfit] = []
    name = meta.model or "another model"
    like = likeness(meta.fingerprint, fingerprint)
    seen = "; ".join(like.differences)
    if like.kind == "other":
        reasons.append(
            Misfit(f"it was fitted on {name}, whose shape or weights differ from {model}'s: {seen}", "refit it here")
        )
    elif like.kind == "copy":
        reasons.append(Misfit(f"it was fitted on {name}, of which {model} is a changed copy: {seen}", "refit it here"))
    if meta.template is not None and meta.template != template:
        words = {"plain": "plain text"}
        reasons.append(
            Misfit(
                f"it was fitted with {words.get(meta.template, 'a chat template')} and this engine writes prompts as"
                f" {words.get(template, 'another chat template')}",
                "use the same template",
            )
        )
    return reasons


def misfits(
    meta: Meta,
    model: str,
    fingerprint: Mapping[str, Any],
    template: str,
    remedy: str = "--adopt, or steering.adopted(engine)",
) -> list[str]:
    """The same as refusals, each with what to do; `remedy` is how to take it over all the same."""
    return [
        f"{misfit.what} ({misfit.instead}, or take it over as it is: {remedy})"
        for misfit in compared(meta, model, fingerprint, template)
    ]
