"""`steerlab lm-eval ...`: lm-evaluation-harness with the model type `steerlab` known to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
HELP = """Run lm-evaluation-harness with a steering: its own command line, with the model type `steerlab` (needs `steerlab[eval]`).

`steerlab lm-eval --model_args pretrained=pilot,steering=x.safetensors,strength=1 --tasks arc_easy --batch_size 16`"""


def lm_eval(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="The harness's own YAML file of its flags.")] = None,
) -> None:
    """Every word goes to the harness."""
    from ..harness import main

    main([*ctx.args, *(() if config is None else ("--config", str(config)))])
