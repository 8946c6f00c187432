"""Where a steering comes from, and the checks that hold every field of it to its type, whoever wrote the file.

What a field holds beyond what is checked here is plain data, bounded in depth: it is printed and kept, and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from . import ranges
from .artefact import depth_beyond
from .errors import ArtefactError

LONGEST = 4096  # characters of a name, and of a key
DEEPEST = 32  # lists and objects inside one another; what is written here has fewer than ten
GREATEST = 3.5e38  # beyond what a float32 weight can be


@dataclass(frozen=True, slots=True)
class Meta:
    """Where a steering comes from. Not part of its digest. Raises `ArtefactError` for a field of a wrong type."""

    model: str | None = None
    revision: str | None = None
    fingerprint: dict[str, Any] | None = None
    template: str | None = None  # SHA-256 of the chat template, or "plain"
    method: dict[str, Any] = field(default_factory=dict[str, Any])  # name and hyper-parameters
    data: dict[str, Any] = field(default_factory=dict[str, Any])  # concept, source, digest, n
    versions: dict[str, str] = field(default_factory=dict[str, str])
    figures: dict[str, Any] = field(default_factory=dict[str, Any])  # what the fit measured
    range: dict[str, Any] | None = None  # calibrated strengths (`ranges`), once they are

    def __post_init__(self) -> None:
        for name in ("model", "revision", "template"):
            _text(name, getattr(self, name))
        for name in ("fingerprint", "method", "data", "versions", "figures", "range"):
            value = getattr(self, name)
            if value is None and name in ("fingerprint", "range"):
                continue
            _mapping(name, value)
            if depth_beyond(value, DEEPEST):
                raise ArtefactError(f"a steering's {name} has more than {DEEPEST} levels inside one another.")
        if self.fingerprint is not None:
            check_fingerprint(self.fingerprint)
        _check_texts("method", self.method, ("name",))
        _check_texts("data", self.data, ("concept", "source", "digest"))
        for key in ("positive", "negative", "neutral"):
            if not isinstance(self.data.get(key), (int, type(None))):
                raise ArtefactError(f"a steering's data has the {key} {_short(self.data[key])}; expected a number.")
        for key, value in self.versions.items():
            _text(f"version of {key[:40]}", value, may_lack=False)
        if self.range is not None:
            ranges.sides(self.range)


def check_fingerprint(told: Mapping[str, Any]) -> None:
    """Hold a fingerprint to its form: `shape` and `quantised` texts, `sizes` by name, `sketch` lists of numbers by name.

    Each may be left out. Raises `ArtefactError`.
    """
    _text("fingerprint's shape", told.get("shape"))
    _text("fingerprint's quantisation", told.get("quantised"))
    sizes, sketch = told.get("sizes", {}), told.get("sketch", {})
    _mapping("fingerprint's sizes", sizes)
    for name, value in cast("dict[str, object]", sizes).items():
        if isinstance(value, bool) or not isinstance(value, (int, str, type(None))):
            raise ArtefactError(f"a fingerprint's size {name[:40]!r} is {_short(value)}; expected a number or a text.")
    vocabulary = cast("dict[str, object]", sizes).get("vocab_size", 1)
    if not isinstance(vocabulary, int) or not 0 < vocabulary < 2**63:
        raise ArtefactError(f"a fingerprint's vocab_size is {_short(vocabulary)}; expected a number above 0.")
    _mapping("fingerprint's sketch", sketch)
    for name, values in cast("dict[str, object]", sketch).items():
        if not isinstance(values, (list, tuple)):
            raise ArtefactError(
                f"a fingerprint's sketch {name[:40]!r} is {_short(values)}; expected a list of numbers."
            )
        if wrong := [v for v in cast("list[object]", values) if not _number(v)]:
            raise ArtefactError(
                f"a fingerprint's sketch {name[:40]!r} holds {_short(wrong[0])}; expected finite numbers alone."
            )


def _check_texts(field_name: str, told: Mapping[str, Any], keys: Iterable[str]) -> None:
    for key in keys:
        value = told.get(key)
        if not isinstance(value, (str, type(None))):
            raise ArtefactError(f"a steering's {field_name} has the {key} {_short(value)}; expected a text.")


def _text(name: str, value: object, *, may_lack: bool = True) -> None:
    if value is None and may_lack:
        return
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ArtefactError(f"a steering's {name} is {_short(value)}; expected str, of at most {LONGEST} characters.")


def _mapping(name: str, value: object) -> None:
    if not isinstance(value, dict):
        raise ArtefactError(f"a steering's {name} is {_short(value)}; expected dict.")
    keys = list(cast("dict[object, object]", value))
    if wrong := [k for k in keys if not isinstance(k, str) or len(k) > LONGEST]:
        raise ArtefactError(f"a steering's {name} has the key {_short(wrong[0])}; expected short texts.")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -GREATEST < value < GREATEST


def _short(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:79]}…"
