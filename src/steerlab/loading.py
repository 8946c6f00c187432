"""One way to name a model: the built-in ones by name, everything else as transformers knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .contrast import Contrast, Example
    from .engines.hf import HFEngine
    from .engines.hf_quantize import Quantize
    from .engines.render import Template
    from .vllm.engine import VLLMEngine


def load(
    model: str = "pilot",
    *,
    template: Template = "chat",
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    quantize: Quantize | None = None,
    batch_size: int = 32,
    system: str | None = None,
    thinking: bool | None = None,
    rendered: bool = False,
) -> HFEngine:
    """An engine on a model: `pilot` (built in, runs anywhere), a name on the hub, or a folder.

    `quantize` is 4bit or 8bit, by bitsandbytes (extra `quantize`); `device="auto"` spreads a model over what there is.
    `system` is put before every conversation without a system message, `thinking` switches a template's thinking on or off,
    and `rendered` says that texts are whole prompts which the chat template has written already.

    Raises `ArtefactError` where the model can't be loaded, `DataError` where it has no chat template and none was named,
    `ConfigError` where what quantises isn't installed.
    """
    from . import pilot
    from .engines.hf import HFEngine
    from .engines.hf_quantize import precision, taken_apart
    from .engines.render import Rendering

    rendering = Rendering(system, thinking, rendered)
    dtype = precision(dtype, quantize)
    if model in pilot.VARIANTS:
        # kept small on disk in 16 bits, run in 32
        return HFEngine.load(
            str(pilot.folder(model)), dtype=precision("float32", taken_apart(dtype)[1]), device=device,
            batch_size=batch_size, label=model, rendering=rendering,
        )  # fmt: skip
    return HFEngine.load(
        model, revision=revision, dtype=dtype, device=device, template=template, batch_size=batch_size,
        rendering=rendering,
    )  # fmt: skip


def load_vllm(
    model: str = "pilot",
    *,
    steerings: Sequence[Path] = (),
    template: Template = "chat",
    revision: str | None = None,
    dtype: str = "auto",
    rows: int = 64,
    options: str | None = None,
) -> VLLMEngine:
    """The same model in stock vLLM, steered request by request, for a server. Needs the extra `vllm`.

    Its tables hold what these files need, two of the largest at once; `options` are vLLM's own arguments as JSON. Raises
    `ConfigError` where vLLM isn't installed, `UnsupportedError` where its canary dies.
    """
    from . import pilot
    from .engines.hf_quantize import taken_apart
    from .errors import ConfigError
    from .vllm.engine import VLLMEngine, read_options

    if taken_apart(dtype)[1] is not None:
        raise ConfigError(
            "vLLM quantises a model itself; leave --quantize out, and give its own settings (--engine-options"
            """ '{"quantization": "bitsandbytes"}')."""
        )
    built_in = model in pilot.VARIANTS
    where = str(pilot.folder(model)) if built_in else model
    dtype = "float32" if built_in else dtype
    return VLLMEngine.load(
        where, steerings, label=model, revision=revision, dtype=dtype, template=template, rows=rows,
        options=read_options(options),
    )  # fmt: skip


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


def read_concepts(
    source: str, *, concepts: int | None = None, n: int = 64, seed: int = 0, layout: str | None = None
) -> list[Contrast]:
    """A contrast for each concept of a file, or of the pilot's corpus: `pilot:topics` (hundreds), `pilot:concepts`.

    Each says what it is about in words (`concept`), for methods that read a description: of the corpus, `topic:bees` is
    described as "bees". `concepts` draws that many at random with `seed`. Raises `DataError` where there are fewer.
    """
    import numpy as np

    from . import data, pilot
    from .errors import DataError

    variant, _, kind = source.partition(":")
    corpus = bool(kind) and variant in pilot.VARIANTS
    names: list[str | None] = [None]
    if corpus:
        every = {"topics": pilot.topics, "concepts": pilot.concepts}.get(kind)
        names = [kind] if every is None else [c.name for c in every(variant)]
    else:
        names = [c.id or c.name for c in data.concepts(source, layout=layout)] or names
    if concepts is not None:
        if concepts > len(names):
            raise DataError(f"{concepts} concepts were wanted, and {source} holds {len(names)}; ask for fewer.")
        names = [names[i] for i in sorted(np.random.default_rng(seed).permutation(len(names))[:concepts])]
    if corpus:
        return [_described(str(name), n, seed, variant) for name in names]
    return [data.read(source, layout=layout, concept=name) for name in names]


def _described(kind: str, n: int, seed: int, variant: str) -> Contrast:
    """A contrast of the pilot's corpus under its description."""
    from dataclasses import replace

    from . import pilot

    made = pilot.contrast(kind, n=n, seed=seed, variant=variant, neutral=1)
    concept = kind if kind in ("refusal", "backdoor") else pilot.concept(kind, variant).description
    return replace(made, concept=concept, neutral=())


def read_prompts(source: str, *, n: int = 512, seed: int = 0) -> tuple[Example, ...]:
    """Prompts from a text file, one in each line, or from the pilot's own corpus by kind: `pilot:neutral`.

    Raises `DataError` for a file without any, `ArtefactError` where there is none.
    """
    from pathlib import Path

    from . import pilot
    from .contrast import Example
    from .errors import ArtefactError, DataError, nearest

    variant, _, kind = source.partition(":")
    if kind and variant in pilot.VARIANTS:
        return pilot.prompts(kind, n=n, seed=seed, variant=variant)
    path = Path(source)
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ArtefactError(f"there is no file {source} of prompts. {nearest(path.name, beside)}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as problem:
        raise DataError(f"{source} isn't UTF-8 text ({problem}); expected one prompt in each line.") from problem
    if not any(lines):
        raise DataError(f"{source} holds no prompt; expected one in each line.")
    return tuple(Example.ask(line) for line in lines if line)
