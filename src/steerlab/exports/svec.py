"""AISteer360's `.svec`: JSON with a direction for each block, `[K, D]`.

K = 1 is a vector for every token (CAA), added to the block's output. With `num_heads` it is one direction for each head
(ITI), added to what the output projection reads. Any other K means tokens in one method (ActAdd) and a plane in another
(angular steering); the file doesn't say which, so it isn't read. Token scope and multiplier aren't in the file either: read
is every token at strength 1. Numbers are written as decimal text, which keeps float32 exactly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, cast

from ..edits import Shift
from ..engines.hf import HFEngine
from ..errors import ArtefactError
from ..files import write_text
from ..positions import ALL
from ..sites import Site
from ..steering import Intervention, Steering
from .base import Hints, VectorFormat, Written, as_vector, imported, provenance_lost, same_width

GREATEST = 2**30  # bytes of text


class SVec(VectorFormat):
    """A vector for each block, as text."""

    what: ClassVar[str] = "AISteer360's steering vector"
    suffix: ClassVar[str] = ".svec"

    def write(self, steering: Steering, path: Path, engine: HFEngine | None = None) -> Written:
        vectors = self.vectors(steering)
        kind = "unknown" if engine is None else str(getattr(engine.model.config, "model_type", "unknown"))
        held = {"model_type": kind, "directions": {str(n): [v.tolist()] for n, v in sorted(vectors.items())}}
        write_text(path, json.dumps(held))
        lost = provenance_lost(steering)
        return Written(
            (path,),
            tuple(lost if engine is not None else (*lost, "model_type is 'unknown': name the --model to write it")),
        )

    def claims(self, path: Path) -> bool:
        return path.is_file() and path.suffix == ".svec"

    def read(self, path: Path, hints: Hints) -> Steering:
        held = _json(path)
        directions: dict[str, Any] = held.get("directions") or {}
        if not isinstance(directions, dict) or not directions:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArtefactError(f"{path} has no directions; expected a mapping of blocks to vectors.")
        heads = held.get("num_heads")
        made: list[Intervention] = []
        for name, value in directions.items():
            if not (name.isascii() and name.isdigit()):
                raise ArtefactError(f"{path} has a direction of the block {name!r}; expected a number, 0-based.")
            rows = cast("list[Any]", value) if isinstance(value, list) else [value]
            nested = [r for r in rows if isinstance(r, list)]
            if heads is not None and len(nested) == heads:
                vector = as_vector([x for r in nested for x in cast("list[Any]", r)], f"block {name}", path)
                made.append(Intervention(Site(int(name), "heads"), Shift(vector), ALL))
                continue
            if len(nested) > 1:
                raise ArtefactError(
                    f"{path} has {len(nested)} directions of block {name}, which are tokens in one method and a plane in another;"
                    " the file doesn't say which, so it isn't read. Give K = 1, or num_heads with one for each head."
                )
            made.append(Intervention(Site(int(name)), Shift(as_vector(value, f"block {name}", path)), ALL))
        same_width([i.edit.v for i in made if isinstance(i.edit, Shift)], path)
        return Steering(tuple(made), meta=imported(path, self.name))


def _json(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > GREATEST:
        raise ArtefactError(f"{path} has {size} bytes of text; at most {GREATEST} are read.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise ArtefactError(f"{path} isn't readable JSON ({str(problem)[:120]}).") from problem
    if not isinstance(found, dict):
        raise ArtefactError(f"{path} holds {type(found).__name__}; expected a JSON object with directions.")
    return cast("dict[str, Any]", found)
