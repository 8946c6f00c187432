"""`steerlab export`, `import`, `formats` and `verify`: steerings in other tools' files, and the proof that they do the same."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    Adopt,
    Config,
    Device,
    Dtype,
    Json,
    Opened,
    Quantize,
    Revision,
    TemplateOption,
    adopted,
    console,
    dump,
    echo,
    precision,
    refuse_overwriting,
    say,
    took,
)  # fmt: skip

if TYPE_CHECKING:
    from ..steering import Steering
    from ..verify.base import Receipt

TheModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="The model; without it the one that the steering names, where one is needed."),
]
Strength = Annotated[float, typer.Option("--strength", "-s", help="As a multiple of what the file has: 1 = as fitted.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what exists.")]


def formats(json: Json = False, config: Config = None) -> None:
    """List other tools' formats: what they hold, and whether they are read, too."""
    from .. import exports

    found = exports.formats()
    if json:
        dump(
            [
                {"name": n, "what": f.what, "holds": f.holds, "read": f.reads, "needs_model": f.needs_model}
                for n, f in found.items()
            ]
        )
        return
    from rich.table import Table

    table = Table("format", "what", "holds", "read", box=None, pad_edge=False, header_style="bold")
    for name, made in found.items():
        table.add_row(name, made.what, made.holds, "yes" if made.reads else "no")
    console().print(table)


def export(
    format: Annotated[str, typer.Argument(help="The format (`steerlab formats` lists them).")],
    file: Annotated[Path, typer.Argument(help="The steering's file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file, or folder, to write.")],
    strength: Strength = 1.0,
    model: TheModel = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    force: Force = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Write a steering in another tool's format: it acts exactly alike there, or is refused with the reasons."""
    refuse_overwriting(out, force)
    from .. import exports
    from ..loading import load
    from ..meter import Meter
    from ..steering import Steering

    steering = Steering.load(file).scaled(strength)
    made = exports.format_named(format)
    with Meter() as meter:
        engine = None
        if made.needs_model or model is not None:
            named = model or steering.meta.model or "pilot"
            engine = load(named, revision=revision, dtype=precision(dtype, quantize), device=device, template=template)
        written = exports.write(steering, out, format, engine=engine)
    if json:
        dump(
            {
                "format": made.name,
                "files": [str(p) for p in written.files],
                "lost": list(written.lost),
                "digest": steering.digest,
            }
        )
    else:
        for path in written.files:
            echo(f"wrote {path}")
        for lost in written.lost:
            say(f"note: {lost}")
    took(meter)


def import_(
    file: Annotated[Path, typer.Argument(help="Another tool's file or folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The steering's file (.safetensors).")],
    format: Annotated[str | None, typer.Option(help="Its format, where it isn't recognised (`steerlab formats`).")] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="The block, 0-based, where the file doesn't say it.")] = None,
    site: Annotated[str | None, typer.Option(help="Where bare vectors act: 12, 8-11, resid@12,mlp@12 (one for each vector).")] = None,
    scale: Annotated[float | None, typer.Option(help="What bare vectors are multiplied by at strength 1.  [default: 1]")] = None,
    positions: Annotated[str | None, typer.Option(help="Tokens at which bare vectors act.  [default: all]")] = None,
    concept: Annotated[int, typer.Option(min=0, help="The row of a dump of several concepts.")] = 0,
    positive: Annotated[float | None, typer.Option(help="Where a clamp's +1 sets the coordinate (max_act times the factor).")] = None,
    negative: Annotated[float | None, typer.Option(help="Where its -1 does.")] = None,
    prefix: Annotated[int, typer.Option(min=0, help="First tokens of the prompt that a clamp leaves alone.")] = 0,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model that it is for: its sites are checked, and it is bound to it.")] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    force: Force = False,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Make a steering of another tool's file. Nothing in it is executed: no pickle but torch's restricted reader of tensors."""
    refuse_overwriting(out, force)
    from .. import exports
    from .generate import hints_of
    from .show import described, drawn

    hints = replace(
        hints_of(site, scale, positions),
        layer=layer,
        concept=concept,
        positive=positive,
        negative=negative,
        prefix=prefix,
    )
    steering = exports.read(file, format, hints)  # a mistake in the file is told before the model is loaded
    if model is not None:
        from ..loading import load

        engine = load(model, revision=revision, dtype=precision(dtype, quantize), device=device, template=template)
        steering = exports.read(file, format, replace(hints, depth=engine.depth)).adopted(engine)
        engine.accept(steering)
    steering.save(out)
    if json:
        dump(described(steering, out))
    else:
        drawn(steering, out)
    say(f"wrote {out}")


def push(
    file: Annotated[Path, typer.Argument(help="The steering's file.")],
    repo: Annotated[str, typer.Argument(help="The repository on the hub: owner/name.")],
    name: Annotated[str, typer.Option(help="The file's name there.")] = "steering.safetensors",
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, where it is new.")] = False,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    config: Config = None,
) -> None:
    """Put a steering and its card on the Hugging Face hub; prints the hf:// name under which every verb takes it."""
    from ..hub import push_to_hub
    from ..steering import Steering

    echo(push_to_hub(Steering.load(file), repo, file=name, private=private, message=message))


def verify(
    file: Annotated[Path, typer.Argument(help="The steering's file.")],
    on: Annotated[str, typer.Option(help="Engines, with commas between: hf, gguf, baked, vllm, server.")] = "hf",
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="What it is tried on, given twice or more, of unlike lengths.")] = None,
    tolerance: Annotated[float | None, typer.Option(min=0, help="Nats by which log-probabilities may differ (each engine's own otherwise).")] = None,
    llamacpp: Annotated[str | None, typer.Option(help="A Python that has llama-cpp-python, where this one hasn't.")] = None,
    vllm: Annotated[str | None, typer.Option(help="A Python that has vLLM and steerlab, where this one hasn't.")] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="vLLM compiled (minutes more on a CPU) instead of eager.")] = False,
    url: Annotated[str | None, typer.Option(help="The server to be asked; without it `steerlab serve` is started and stopped again.")] = None,
    key_env: Annotated[str, typer.Option(help="Variable with a key of that server's; one that may use, and upload and remove where the steering isn't there yet.")] = "STEERLAB_API_KEY",
    server_engine: Annotated[str, typer.Option(help="What the server that is started runs the model on: hf or vllm.")] = "hf",
    strength: Strength = 1.0,
    model: TheModel = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    adopt: Adopt = False,
    json: Json = False,
    config: Config = None,
) -> None:  # fmt: skip
    """Prove that a steering does the same on engines and in exports: a receipt, and exit code 1 where something differs."""
    from .. import progress
    from ..contrast import Example
    from ..loading import load
    from ..meter import Meter
    from ..steering import Steering
    from ..verify import verify as checked
    from ..verify.base import Options

    steering = Steering.load(file).scaled(strength)
    with Meter() as meter, progress.shown():
        named = model or steering.meta.model or "pilot"
        engine = load(named, revision=revision, dtype=precision(dtype, quantize), device=device, template=template)
        if adopt:
            steering = adopted([Opened(file, steering)], engine)[0].steering
        asked = [Example.ask(text) for text in prompt] if prompt else None
        names = [name.strip() for name in on.split(",") if name.strip()]
        options = Options(
            tolerance, llamacpp, vllm=vllm, compiled=compiled, url=url, key=os.environ.get(key_env), server_engine=server_engine,
        )  # fmt: skip
        receipts = checked(engine, steering, names, prompts=asked, options=options)
    if json:
        dump(_told(steering, engine.name, receipts))
    else:
        _print(steering, engine.name, receipts)
    took(meter)
    if not all(r.passed for r in receipts):
        raise typer.Exit(1)


def _told(steering: Steering, model: str, receipts: Sequence[Receipt]) -> dict[str, object]:
    passed = all(r.passed for r in receipts)
    return {"digest": steering.digest, "model": model, "passed": passed, "receipts": [r.to_json() for r in receipts]}


def _print(steering: Steering, model: str, receipts: Sequence[Receipt]) -> None:
    from rich.table import Table

    out = console()
    out.print(f"steering {steering.digest[:16]}… on {model}")
    table = Table("engine", "check", "", "off by", "at most", "what", box=None, pad_edge=False, header_style="bold")
    words = {True: "ok", False: "FAILED", None: "–"}
    for receipt in receipts:
        for c in receipt.checks:
            value = "" if c.value is None else f"{c.value:.1e}"
            table.add_row(
                receipt.engine, c.name, words[c.passed], value, "" if c.most is None else f"{c.most:.0e}", c.told
            )
        for name, problem in (("refused", receipt.refused), ("broke", receipt.broke)):
            if problem is not None:
                table.add_row(receipt.engine, name, "FAILED", "", "", problem)
    out.print(table)
    for receipt in receipts:
        out.print(f"{receipt.engine}: {'PASSED' if receipt.passed else 'FAILED'}")
