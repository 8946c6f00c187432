"""The command line. Verbs are functions; flags of a method are the fields of its dataclass.

Nothing heavy is imported until a verb runs, so that `steerlab --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from ..errors import SteerlabError
from ..escapes import visible
from ..version import __version__

ABOUT = "Fit, apply, measure and ship interventions inside language models: turn a behaviour up or down, and know what it cost."
INTERRUPTED = 130


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steerlab {__version__}")
        raise typer.Exit


def _steerlab(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Turn a behaviour of a language model up or down, and know what it cost."""


def build(words: Sequence[str]) -> typer.Typer:
    """The command line for these words: the flags of methods need their dataclasses, and are built for `fit` alone."""
    from . import (
        bench,
        calibrate,
        compare,
        compose,
        data,
        demo,
        evaluate,
        export,
        fit,
        gate,
        generate,
        generator,
        harness,
        judge,
        make,
        pilot,
        reproduce,
        serve,
        show,
        suite,
        sweep,
    )

    app = typer.Typer(
        name="steerlab",
        help=ABOUT,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.callback()(_steerlab)
    app.command("demo")(demo.demo)
    if words[:1] == ["fit"]:
        app.add_typer(fit.group(words[1:]), name="fit")
    else:
        app.command("fit", help=fit.HELP)(fit.placeholder)
    app.command("make")(make.make)
    app.command("generate")(generate.generate)
    app.command("evaluate")(evaluate.evaluate)
    app.command("calibrate")(calibrate.calibrate)
    app.command("compose")(compose.compose)
    app.command("compare")(compare.compare)
    if words[:2] == ["sweep", "status"]:
        app.add_typer(sweep.app, name="sweep")
    else:
        app.command("sweep", help=sweep.HELP)(sweep.sweep)
    app.command("suite")(suite.suite)
    app.command("reproduce")(reproduce.reproduce)
    app.command("lm-eval", help=harness.HELP, context_settings=harness.SETTINGS)(harness.lm_eval)
    app.command("gate")(gate.gate)
    app.add_typer(generator.group(words[1:] if words[:1] == ["generator"] else ()), name="generator")
    app.command("serve")(serve.serve)
    app.command("show")(show.show)
    app.command("export")(export.export)
    app.command("import")(export.import_)
    app.command("formats")(export.formats)
    app.command("verify")(export.verify)
    app.command("push")(export.push)
    app.add_typer(data.app, name="data")
    app.add_typer(judge.app, name="judge")
    app.add_typer(bench.app, name="bench")
    app.add_typer(pilot.app, name="pilot")
    return app


def main(words: Sequence[str] | None = None) -> None:
    """The entry point: 0 is well, 1 something was found amiss, 2 a mistake in what was given, 130 interrupted."""
    # before torch is loaded: threads that spin while they wait slow everything down on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = sys.argv[1:] if words is None else list(words)
    _show_warnings_plainly()
    try:
        build(words)(list(words))
    except SteerlabError as problem:
        typer.secho(f"error: {visible(str(problem))}", fg="red", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as end:  # typer turns Ctrl-C into this
        if end.code == INTERRUPTED:
            _interrupted()
        raise


def _show_warnings_plainly() -> None:
    """Our own warnings as a sentence, without the line of code that they come from."""
    import warnings

    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if category.__module__.startswith("steerlab."):
            typer.echo(f"warning: {visible(str(message))}", err=True)
        else:
            usual(message, category, *place)

    warnings.showwarning = show


def _interrupted() -> None:
    typer.secho("interrupted; finished parts are kept, nothing is half-written.", fg="yellow", err=True)
    sys.exit(INTERRUPTED)
