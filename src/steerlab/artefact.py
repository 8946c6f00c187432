"""The file format: a safetensors file whose header holds one JSON document. Never pickle.

This module turns frozen dataclasses of tensors and plain values into JSON plus named tensors and back, and reads and
writes the file; what the document says is `steering`'s business.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from .errors import ArtefactError, SteerlabError, nearest
from .files import whole
from .sites import Site

if TYPE_CHECKING:
    from os import PathLike

T = TypeVar("T")
KEY = "steerlab"  # the one entry of the safetensors header
GREATEST_NUMBER = 1e308  # an integer beyond is no float
DEEPEST = 64  # lists and objects of a header inside one another
GREATEST_HEADER = 16 * 2**20  # characters; a steering's document is a few kilobytes


def settle(thing: T) -> T:
    """The same dataclass with its tensors detached, contiguous and on the CPU, at any depth."""
    moved: dict[str, Any] = {}
    for f in dataclasses.fields(cast("Any", thing)):
        value = getattr(thing, f.name)
        if isinstance(value, Tensor):
            bare = not value.requires_grad and value.device.type == "cpu" and value.is_contiguous()
            moved[f.name] = value if bare else value.detach().cpu().contiguous()
        elif dataclasses.is_dataclass(value) and not isinstance(value, (Site, type)):
            moved[f.name] = settle(value)
    if all(value is getattr(thing, name) for name, value in moved.items()):
        return thing
    return dataclasses.replace(cast("Any", thing), **moved)


def flatten(
    thing: object, prefix: str, stored: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A dataclass as `{"kind": its class, field: value}`; its tensors apart, under names that begin with `prefix`.

    A field that came later (`metadata={"later": True}`) is left out at its default, so that older files keep their digest.
    A `shared` one that is among the tensors `stored` already, under another prefix, is named and not stored again.
    """
    row: dict[str, Any] = {"kind": type(thing).__name__}
    tensors: dict[str, Tensor] = {}
    for f in dataclasses.fields(cast("Any", thing)):
        value, name = getattr(thing, f.name), f"{prefix}.{f.name}"
        if f.metadata.get("later") and value == f.default:
            continue
        if isinstance(value, Tensor):
            twin = _twin(value, f.name, stored or {}) if f.metadata.get("shared") else None
            row[f.name] = {"tensor": twin or name}
            if twin is None:
                tensors[name] = value
        elif isinstance(value, Site):
            row[f.name] = {"site": str(value)}
        elif dataclasses.is_dataclass(value):
            row[f.name], inner = flatten(value, name)
            tensors.update(inner)
        else:
            row[f.name] = value
    return row, tensors


def _twin(value: Tensor, field: str, stored: Mapping[str, Tensor]) -> str | None:
    """The name of an equal tensor of the same field."""
    mine = ((name, t) for name, t in stored.items() if name.endswith(f".{field}"))
    return next((name for name, t in mine if t.shape == value.shape and torch.equal(t, value)), None)


def restore(row: Mapping[str, Any], tensors: Mapping[str, Tensor], kinds: Mapping[str, type]) -> Any:
    """The dataclass that `flatten` took apart. Raises `ArtefactError` for a kind or field that this version lacks."""
    kind = row.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ArtefactError(
            f"the file has an edit or control of the kind {kind!r}, which this version doesn't know."
            f" {nearest(str(kind), kinds)} A newer steerlab, or the package that defines it, may read the file."
        )
    return made(kinds[kind], {k: v for k, v in row.items() if k != "kind"}, tensors, kinds)


def made(
    kind: type[T], row: Mapping[str, Any], tensors: Mapping[str, Tensor], kinds: Mapping[str, type] | None = None
) -> T:
    """A dataclass of the fields of a file, each held to its annotation. Raises `ArtefactError`."""
    values: dict[str, Any] = {}
    known = {f.name: str(f.type) for f in dataclasses.fields(cast("Any", kind))}
    for name, value in row.items():
        if name not in known:
            raise ArtefactError(
                f"{kind.__name__} has the field {name[:80]!r} in this file. {nearest(name[:80], known)}"
            )
        if isinstance(value, Mapping):
            inner = cast("Mapping[str, Any]", value)
            if "tensor" in inner:
                if not isinstance(inner["tensor"], str) or inner["tensor"] not in tensors:
                    raise ArtefactError(
                        f"the file's header names the tensor {_short(inner['tensor'])}, which it doesn't hold."
                    )
                value = tensors[inner["tensor"]]
            elif "site" in inner:
                value = Site.parse(inner["site"])
            else:
                value = restore(inner, tensors, kinds or {})
        if not _fits(value, known[name]):
            raise ArtefactError(f"{kind.__name__} has the {name} {_short(value)} in this file; expected {known[name]}.")
        values[name] = value
    try:
        return kind(**values)
    except (
        SteerlabError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as problem:
        raise ArtefactError(f"the file's {kind.__name__} is not a valid one: {problem}") from problem


def _fits(value: object, annotation: str) -> bool:
    """Whether a value is of the plain type that an annotation names; of other annotations the class itself judges."""
    names = [part.strip() for part in annotation.split("|")]
    if value is None:
        return "None" in names or not {"float", "int", "bool", "str"} & {*names}
    if isinstance(value, Tensor):
        return not {"float", "int", "bool", "str"} & {*names}
    if any("Tensor" in name for name in names):
        return False
    if "float" in names and isinstance(value, (int, float)) and not isinstance(value, bool):
        return abs(value) < GREATEST_NUMBER or isinstance(value, float)
    if "int" in names and isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    if ("bool" in names and isinstance(value, bool)) or ("str" in names and isinstance(value, str)):
        return True
    return not {"float", "int", "bool", "str"} & {*names}


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of the shape {list(value.shape)}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:79]}…"


def write(path: str | PathLike[str], document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the document and its tensors, beside and renamed. Raises `ArtefactError`."""
    import safetensors.torch

    text = json.dumps(document, sort_keys=True)  # ASCII: a path or a concept may hold what UTF-8 can't
    apart = {k: t.contiguous().clone() for k, t in tensors.items()}  # safetensors refuses tensors that share memory
    with whole(path) as part:
        try:
            safetensors.torch.save_file(apart, part, metadata={KEY: text})
        except safetensors.SafetensorError as problem:  # how safetensors tells of an error of the disk
            full = "os error 28" in str(problem)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(problem)) from problem


def is_steering(path: str | PathLike[str]) -> bool:
    """Whether a file begins as one of steerlab's own does; False where there is none, or none that can be read."""
    try:
        with Path(path).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size <= 2 * GREATEST_HEADER:
                return False
            header = json.loads(file.read(size))
    except (OSError, ValueError, RecursionError):
        return False
    metadata: Any = cast("dict[str, Any]", header).get("__metadata__") if isinstance(header, dict) else None
    return isinstance(metadata, dict) and KEY in metadata


def read(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and tensors of a file. Raises `ArtefactError`, which says what the file is instead."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        beside = path.parent.glob("*.safetensors") if path.parent.is_dir() else ()
        raise ArtefactError(f"there is no file {path}. {nearest(path.name, (p.name for p in beside))}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            names = list(file.keys())
            if text is None:
                raise ArtefactError(
                    f"{path} is a safetensors file without a steering in its header ({len(names)} tensors, such as"
                    f" {names[:3]}); expected one that `Steering.save` wrote."
                )
            if len(text) > GREATEST_HEADER:
                raise ArtefactError(
                    f"{path} has a header of {len(text)} characters; at most {GREATEST_HEADER} are read."
                )
            # copied out of the mapped file: what is written over it, or cut off, must reach nobody who has read it
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError, UnicodeDecodeError) as problem:
        raise ArtefactError(
            f"{path} ({path.stat().st_size} bytes) is not a readable safetensors file: {problem}."
            " It may be cut short or of another format; fetch or save it again."
        ) from problem
    document = parse(text, path)
    _check_names(document, tensors, path)
    return document, tensors


def parse(text: str, path: str | PathLike[str]) -> dict[str, Any]:
    """The header's JSON as an object. Raises `ArtefactError`."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as problem:  # a number of thousands of digits is a plain ValueError
        raise ArtefactError(f"the header of {path} is not valid JSON ({problem}); the file is damaged.") from problem
    if not isinstance(document, dict):
        raise ArtefactError(f"the header of {path} holds {type(document).__name__}; expected a JSON object.")
    if depth_beyond(document, DEEPEST):
        raise ArtefactError(f"the header of {path} has more than {DEEPEST} levels inside one another; it is not read.")
    return cast("dict[str, Any]", document)


def depth_beyond(value: object, most: int) -> bool:
    """Whether lists and objects stand more than `most` deep inside one another."""
    level: list[object] = [value]
    for _ in range(most + 1):
        inner: list[object] = []
        for one in level:
            if isinstance(one, Mapping):
                inner += cast("Iterable[object]", cast("Mapping[str, object]", one).values())
            elif isinstance(one, (list, tuple)):
                inner += cast("Iterable[object]", one)
        if not inner:
            return False
        level = inner
    return True


def _check_names(document: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Every tensor in the file is named by the document: nothing travels along unseen."""
    text = json.dumps(document)
    for name, tensor in tensors.items():
        if json.dumps(name) not in text:
            raise ArtefactError(f"{path} holds the tensor {name!r}, which its header doesn't mention; it is not read.")
        if tensor.dtype not in (torch.float32, torch.int64, torch.bool):
            raise ArtefactError(f"{path} holds {name!r} as {tensor.dtype}; expected float32, int64 or bool.")


def plain(value: object) -> object:
    """A JSON value for a setting: tuples become lists, sites and paths their text."""
    if isinstance(value, (str, int, float, bool, types.NoneType)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in cast("list[object]", value)]
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in cast("Mapping[object, object]", value).items()}
    return str(value)
