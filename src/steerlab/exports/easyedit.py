"""EasyEdit's `layer_{L}.pt`: one bare tensor for a block, added to its output. A folder may hold several."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from ..edits import Shift
from ..engines.hf import HFEngine
from ..errors import ArtefactError
from ..positions import ALL
from ..sites import Site
from ..steering import Intervention, Steering
from . import _torch
from .base import Hints, VectorFormat, Written, as_vector, imported, provenance_lost, same_width

NAME = re.compile(r"layer_(\d+)\.pt")


class EasyEdit(VectorFormat):
    """A tensor for each block."""

    what: ClassVar[str] = "EasyEdit's layer_L.pt (a folder)"

    def write(self, steering: Steering, path: Path, engine: HFEngine | None = None) -> Written:
        vectors = self.vectors(steering)
        files = [path / f"layer_{layer}.pt" for layer in vectors]
        for file, vector in zip(files, vectors.values(), strict=True):
            _torch.save(vector.clone(), file)
        return Written(tuple(files), tuple(provenance_lost(steering)))

    def claims(self, path: Path) -> bool:
        return bool(_files(path))

    def read(self, path: Path, hints: Hints) -> Steering:
        found = _files(path)
        if not found and path.is_file() and hints.layer is not None:
            found = {hints.layer: path}
        if not found:
            raise ArtefactError(
                f"{path} holds no layer_L.pt; name such a file or its folder, or say the block with --layer."
            )
        vectors = {layer: as_vector(_torch.tensor(file), "the file", file) for layer, file in sorted(found.items())}
        same_width(list(vectors.values()), path)
        made = [Intervention(Site(layer), Shift(v), ALL) for layer, v in vectors.items()]
        return Steering(tuple(made), meta=imported(path, self.name))


def _files(path: Path) -> dict[int, Path]:
    """Files by their block's number."""
    candidates = [path] if path.is_file() else sorted(path.glob("layer_*.pt")) if path.is_dir() else []
    return {int(m[1]): f for f in candidates if (m := NAME.fullmatch(f.name))}
