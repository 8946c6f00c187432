"""What files say is shown on a terminal and never done: no colour, cursor or direction of theirs reaches it."""

from __future__ import annotations

import io
import json
import traceback
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch

import steerlab as sl
from steerlab import cli, progress
from steerlab.cli.common import dump, echo, say
from steerlab.escapes import UNSEEN, console, visible, visible_json

EVIL = "a\x1b[2J\x1b]0;t\x07b\x9bmc\u202edcba\u2066x\u2028y\x7f\r\x08\ud800z\ufeff\U000e0041"


def clean(text: str) -> None:
    """Nothing in it that a terminal would do; colours of our own are none in a captured stream."""
    assert not UNSEEN.search(text), UNSEEN.search(text)


def test_controls_and_marks_are_written_out_and_all_else_stays():
    assert visible("a\x1b[2Jb\u202ec\ud800\U000e0041") == "a\\x1b[2Jb\\u202ec\\ud800\\U000e0041"
    fine = "line\n\tTab, ümläut, 漢字, עברית, 👩‍🚀, e\u0301 − “x”"
    assert visible(fine) == fine
    clean(visible(EVIL))
    assert visible(visible(EVIL)) == visible(EVIL)


def test_json_reads_back_as_the_same_thing():
    thing = {EVIL: [EVIL, 1.5, None, {"ü": "漢\\x1b"}]}
    text = visible_json(thing)
    clean(text)
    assert json.loads(text) == thing
    assert "漢" in text


def test_every_way_to_print_escapes(capsys):
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    out = console()
    table = Table(EVIL, title=EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL, style="bold"))
    for thing in (EVIL, Text(EVIL), Panel(EVIL, title=EVIL), table):
        out.print(thing)
    say(EVIL)
    echo(EVIL)
    dump({EVIL: EVIL})
    with progress.shown(), progress.task(EVIL + "[/none]", 3) as bar:
        bar.tell(EVIL)
    told = capsys.readouterr()
    clean(told.out.replace("\x1b[?25l", "").replace("\x1b[?25h", ""))
    clean(told.err.replace("\x1b[?25l", "").replace("\x1b[?25h", ""))
    assert "\\x1b[2J" in told.out and "\\u202e" in told.out and "\\x1b[2J" in told.err


def test_colours_of_our_own_stay_on_a_terminal():
    from rich.text import Text

    out = console()
    out.file, out._force_terminal, out._color_system = io.StringIO(), True, console()._color_system
    out.print(Text("warn\x1b[31m", style="bold"))
    assert "warn\\x1b[31m" in out.file.getvalue()


@pytest.fixture
def evil(tmp_path):
    """A steering whose every text is hostile, in a file of a hostile name."""
    meta = sl.Meta(
        model=EVIL, revision=EVIL, template=EVIL, method={"name": EVIL, EVIL: EVIL}, data={"concept": EVIL, "source": EVIL},
        versions={EVIL: EVIL}, figures={EVIL: EVIL, "divergence": EVIL, "list": [EVIL]},
    )  # fmt: skip
    name = visible(EVIL).replace("/", "")[:20]
    steering = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(8))),), sl.steering.Prompt(EVIL), meta)
    path = tmp_path / f"{name}\x1b[31m\u202e.safetensors"
    steering.save(path)
    return path


def ran(*words: str) -> int:
    try:
        cli.main(list(words))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_show_shows(evil, capsys):
    assert ran("show", str(evil)) == 0
    told = capsys.readouterr()
    clean(told.out + told.err)
    assert "\\x1b[2J" in told.out and "\\u202e" in told.out
    assert ran("show", str(evil), "--json") == 0
    text = capsys.readouterr().out
    clean(text)
    assert json.loads(text)["meta"]["model"] == EVIL


def test_errors_that_quote_a_file_or_its_name_escape(evil, tmp_path, capsys):
    odd = tmp_path / "odd\x1b[2J\u202e.jsonl"
    odd.write_text('{"prompt": "\\u001b[2J' + "\u202e" + '", "nothing": 1}\n', encoding="utf-8")
    sweep = tmp_path / "s\x1b[2J.yaml"
    sweep.write_text('"me\\e[2Jthods": 3\n')
    for words in (
        ("generate", "hello", "--steering", str(evil)),
        ("generate", "hello", "--steering", str(evil.with_name("no\x1b[2J.safetensors"))),
        ("show", str(evil.with_name("no\x1b[2J.safetensors"))),
        ("data", "check", str(odd)),
        ("sweep", str(sweep)),
        ("export", str(evil), "--to", "no\x1b[2J", "--out", str(tmp_path / "x")),
    ):
        ran(*words)
        told = capsys.readouterr()
        clean(told.out + told.err)
        assert told.out + told.err


def test_errors_escape_wherever_they_are_printed(evil):
    with pytest.raises(sl.SteerlabError) as found:
        sl.Steering.load(evil.with_name("no\x1b[2J.safetensors"))
    clean("".join(traceback.format_exception_only(found.value)))
    assert "\\x1b[2J" in str(found.value)


def test_warnings_escape(capsys):
    usual = warnings.showwarning
    try:
        cli._show_warnings_plainly()
        warnings.showwarning(EVIL, replace_module(), "file", 1)
    finally:
        warnings.showwarning = usual
    clean(capsys.readouterr().err)


def replace_module() -> type[Warning]:
    class Ours(UserWarning):
        pass

    Ours.__module__ = "steerlab.x"
    return Ours


def test_a_sweeps_status_escapes(monkeypatch, tmp_path, capsys):
    from steerlab.sweep import status

    monkeypatch.setattr(status, "status", lambda folder: Told())
    assert ran("sweep", "status", str(tmp_path)) == 0
    told = capsys.readouterr()
    clean(told.out + told.err)
    assert told.out.count("\\x1b[2J") >= 3


class Told(NamedTuple):
    words: str = EVIL
    counts: Mapping[str, dict] = MappingProxyType({EVIL: {}})
    running: tuple = ((EVIL, EVIL, 1.0),)
    failed: tuple = ((EVIL, 2, EVIL),)
