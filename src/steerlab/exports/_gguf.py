"""What the GGUF formats share: named vectors and metadata in, named vectors and metadata out (package `gguf`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import artefact
from ..errors import ArtefactError, ConfigError
from ..files import whole
from ..steering import Meta, Steering
from .base import same_width

MAGIC = b"GGUF"
GREATEST = 2**31  # bytes; a control vector of the largest models is a few megabytes
META, DIGEST = "steerlab.meta", "steerlab.digest"
DAMAGED = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    OSError,
    MemoryError,
    AttributeError,
    UnicodeDecodeError,
)


class U32(int):
    """Metadata that is stored as a 32-bit number without sign."""


def write(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str | float | bool | U32], kind: str
) -> None:
    """A GGUF v3 file of float32 vectors, written beside and renamed. `kind` is its `general.architecture`."""
    import numpy as np

    gguf = package()
    with whole(path) as part:
        writer = gguf.GGUFWriter(part, kind)
        for key, value in metadata.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, U32):
                writer.add_uint32(key, int(value))
            elif isinstance(value, float):
                writer.add_float32(key, value)
            else:
                writer.add_string(key, str(value))
        for name, tensor in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(tensor.numpy(), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The float32 vectors of a GGUF file in order, and its metadata. Raises `ArtefactError`."""
    gguf = package()
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
    if magic != MAGIC or size > GREATEST:
        raise ArtefactError(
            f"{path} ({size} bytes) is no GGUF file of vectors: it begins with {magic!r}; expected {MAGIC!r} and at most"
            f" {GREATEST} bytes."
        )
    tensors: dict[str, Tensor] = {}
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        for t in reader.tensors:
            if t.tensor_type != gguf.GGMLQuantizationType.F32 or len(t.shape) != 1 or t.name in tensors:
                raise ArtefactError(
                    f"{path} holds {t.name!r} as {t.tensor_type.name} of the shape {[int(n) for n in t.shape]}; expected each"
                    " vector once, 1-D, in float32 (is this a model rather than a control vector?)."
                )
            tensors[t.name] = torch.from_numpy(t.data.astype("float32", copy=True))
    except ArtefactError:
        raise
    except DAMAGED as problem:
        raise ArtefactError(
            f"{path} ({size} bytes) is not a readable GGUF file: {problem!r}; it may be cut short."
        ) from problem
    bad = [name for name, t in tensors.items() if not bool(torch.isfinite(t).all())]
    if not tensors or bad:
        raise ArtefactError(f"{path} holds {f'NaN or infinite values in {bad[:3]}' if bad else 'no tensor'}.")
    same_width(list(tensors.values()), path)
    return tensors, metadata


def told(steering: Steering) -> dict[str, str]:
    """Where a steering comes from, as metadata that other readers pass over."""
    return {DIGEST: steering.digest, META: json.dumps(artefact.plain(asdict(steering.meta)), sort_keys=True)}


def meta_of(metadata: Mapping[str, Any], otherwise: Meta, path: Path) -> Meta:
    """Where the vectors come from: as this package wrote it, or as far as the file says."""
    if META not in metadata:
        return otherwise
    try:
        return Meta(**json.loads(metadata[META]))
    except (TypeError, ValueError, RecursionError) as problem:
        raise ArtefactError(f"{path} has unreadable metadata {META}: {problem}.") from problem


def number(name: str, path: Path) -> int:
    """N of `direction.N`. Raises `ArtefactError`."""
    head, _, n = name.partition(".")
    if head != "direction" or not (n.isascii() and n.isdigit()):
        raise ArtefactError(f"{path} holds the tensor {name!r}; expected direction.N with the block's number N.")
    return int(n)


def looks(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def package() -> Any:
    """The package `gguf`. Raises `ConfigError` where it isn't installed."""
    try:
        import gguf
    except ImportError as problem:
        raise ConfigError("GGUF files need the package gguf: pip install 'steerlab[gguf]'.") from problem
    return gguf
