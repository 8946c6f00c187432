"""llama.cpp's control vectors: `llama-cli --control-vector FILE` adds one vector to each block's output, at every token.

`direction.N` acts on the output of block N, 0-based like `Site(N)`: the loader stores it at row N − 1 and graph layer
`il` reads row il − 1 (common/common.cpp, src/llama-adapter.cpp). There is no layer 0, and one `direction.0` makes the
loader refuse the whole file. Strengths are folded in, so that the scale 1 is what the steering was at. Files of repeng,
EasySteer and llama.cpp's own generator have this layout; a `glp.mode` other than add belongs to the format `glp`.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ..edits import Shift
from ..engines.hf import HFEngine
from ..errors import ArtefactError
from ..positions import ALL
from ..sites import Site
from ..steering import Intervention, Steering
from . import _gguf
from .base import Hints, VectorFormat, Written, imported, provenance_lost


class GGUF(VectorFormat):
    """A control vector for llama.cpp."""

    what: ClassVar[str] = "llama.cpp control vector"
    suffix: ClassVar[str] = ".gguf"
    first_layer: ClassVar[int] = 1
    why_first: ClassVar[str] = "llama.cpp has no direction.0 and refuses a file that holds one; the lowest is block 1"

    def write(self, steering: Steering, path: Path, engine: HFEngine | None = None) -> Written:
        vectors = self.vectors(steering)
        hint = "" if engine is None else str(getattr(engine.model.config, "model_type", ""))
        metadata = {
            "controlvector.model_hint": hint,
            "controlvector.layer_count": _gguf.U32(len(vectors)),
            **self.also(steering),
            **_gguf.told(steering),
        }
        _gguf.write(path, {f"direction.{n}": v for n, v in sorted(vectors.items())}, metadata, "controlvector")
        return Written((path,), tuple(provenance_lost(steering, kept=("model", "method", "data"))))

    def also(self, steering: Steering) -> dict[str, str]:
        """More metadata, of the tools that read some."""
        return {}

    def claims(self, path: Path) -> bool:
        if not _gguf.looks(path):
            return False
        _, metadata = _gguf.read(path)
        return metadata.get("glp.mode", "add") == "add"

    def read(self, path: Path, hints: Hints) -> Steering:
        tensors, metadata = _gguf.read(path)
        mode = metadata.get("glp.mode", metadata.get("dspark.mode", "add"))
        if mode != "add":
            raise ArtefactError(f"{path} says glp.mode={mode!r}, which isn't adding; read it with --format glp.")
        made = [Intervention(Site(_gguf.number(n, path)), Shift(v), ALL) for n, v in tensors.items()]
        method = metadata.get("controlvector.method")
        known = imported(path, self.name, method=str(method) if method else None)
        return Steering(tuple(made), meta=_gguf.meta_of(metadata, known, path))
