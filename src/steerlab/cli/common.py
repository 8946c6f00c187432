"""What the verbs share: options that several have, settings from YAML, and how a run says what it took."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from .. import escapes
from ..errors import ArtefactError, ConfigError, nearest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ..engines.base import Runner
    from ..exports.base import Hints
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
Device = Annotated[
    str | None,
    typer.Option("--device", "--device-map", help="cpu, cuda, ..., or auto to spread it (needs accelerate)."),
]
Quantize = Annotated[
    Literal["4bit", "8bit"] | None,
    typer.Option(help="Load the blocks' weights in so many bits (extra quantize: bitsandbytes).", show_default=False),
]
TemplateOption = Annotated[Template, typer.Option(help="chat: the model's own template. plain: text, for base models.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows that run at once.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Config = Annotated[
    Path | None,
    typer.Option(help="YAML file with these flags.", callback=configured, is_eager=True, show_default=False),
]


def precision(dtype: str, quantize: str | None) -> str:
    """A dtype and a quantisation in the one line that `steerlab.load` takes for both. Raises `ConfigError`."""
    from ..engines.hf_quantize import precision as joined

    return joined(dtype, quantize)


def console(*, err: bool = False) -> Console:
    """A terminal, or plain text where the output goes to a file or a pipe; what texts hold is shown and never done."""
    return escapes.console(err=err)


def echo(words: str, *, err: bool = False, bold: bool = False) -> None:
    """A line of text that may hold what files say."""
    typer.secho(escapes.visible(words), err=err, bold=bold or None)


def say(words: str) -> None:
    """A line for the person, on standard error, so that standard output stays clean for pipes."""
    echo(words, err=True)


def took(meter: Meter) -> None:
    """What the run took, said at its end."""
    say(f"took {meter.told()}")


def dump(thing: Mapping[str, Any] | Sequence[Any]) -> None:
    """JSON on standard output."""
    sys.stdout.write(escapes.visible_json(thing) + "\n")


Thinking = Annotated[
    Literal["on", "off", "both"] | None,
    typer.Option(
        help="Switch the chat template's thinking (enable_thinking): on, off, or both.  [default: as the template does]"
    ),
]
OneThinking = Annotated[
    Literal["on", "off"] | None,
    typer.Option(
        "--thinking", help="Switch the chat template's thinking (enable_thinking).  [default: as the template does]"
    ),
]
System = Annotated[
    str | None, typer.Option(help="A system message before every conversation that has none.", show_default=False)
]
IsRendered = Annotated[
    bool,
    typer.Option(
        "--rendered",
        help="Texts are whole prompts that the chat template has written already: write nothing around them.",
    ),
]
Adopt = Annotated[
    bool,
    typer.Option(
        "--adopt", help="Take steerings over that were fitted on another model or chat template, as they are."
    ),
]


def switched(thinking: str | None) -> bool | None:
    """A switch of thinking as engines take it; None where it stays as the template has it, or both are wanted."""
    return {"on": True, "off": False}.get(thinking or "")


class Opened(NamedTuple):
    """A steering's file, what it holds, and whether another tool wrote it."""

    path: Path
    steering: Steering
    foreign: bool = False


def opened(paths: Sequence[Path], hints: Hints | None = None) -> list[Opened]:
    """The steerings of several files, other tools' among them. Raises `ArtefactError`.

    `hints` say what a file of bare vectors doesn't.
    """
    from .. import exports
    from ..artefact import is_steering
    from ..steering import Steering

    read: list[Opened] = []
    for path in paths:
        foreign = path.exists() and not is_steering(path)
        steering = exports.read(path, hints=hints) if foreign else Steering.load(path)
        if hints is not None and not foreign and (hints.sites or hints.scale or hints.positions):
            raise ConfigError(
                f"{path} is a steering, which says itself where and how strongly it acts; leave --site, --scale and"
                " --positions out (they are for bare vectors)."
            )
        read.append(Opened(path, steering, foreign))
    return read


def adopted(files: Sequence[Opened], engine: Runner) -> list[Opened]:
    """The same steerings taken over for this model and template, each with a line that says what differs."""
    from ..engines.likeness import compared

    taken: list[Opened] = []
    for path, steering, foreign in files:
        if reasons := compared(steering.meta, engine.name, engine.fingerprint, engine.template):
            lost = "; its calibrated range is left out" if steering.meta.range is not None else ""
            say(f"warning: {path} is taken over as it is{lost}: {'; '.join(r.what for r in reasons)}")
            steering = steering.adopted(engine)
        taken.append(Opened(path, steering, foreign))
    return taken


def composed(files: Sequence[Opened]) -> Steering | None:
    """The steerings of several files, added in the order given; None without any."""
    whole: Steering | None = None
    for file in files:
        whole = file.steering if whole is None else whole + file.steering
    return whole


COLOURS = {"safe": "green", "unresolved": "yellow", "over": "red", "not calibrated": "dim"}


def coloured(told: Mapping[str, Any] | None) -> Text:
    """A range in words, each direction in the colour of how far it is to be trusted."""
    from rich.text import Text

    from ..ranges import phrases

    parts = [(phrase.words, COLOURS[phrase.state]) for phrase in phrases(told)]
    return Text("; ").join(Text(words, style) for words, style in parts)


def keep_to_range(files: Sequence[Opened], strengths: Sequence[float], *, strict: bool) -> None:
    """Warn of strengths that each file wasn't certified for. Raises `EditError` of them with `strict` (beyond the range,
    unresolved, not calibrated); a file without a range is said to have none.
    """
    from ..errors import EditError
    from ..ranges import in_words, standing

    for path, steering, _ in files:
        told = steering.meta.range
        found = [standing(told, s) for s in dict.fromkeys(strengths)]
        words = list(dict.fromkeys(f.words for f in found if f.words and (f.state != "weak" or not strict)))
        if strict and any(not f.allowed for f in found):
            refused = "; ".join(dict.fromkeys(f.words for f in found if not f.allowed))
            raise EditError(
                f"{path}: {refused}, and --strict keeps to strengths that are certified. Its range: {in_words(told)}."
                " Calibrate it (`steerlab calibrate`), take a strength within, or leave --strict out."
            )
        for line in words:
            say(f"{'note' if told is None else 'warning'}: {path}: {line}")
    if len(files) > 1 and any(strengths):
        say("note: what these steerings cost together isn't calibrated; `steerlab compose` measures it")


def refuse_overwriting(path: Path, force: bool) -> None:
    """Nothing is lost without a word. Raises `ArtefactError`."""
    if path.exists() and not force:
        raise ArtefactError(f"{path} exists; choose another name, or pass --force to replace it.")
