"""`steerlab gate`: a steering that acts where it should, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import (
    Adopt,
    BatchSize,
    Config,
    Device,
    Dtype,
    Json,
    Model,
    OneThinking,
    Opened,
    Quantize,
    Revision,
    System,
    TemplateOption,
    adopted,
    dump,
    precision,
    refuse_overwriting,
    say,
    switched,
    took,
)  # fmt: skip


def gate(
    file: Annotated[Path, typer.Argument(help="The steering's file.")],
    data: Annotated[str, typer.Option("--data", "-d", help="Contrast data: a file or folder, or pilot:NAME.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The gated steering's file.")],
    neutral: Annotated[
        str | None, typer.Option(help="Unrelated prompts: a text file with one in each line, or pilot:neutral.")
    ] = None,
    opens: Annotated[
        Literal["positive", "negative", "both"], typer.Option(help="On which prompts of the contrast it opens.")
    ] = "positive",
    when: Annotated[
        Literal["ahead", "held", "token"],
        typer.Option(help="ahead: by one pass of the prompt. held: at the last prompt token. token: at each token."),
    ] = "ahead",
    site: Annotated[
        str | None, typer.Option(help="Where it reads; none: the block that tells prompts apart best.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0, max=1, help="Share of unrelated prompts that may open it.")] = 0.0,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs drawn from the corpus (pilot:NAME).")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of that draw and of the halves.")] = 0,
    model: Model = "pilot",
    revision: Revision = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = None,
    template: TemplateOption = "chat",
    adopt: Adopt = False,
    system: System = None,
    thinking: OneThinking = None,
    batch_size: BatchSize = 32,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")] = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Fit a gate to a steering: it acts on prompts like the contrast's, and leaves all others bit-identical."""
    refuse_overwriting(out, force)
    from .. import progress
    from ..loading import load, read_data, read_prompts
    from ..meter import Meter
    from ..methods.gates import gated
    from ..sites import Site
    from ..steering import Steering
    from .show import described, drawn

    with Meter() as meter, progress.shown():
        steering, contrast = Steering.load(file), read_data(data, n=pairs, seed=seed)
        others = () if neutral is None else read_prompts(neutral, n=4 * pairs, seed=seed)
        engine = load(
            model, revision=revision, dtype=precision(dtype, quantize), device=device, template=template, batch_size=batch_size, system=system,
            thinking=switched(thinking),
        )  # fmt: skip
        if adopt:
            steering = adopted([Opened(file, steering)], engine)[0].steering
        where = None if site is None else Site.parse(site)
        made = gated(engine, steering, contrast, others, opens=opens, when=when, site=where, rate=rate, seed=seed)
        made.save(out)
    if json:
        dump(described(made, out))
    else:
        drawn(made, out)
    say(f"wrote {out}")
    took(meter)
