"""One way to name a model: the built-in ones by name, everything else as transformers knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .contrast import Contrast
    from .engines.hf import HFEngine
    from .engines.render import Template


def load(
    model: str = "pilot",
    *,
    template: Template = "chat",
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    batch_size: int = 32,
) -> HFEngine:
    """An engine on a model: `pilot` (built in, runs anywhere), a name on the hub, or a folder.

    Raises `ArtefactError` where the model can't be loaded, `DataError` where it has no chat template and none was named.
    """
    from . import pilot
    from .engines.hf import HFEngine

    if model in pilot.VARIANTS:
        # kept small on disk in 16 bits, run in 32
        return HFEngine.load(
            str(pilot.folder(model)), dtype="float32", device=device, batch_size=batch_size, label=model
        )
    return HFEngine.load(model, revision=revision, dtype=dtype, device=device, template=template, batch_size=batch_size)


def read_data(
    source: str, *, n: int = 64, seed: int = 0, layout: str | None = None, concept: str | None = None
) -> Contrast:
    """Contrast data from a file, or from the pilot's own corpus by name: `pilot:formal`, `pilot:refusal`.

    `n` pairs are drawn with `seed` from the corpus; a file is read whole.
    """
    from . import pilot
    from .contrast import Contrast

    variant, _, kind = source.partition(":")
    if kind and variant in pilot.VARIANTS:
        return pilot.contrast(kind, n=n, seed=seed, variant=variant)
    return Contrast.read(source, layout=layout, concept=concept)
