"""`steerlab fit METHOD`: a steering from contrast data. Each method's flags are its dataclass's fields."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from .common import (
    BatchSize,
    Config,
    Device,
    Dtype,
    IsRendered,
    Json,
    Model,
    Quantize,
    Revision,
    System,
    TemplateOption,
    Thinking,
    dump,
    echo,
    precision,
    refuse_overwriting,
    say,
    switched,
    took,
)  # fmt: skip

HELP = (
    "Fit a steering to contrast data: `steerlab fit METHOD --data FILE --out FILE` (`steerlab fit --help` lists them)."
)

NO_BETTER = 0.95  # of the divergence without any edit

Data = Annotated[
    str, typer.Option("--data", "-d", help="Contrast data: a file or folder, or pilot:NAME from the corpus.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The steering's file (.safetensors).")]
Layout = Annotated[
    str | None, typer.Option(help="The data's layout, where it isn't recognised (`steerlab data layouts`).")
]
Concept = Annotated[str | None, typer.Option(help="Which concept, where the data holds several.")]
Pairs = Annotated[int, typer.Option(min=1, help="Pairs drawn from the corpus (pilot:NAME).")]
DataSeed = Annotated[int, typer.Option(help="Seed of that draw.")]
Cache = Annotated[
    float, typer.Option(min=0, help="Gigabytes of activations kept on disk for the next fit on this model and data.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what the fit will take, and do nothing else.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")]


def group(words: Sequence[str]) -> typer.Typer:
    """The verb with one command per method; only the named method's flags are built, where one is named."""
    from .. import plugins

    names = plugins.names("methods")
    named = [w.replace("-", "_") for w in words[:1] if not w.startswith("-")]
    app = typer.Typer(help="Fit a steering to contrast data; each method has its own flags.", no_args_is_help=True)
    for name in names if not named or named[0] not in names else named:
        app.command(name.replace("_", "-"), help=described(plugins.load(name)))(_command(name, plugins.load(name)))
    if named and named[0] not in names:
        plugins.load(named[0])  # raises with the nearest name
    return app


def placeholder() -> None:
    """Stands in the list of verbs; `group` takes its place when `fit` is called."""


def fit(
    name: str,
    settings: dict[str, Any],
    *,
    data: str,
    out: Path,
    model: str = "pilot",
    revision: str | None = None,
    dtype: str = "auto",
    quantize: str | None = None,
    device: str | None = None,
    template: Any = "chat",
    system: str | None = None,
    thinking: str | None = None,
    rendered: bool = False,
    batch_size: int = 32,
    layout: str | None = None,
    concept: str | None = None,
    pairs: int = 64,
    data_seed: int = 0,
    cache_gb: float = 0.0,
    dry_run: bool = False,
    force: bool = False,
    json: bool = False,
) -> None:
    """Fit, save and show a steering."""
    if not dry_run:
        refuse_overwriting(out, force)
    from .. import progress
    from ..loading import load, read_data
    from ..meter import Meter
    from ..methods.base import method
    from ..methods.forecast import forecast
    from ..methods.keep import Keep, cache_folder
    from ..methods.trained import Trained
    from .show import described, drawn

    made = method(name, settings)
    with Meter() as meter, progress.shown():
        contrast = read_data(data, n=pairs, seed=data_seed, layout=layout, concept=concept)
        engine = load(
            model, revision=revision, dtype=precision(dtype, quantize), device=device, template=template,
            batch_size=batch_size, system=system, thinking=switched(thinking), rendered=rendered,
        )  # fmt: skip
        if thinking == "both":
            contrast = contrast.both_ways_of_thinking()
        if dry_run:
            expected = forecast(made, engine, contrast)
            dump(expected._asdict()) if json else echo(expected.told())
            return
        if cache_gb and isinstance(made, Trained):
            keep = Keep(disk=int(cache_gb * 1e9), folder=cache_folder(engine))
            (steering,) = made.fit_many(engine, [contrast], keep=keep)
        else:
            steering = made.fit(engine, contrast)
        steering.save(out)
    if json:
        dump(described(steering, out))
    else:
        drawn(steering, out)
    if warning := _no_better(steering.meta.figures):
        say(warning)
    say(f"wrote {out}")
    took(meter)


def _no_better(figures: Mapping[str, Any]) -> str | None:
    """A sentence where the clamp that is served brings held-out replies no nearer to the wanted ones than no edit."""
    told, served = figures.get("divergence"), figures.get("divergence_served")
    if not told or served is None or not told["unsteered"] or served < NO_BETTER * told["unsteered"]:
        return None
    return (
        f"warning: on held-out pairs this leaves {served / told['unsteered']:.2f} of the divergence, and no edit at all leaves"
        " 1: it can't be expected to steer. Try another block (--site), more pairs, --rank 1, or look at the pairs with"
        " `steerlab data check`."
    )


def _command(name: str, cls: type[Any]) -> Callable[..., None]:
    """A function whose signature is the common options and the method's fields."""
    kind = inspect.Parameter.KEYWORD_ONLY
    required = [inspect.Parameter("data", kind, annotation=Data), inspect.Parameter("out", kind, annotation=Out)]
    hints = get_type_hints(cls, include_extras=True)
    own = [parameter(f, hints[f.name]) for f in dataclasses.fields(cls) if f.init]
    common = {
        "model": (Model, "pilot"), "revision": (Revision, None), "dtype": (Dtype, "auto"), "quantize": (Quantize, None),
        "device": (Device, None), "template": (TemplateOption, "chat"), "system": (System, None), "thinking": (Thinking, None),
        "rendered": (IsRendered, False), "batch_size": (BatchSize, 32), "layout": (Layout, None),
        "concept": (Concept, None), "pairs": (Pairs, 64), "data_seed": (DataSeed, 0), "cache_gb": (Cache, 0.0),
        "dry_run": (DryRun, False), "force": (Force, False),
        "json": (Json, False), "config": (Config, None),
    }  # fmt: skip
    mine = {p.name for p in own}
    if "batch_size" in mine:
        common["run_batch_size"] = common.pop("batch_size")
    shared = [inspect.Parameter(n, kind, annotation=a, default=d) for n, (a, d) in common.items()]

    def run(**given: Any) -> None:
        given.pop("config", None)
        settings = {n: plain(given.pop(n)) for n in mine}
        if "run_batch_size" in given:
            given["batch_size"] = given.pop("run_batch_size")
        fit(name, settings, **given)

    parameters = [*required, *own, *shared]
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def parameter(field: Any, hint: Any) -> inspect.Parameter:
    """A setting as a flag."""
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    if isinstance(default, tuple):
        default, hint = list(default), list[get_args(hint)[0]]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default,
        annotation=Annotated[hint, typer.Option(rich_help_panel="The method's settings")],
    )  # fmt: skip


def plain(value: Any) -> Any:
    """A flag's value as the setting takes it."""
    return tuple(value) if isinstance(value, list) else value


def described(cls: type[Any]) -> str:
    """The class's docstring, then what its bases say of the fields that it inherits."""
    docs = [c.__doc__ for c in cls.__mro__ if dataclasses.is_dataclass(c) and c.__doc__ and c.__name__ != "Method"]
    doc = "\n\n".join(inspect.cleandoc(d) for d in docs)
    paper = f"\n\nSource: {cls.paper}" if getattr(cls, "paper", "") else ""
    return doc + paper
