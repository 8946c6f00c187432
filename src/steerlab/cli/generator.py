"""`steerlab generator`: train a network that writes steerings from descriptions, and have it write them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .common import (
    BatchSize,
    Config,
    Device,
    Dtype,
    Json,
    Model,
    Quantize,
    Revision,
    TemplateOption,
    dump,
    echo,
    precision,
    refuse_overwriting,
    say,
    took,
)  # fmt: skip
from .fit import Cache, DataSeed, Force, Layout, Pairs, described, parameter, plain

HELP = "Train a network that writes steerings from descriptions, and have it write them."
METHOD = "hypersteer"
NO_FLAGS = ("generator", "description", "reconstruct")  # for writing with a saved generator, and for given vectors

Sources = Annotated[
    list[str],
    typer.Option(
        "--data",
        "-d",
        help="Contrast data, given once or more: every concept of a file, pilot:NAME, pilot:topics, pilot:concepts.",
    ),
]
Concepts = Annotated[int | None, typer.Option(min=1, help="So many concepts of each of these, drawn at random.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The generator's file (.safetensors).")]


def group(words: Sequence[str]) -> typer.Typer:
    """The verb; the flags of the method are built only where they are needed."""
    app = typer.Typer(help=HELP, no_args_is_help=True)
    app.command("train")(_training() if words[:1] == ["train"] else placeholder)
    app.command("write")(write)
    return app


def placeholder(config: Config = None) -> None:
    """Train a generator on the contrasts of several concepts; its flags are the settings of hypersteer."""


def write(
    file: Annotated[Path, typer.Argument(help="The generator's file.")],
    description: Annotated[str, typer.Argument(help="The concept in words.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The steering's file.")],
    prompt: Annotated[str | None, typer.Option(help="The prompt, where the generator reads one.")] = None,
    model: Model = "pilot",
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    force: Force = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Write the steering of a concept from its description."""
    refuse_overwriting(out, force)
    from ..loading import load
    from ..meter import Meter
    from ..methods.generator import Generator
    from .show import described as told
    from .show import drawn

    with Meter() as meter:
        engine = load(model, revision=revision, dtype=precision(dtype, quantize), device=device, template=template)
        steering = Generator.load(file, engine)(description, prompt)
        steering.save(out)
    if json:
        dump(told(steering, out))
    else:
        drawn(steering, out)
    say(f"wrote {out}")
    took(meter)


def train(
    settings: dict[str, Any],
    *,
    data: Sequence[str],
    out: Path,
    concepts: int | None,
    pairs: int,
    data_seed: int,
    layout: str | None,
    model: str,
    revision: str | None,
    dtype: str,
    quantize: str | None,
    device: str | None,
    template: Any,
    run_batch_size: int,
    cache_gb: float,
    force: bool,
    json: bool,
) -> None:
    """Train, save and show a generator."""
    refuse_overwriting(out, force)
    from .. import progress
    from ..loading import load, read_concepts
    from ..meter import Meter
    from ..methods.base import method
    from ..methods.keep import Keep, cache_folder

    made: Any = method(METHOD, settings)
    with Meter() as meter, progress.shown():
        contrasts = [
            c
            for source in data
            for c in read_concepts(source, concepts=concepts, n=pairs, seed=data_seed, layout=layout)
        ]
        engine = load(
            model,
            revision=revision,
            dtype=precision(dtype, quantize),
            device=device,
            template=template,
            batch_size=run_batch_size,
        )
        keep = Keep(disk=int(cache_gb * 1e9), folder=cache_folder(engine)) if cache_gb else None
        generator = made.fit_generator(engine, contrasts, keep=keep)
        generator.save(out)
    told = {"file": str(out), "digest": generator.digest, "concepts": len(contrasts), "figures": generator.meta.figures}
    if json:
        dump(told)
    else:
        for name, value in told.items():
            echo(f"{name:10} {value}")
    say(f"wrote {out}")
    took(meter)


def _training() -> Callable[..., None]:
    """`train` with the method's fields as flags."""
    from .. import plugins

    cls, kind = plugins.load(METHOD), inspect.Parameter.KEYWORD_ONLY
    hints = get_type_hints(cls, include_extras=True)
    own = [parameter(f, hints[f.name]) for f in dataclasses.fields(cls) if f.init and f.name not in NO_FLAGS]
    required = [inspect.Parameter("data", kind, annotation=Sources), inspect.Parameter("out", kind, annotation=Out)]
    common = {
        "concepts": (Concepts, None), "pairs": (Pairs, 16), "data_seed": (DataSeed, 0), "layout": (Layout, None),
        "model": (Model, "pilot"), "revision": (Revision, None), "dtype": (Dtype, "auto"), "quantize": (Quantize, None),
        "device": (Device, None), "template": (TemplateOption, "chat"), "run_batch_size": (BatchSize, 32), "cache_gb": (Cache, 0.0),
        "force": (Force, False), "json": (Json, False), "config": (Config, None),
    }  # fmt: skip

    def run(**given: Any) -> None:
        given.pop("config", None)
        settings = {p.name: plain(given.pop(p.name)) for p in own}
        train(settings, **given)

    parameters = [
        *required,
        *own,
        *(inspect.Parameter(n, kind, annotation=a, default=d) for n, (a, d) in common.items()),
    ]
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = described(cls)
    return run
