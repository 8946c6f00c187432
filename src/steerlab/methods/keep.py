"""What a fit computes once: tensors by name, in memory up to a bound, and all on disk where a folder is given.

On disk a bundle of tensors is one safetensors file, written beside and renamed: a killed writer leaves nothing that is
read. Files are memory-mapped, shared by all processes, reused by later runs, and the oldest go when the bound is reached.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..engines.base import Trainable
from ..errors import ConfigError

MEMORY = 2**30  # bytes


def cache_folder(engine: Trainable) -> Path:
    """Where activations of a model are kept between runs: $STEERLAB_CACHE, or ~/.cache/steerlab."""
    root = Path(os.environ.get("STEERLAB_CACHE") or Path.home() / ".cache" / "steerlab")
    return root / "activations" / engine.identity


class Keep:
    """`memory` bytes on the tensors' own device; with a `folder`, at most `disk` bytes there."""

    def __init__(self, memory: int = MEMORY, disk: int = 0, folder: Path | None = None) -> None:
        if disk and folder is None:
            raise ConfigError("a cache on disk needs a folder; give one, or disk=0.")
        self._left, self._disk, self._folder = memory, disk, folder
        self._held: dict[str, Tensor] = {}
        self._files: dict[str, Any] = {}  # name -> an open file that has it
        self._seen: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._held or self._on_disk(name) is not None

    def get(self, name: str) -> Tensor | None:
        """The tensor, or None where it isn't kept."""
        if name in self._held:
            return self._held[name]
        file = self._on_disk(name)
        if file is None:
            return None
        found: Tensor = file.get_tensor(name)
        self._hold(name, found)
        return found

    def put(self, given: Mapping[str, Tensor]) -> None:
        """Keep what there is room for: in memory, and in one file."""
        fresh = {name: tensor for name, tensor in given.items() if name not in self}
        for name, tensor in fresh.items():
            self._hold(name, tensor)
        if fresh and self._disk and self._folder is not None:
            self._write(fresh, self._folder)

    def drop(self, begins: str) -> None:
        """Free the memory of those whose names begin so; what is on disk stays."""
        for name in [n for n in self._held if n.startswith(begins)]:
            tensor = self._held.pop(name)
            self._left += tensor.numel() * tensor.element_size()

    def _hold(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if size <= self._left:
            self._held[name] = tensor.clone()
            self._left -= size

    # --- on disk ------------------------------------------------------------------------------------------------------

    def _on_disk(self, name: str) -> Any:
        if self._folder is None:
            return None
        if name not in self._files:
            self._look(self._folder)
        return self._files.get(name)

    def _look(self, folder: Path) -> None:
        """Open what has come since the last look; files that can't be read are left alone."""
        if not folder.is_dir():
            return
        for path in folder.iterdir():
            if path.suffix != ".safetensors" or path.name in self._seen:
                continue
            self._seen.add(path.name)
            with suppress(OSError, SafetensorError):
                file = safe_open(path, framework="pt")
                self._files |= dict.fromkeys(file.keys(), file)

    def _write(self, given: Mapping[str, Tensor], folder: Path) -> None:
        size = sum(t.numel() * t.element_size() for t in given.values())
        if size > self._disk:
            return
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder, self._disk - size)
        handle, part = tempfile.mkstemp(dir=folder, suffix=".part")
        os.close(handle)
        try:
            save_file({name: t.contiguous().cpu() for name, t in given.items()}, part)
            Path(part).replace(Path(part).with_suffix(".safetensors"))
        except (OSError, SafetensorError):  # no room on the disk (safetensors has its own error): it is only a cache
            Path(part).unlink(missing_ok=True)
            self._disk = 0
        self._look(folder)


def _make_room(folder: Path, size: int) -> None:
    """Remove the oldest files until the rest takes no more than `size` bytes, and what killed writers left an hour ago."""
    found = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in folder.iterdir() if p.is_file())
    newest = found[-1][0] if found else 0.0
    total = sum(s for _, s, _ in found)
    for when, this, path in found:
        if total > size or (path.suffix == ".part" and newest - when > 3600):
            with suppress(OSError):
                path.unlink()
            total -= this
