"""Tensors from `torch.save` files of somebody else's, with no pickle executed: the restricted unpickler of torch alone.

A file must be the zip that torch has written since 1.6, hold its entries uncompressed (so that a small file can't grow), and
give a tensor or a plain collection of tensors no larger than itself.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ArtefactError
from ..files import whole

GREATEST = 2**33  # bytes


def load(path: Path) -> Any:
    """What the file holds. Raises `ArtefactError` for anything but tensors and plain collections."""
    if not path.is_file():
        raise ArtefactError(f"there is no file {path}.")
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as held:
            packed = [entry.filename for entry in held.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as problem:
        raise ArtefactError(
            f"{path} ({size} bytes) isn't the zip file that torch.save has written since version 1.6 ({problem}); save it again"
            " with a recent torch."
        ) from problem
    if packed or size > GREATEST:
        raise ArtefactError(f"{path} has compressed entries ({packed[:2]}) or is too large; torch.save writes none.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, OSError,
            AssertionError, ArithmeticError, MemoryError, RecursionError, NotImplementedError) as problem:  # fmt: skip
        first = str(problem).strip().splitlines()[0] if str(problem).strip() else repr(problem)
        raise ArtefactError(
            f"{path} ({size} bytes) doesn't hold plain tensors, and nothing else is read (a pickle may run code): {first[:200]}"
        ) from problem
    _check(found, size, path)
    return found


def tensor(path: Path) -> Tensor:
    """The one tensor of a file, in float32. Raises `ArtefactError`."""
    found = load(path)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise ArtefactError(f"{path} holds {type(found).__name__}; expected one tensor of floating-point numbers.")
    return found.detach().float().contiguous()


def save(thing: object, path: Path) -> None:
    """`torch.save`, written beside and renamed."""
    with whole(path) as part:
        torch.save(thing, part)


def _check(found: object, size: int, path: Path, depth: int = 0) -> None:
    """Nothing but tensors, numbers and text in lists and mappings, no tensor larger than the file, none strided oddly."""
    if isinstance(found, Tensor):
        odd = found.layout != torch.strided or found.is_quantized or found.device.type == "meta"
        if odd or found.numel() * found.element_size() > size:
            raise ArtefactError(
                f"{path} ({size} bytes) claims a tensor of the shape {list(found.shape)}, which it can't hold."
            )
    elif isinstance(found, (list, tuple)) and depth < 8:
        for item in found:  # pyright: ignore[reportUnknownVariableType]
            _check(item, size, path, depth + 1)
    elif isinstance(found, dict) and depth < 8:
        for item in found.values():  # pyright: ignore[reportUnknownVariableType]
            _check(item, size, path, depth + 1)
    elif not isinstance(found, (str, int, float, bool, type(None))):
        raise ArtefactError(f"{path} holds a {type(found).__name__}; expected tensors, numbers and text.")
