"""Vectors as people keep them: a `.pt`, `.npy`, `.npz` or safetensors file of one vector, a row a block, or a mapping of blocks.

| the file holds | `--site` | acts at |
|---|---|---|
| one vector `[d]` (or `[1, d]`) | one site, needed | that site |
| rows `[n, d]`, or a list of n vectors | n sites; else blocks 0 to n − 1 | row i at the i-th |
| a mapping of n vectors | not needed | what its names say: 12, `layer_12`, `model.layers.12.mlp`, `blocks.12.hook_resid_post` |
| a mapping `{"layer": 12, name: vector}` | not needed | block 12 |

Each vector v becomes `Shift(scale · v)`, so that strength 1 adds `scale` times the file's vector. A block's site is its OUTPUT
(`sites`); TransformerLens' `hook_resid_pre` of block n is the output of block n − 1. Rows of zeros are left out. Nothing in a
file is executed: torch's restricted reader, numpy without pickle, safetensors.

A model of L blocks has L + 1 hidden states, the first of which is the embedding and the last one lies behind the final norm:
L + 1 rows without sites are refused where the model is known, since a wrong guess would be one block off everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from ..artefact import KEY
from ..edits import Shift
from ..errors import ArtefactError, EditError, SiteError, UnsupportedError
from ..positions import ALL
from ..sites import Site
from ..steering import Intervention, Steering
from . import _torch
from .base import Format, Hints, Written, as_vector, imported, same_width

if TYPE_CHECKING:
    from ..engines.hf import HFEngine

SUFFIXES = (".pt", ".pth", ".npy", ".npz", ".safetensors")
MODULES = {"": "resid", "self_attn": "attn", "attn": "attn", "attention": "attn", "mlp": "mlp", "feed_forward": "mlp"}
HOOKS = {"hook_resid_post": "resid", "hook_attn_out": "attn", "hook_mlp_out": "mlp"}  # TransformerLens
_MODULE = re.compile(r"(?:[a-z_]+\.)*(?:layers|layer|h|blocks|block|direction)[._](\d+)(?:\.([a-z_]+))?", re.IGNORECASE)


class Raw(Format):
    """Bare vectors."""

    what: ClassVar[str] = "bare vectors (.pt, .npy, .npz, .safetensors)"
    holds: ClassVar[str] = "a vector, a row a block, or a mapping of blocks; says neither model nor positions"
    fallback: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = ("sites", "scale", "positions")

    def refuses(self, steering: Steering, engine: HFEngine | None = None) -> list[str]:
        return ["bare vectors say nothing of positions and strength; write svec, gguf or a steering's own file"]

    def write(self, steering: Steering, path: Path, engine: HFEngine | None = None) -> Written:
        raise UnsupportedError(f"raw is only read: {self.refuses(steering)[0]}.")

    def claims(self, path: Path) -> bool:
        return path.is_file() and path.suffix.lower() in SUFFIXES

    def read(self, path: Path, hints: Hints) -> Steering:
        if hints.scale is not None and (hints.scale == 0 or not torch.isfinite(torch.tensor(hints.scale))):
            raise EditError(f"the scale is {hints.scale}; expected a finite number other than 0.")
        vectors = placed(tensors_of(path), hints, path)
        same_width(list(vectors.values()), path)
        scale = 1.0 if hints.scale is None else hints.scale
        positions = ALL if hints.positions is None else hints.positions
        made = [Intervention(site, Shift(scale * v), positions) for site, v in vectors.items() if bool(v.any())]
        if not made:
            raise ArtefactError(f"{path} holds nothing but zeros; expected a vector that does something.")
        meta = imported(path, self.name)
        meta.method["scale"] = scale
        return Steering(tuple(made), meta=meta)


def tensors_of(path: Path) -> Any:
    """What a file holds: a tensor, a list or a mapping of tensors. Raises `ArtefactError`; runs nothing of it."""
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return _numpy(path)
    if suffix == ".safetensors":
        return _safetensors(path)
    return _torch.load(path)


def placed(held: Any, hints: Hints, path: Path) -> dict[Site, Tensor]:
    """A vector `[d]` for each site. Raises `ArtefactError` where the file and the hints don't say which is where."""
    if isinstance(held, Mapping):
        held, hints = _mapping(cast("Mapping[Any, Any]", held), hints, path)
        if isinstance(held, dict):
            return cast("dict[Site, Tensor]", held)
    if isinstance(held, (list, tuple)):
        rows = [as_vector(v, f"entry {n}", path) for n, v in enumerate(cast("Sequence[Any]", held))]
        same_width(rows, path)
        held = torch.stack(rows) if rows else torch.zeros(0, 0)
    if not isinstance(held, Tensor) or held.ndim not in (1, 2) or held.numel() == 0:
        shape = list(held.shape) if isinstance(held, Tensor) else type(held).__name__
        raise ArtefactError(
            f"{path} holds {shape}; expected a vector [d], rows [n, d] with one for each site, or a mapping of blocks to"
            " vectors."
        )
    if not held.is_floating_point():
        raise ArtefactError(f"{path} holds numbers of the type {held.dtype}; expected floating-point ones.")
    rows = held[None] if held.ndim == 1 else held
    return dict(zip(_sites(len(rows), hints, path), (as_vector(v, f"row {n}", path) for n, v in enumerate(rows))))


def _sites(n: int, hints: Hints, path: Path) -> tuple[Site, ...]:
    """The sites of n vectors without names."""
    sites = hints.sites or ((Site(hints.layer),) if hints.layer is not None else ())
    if len(set(sites)) != len(sites):
        raise ArtefactError(f"the sites {', '.join(map(str, sites))} name one twice; give each vector its own.")
    if sites:
        if len(sites) != n:
            raise ArtefactError(f"{path} holds {n} vectors, and {len(sites)} sites are named; give one for each.")
        return sites
    if n == 1:
        raise ArtefactError(f"{path} holds one vector and doesn't say where it acts; name it with --site (such as 12).")
    if hints.depth is not None and n != hints.depth:
        states = (
            " They may be hidden states, whose first row is what block 0 reads and whose last lies behind the final norm:"
            f" cut the last row off and give --site embed,{','.join(map(str, range(hints.depth - 1)))}."
            if n == hints.depth + 1 else ""
        )  # fmt: skip
        raise ArtefactError(
            f"{path} holds {n} vectors, and the model has {hints.depth} blocks; say where each acts with --site.{states}"
        )
    return tuple(Site(layer) for layer in range(n))


def _mapping(held: Mapping[Any, Any], hints: Hints, path: Path) -> tuple[Any, Hints]:
    """A mapping of sites to vectors; or, where it holds one vector under another name, that vector and what is known of it."""
    tensors = {k: v for k, v in held.items() if isinstance(v, (Tensor, list, tuple))}
    numbers = {str(k).lower(): v for k, v in held.items() if isinstance(v, int) and not isinstance(v, bool)}
    sites = {k: site_of(k) for k in tensors}
    unnamed = [str(k) for k, site in sites.items() if site is None]
    if len(tensors) == 1 and unnamed:
        layer = numbers.get("layer", hints.layer)
        hints = hints if hints.sites or layer is None else replace(hints, layer=layer)
        (only,) = tensors.values()
        return only, hints
    if not tensors or unnamed:
        raise ArtefactError(
            f"{path} is a mapping with the names {(unnamed or [str(k) for k in held])[:4]}; expected names that say the block:"
            " 12, 'layer_12', 'resid@12', 'model.layers.12', 'model.layers.12.mlp' or 'blocks.12.hook_resid_post'."
        )
    if hints.sites or hints.layer is not None:
        raise ArtefactError(
            f"{path} names its blocks itself ({[str(k) for k in held][:4]}); leave --site and --layer out."
        )
    if len(set(sites.values())) != len(sites):
        raise ArtefactError(f"{path} has two vectors for one site: {', '.join(map(str, sites.values()))}.")
    return {cast("Site", sites[k]): as_vector(v, str(k), path) for k, v in tensors.items()}, hints


def sites_named(text: str) -> tuple[Site, ...]:
    """The sites of `--site`: commas between, and a range of blocks as `8-11`. Raises `SiteError`."""
    sites: list[Site] = []
    for piece in (p.strip() for p in text.split(",")):
        match = re.fullmatch(r"(\d+)-(\d+)", piece)
        if match is None:
            sites.append(Site.parse(piece))
            continue
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise SiteError(
                f"the blocks {piece!r} run backwards; expected the lower number first, such as {last}-{first}."
            )
        sites += [Site(layer) for layer in range(first, last + 1)]
    return tuple(sites)


def site_of(name: object) -> Site | None:
    """The site that a mapping's name means; None where it says none."""
    text = str(name).strip()
    if re.fullmatch(r"\d+", text):
        return Site(int(text))
    if re.fullmatch(r"[a-z_]+@\d+(\[\d+\])?|embed|final", text):
        return Site.parse(text)
    match = _MODULE.fullmatch(text)
    if match is None:
        return None
    layer, inner = int(match[1]), (match[2] or "").lower()
    if inner == "hook_resid_pre":
        return Site(layer - 1) if layer else Site(part="embed")
    part = MODULES.get(inner) or HOOKS.get(inner)
    return None if part is None else Site(layer, part)


def _numpy(path: Path) -> Any:
    import zipfile

    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
        held = {k: loaded[k] for k in loaded.files} if path.suffix.lower() == ".npz" else loaded
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, MemoryError, LookupError) as problem:
        raise ArtefactError(
            f"{path} isn't a readable numpy file of plain numbers ({str(problem)[:200]}); save it with numpy.save."
        ) from problem
    arrays = held if isinstance(held, dict) else {"": held}
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise ArtefactError(f"{path} holds numbers of the type {array.dtype} {name}; expected floating-point ones.")
    made = {k: torch.from_numpy(np.ascontiguousarray(a.astype("float32"))) for k, a in arrays.items()}
    return made if isinstance(held, dict) else made[""]


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if KEY in (file.metadata() or {}):
                raise ArtefactError(f"{path} is a steering of steerlab's own; use it as it is.")
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError, UnicodeDecodeError) as problem:
        raise ArtefactError(f"{path} isn't a readable safetensors file: {problem}.") from problem
