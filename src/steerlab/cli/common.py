"""What the verbs share: options that several have, settings from YAML, and how a run says what it took."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import ArtefactError, ConfigError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from ..meter import Meter
    from ..steering import Steering

Template = Literal["chat", "plain"]


def configured(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take a verb's flags from a YAML file; flags on the command line win. An unknown key is an error."""
    if path is None:
        return None
    from .. import config

    legal = [p.name for p in ctx.command.params if p.name not in (None, "config", "help")]
    given = {str(k).replace("-", "_"): v for k, v in config.read_yaml(path).items()}
    for key in given:
        if key not in legal:
            raise ConfigError(
                f"{path} has the setting {key!r}, which this command lacks. {nearest(key, [str(n) for n in legal])}"
            )
    ctx.default_map = {**(ctx.default_map or {}), **given}
    return path


Model = Annotated[str, typer.Option("--model", "-m", help="pilot (built in), a name on the hub, or a folder.")]
Revision = Annotated[str | None, typer.Option(help="The model's revision on the hub.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ..., or auto to spread it (needs accelerate).")]
TemplateOption = Annotated[Template, typer.Option(help="chat: the model's own template. plain: text, for base models.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows that run at once.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Config = Annotated[
    Path | None,
    typer.Option(help="YAML file with these flags.", callback=configured, is_eager=True, show_default=False),
]


def console(*, err: bool = False) -> Console:
    """A terminal, or plain text where the output goes to a file or a pipe."""
    from rich.console import Console

    # texts of models and data are shown as they are: no [markup], no :emoji:
    return Console(stderr=err, markup=False, emoji=False, highlight=False)


def say(words: str) -> None:
    """A line for the person, on standard error, so that standard output stays clean for pipes."""
    typer.echo(words, err=True)


def took(meter: Meter) -> None:
    """What the run took, said at its end."""
    say(f"took {meter.told()}")


def dump(thing: Mapping[str, Any] | Sequence[Any]) -> None:
    """JSON on standard output."""
    json.dump(thing, sys.stdout, indent=1, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def composed(paths: Sequence[Path]) -> Steering | None:
    """The steerings of several files, added in the order given; None without any."""
    from ..steering import Steering

    whole: Steering | None = None
    for path in paths:
        loaded = Steering.load(path)
        whole = loaded if whole is None else whole + loaded
    return whole


def keep_to_range(paths: Sequence[Path], strengths: Sequence[float], *, strict: bool) -> None:
    """Warn of strengths beyond what each file was calibrated for. Raises `EditError` of them with `strict`, and of files
    that aren't calibrated; a file without a range is said to have none.
    """
    from ..errors import EditError
    from ..ranges import in_words, standing
    from ..steering import Steering

    for path in paths:
        told = Steering.load(path).meta.range
        found = [standing(told, s) for s in dict.fromkeys(strengths)]
        words = list(dict.fromkeys(f.words for f in found if f.words and (f.state != "weak" or not strict)))
        if strict and any(not f.allowed for f in found):
            refused = "; ".join(dict.fromkeys(f.words for f in found if not f.allowed))
            raise EditError(
                f"{path}: {refused}, and --strict keeps to calibrated strengths. Its range: {in_words(told)}."
                " Calibrate it (`steerlab calibrate`), take a strength within, or leave --strict out."
            )
        for line in words:
            say(f"{'note' if told is None else 'warning'}: {path}: {line}")
    if len(paths) > 1 and any(strengths):
        say("note: what these steerings cost together isn't calibrated; `steerlab compose` measures it")


def refuse_overwriting(path: Path, force: bool) -> None:
    """Nothing is lost without a word. Raises `ArtefactError`."""
    if path.exists() and not force:
        raise ArtefactError(f"{path} exists; choose another name, or pass --force to replace it.")
