"""CONTRIBUTING.md, held to its word: its examples run as they stand, and whatever it says is found by itself is found."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

import children
import steerlab

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
METHOD, EDIT = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)

# one of each kind that is a file, as short as it goes: folder -> (group, name, source, class)
ONE_OF_EACH = {
    "methods": ("methods", "median_gap", METHOD, "MedianGap"),
    "data.readers": (
        "readers",
        "whispers",
        '''
from steerlab.contrast import Contrast, Example
from steerlab.data.readers.base import Reader


class Whispers(Reader):
    """Lines that are said and whispered."""

    what = "lines, said and whispered"
    expects = "a file that ends in .whispers"

    def recognises(self, found):
        return str(found.path).endswith(".whispers")

    def read(self, found, *, concept=None):
        return Contrast((Example.ask("a", "b"),), (Example.ask("a", "c"),), paired=True, concept=concept)
''',
        "Whispers",
    ),
    "judges": (
        "judges",
        "longish",
        '''
from dataclasses import dataclass

from steerlab.judges.base import Judge, Score


@dataclass(frozen=True)
class LongishJudge(Judge):
    """More than three words."""

    def __call__(self, reply, example):
        return Score(float(len(reply.split()) > 3))
''',
        "LongishJudge",
    ),
    "suites": (
        "suites",
        "counting",
        '''
from dataclasses import dataclass

from steerlab.suites.base import Suite, mean_of


@dataclass(frozen=True)
class Counting(Suite):
    """How many characters a reply has."""

    about = "characters of replies"
    layout = "one prompt a line"

    def read(self, path):
        return [path]

    def rows(self, stage, condition, items):
        return [{"n": 1.0}]

    def metrics(self, items):
        return (mean_of("n", "n", "characters"),)
''',
        "Counting",
    ),
    "exports": (
        "exports",
        "lines",
        '''
from steerlab.exports.base import VectorFormat, Written


class Lines(VectorFormat):
    """A number a line."""

    what = "a number a line"
    suffix = ".lines"

    def write(self, steering, path, engine=None):
        return Written((path,), ())

    def claims(self, path):
        return False

    def read(self, path, hints):
        raise NotImplementedError
''',
        "Lines",
    ),
    "verify": (
        "verify",
        "mirror",
        '''
from steerlab.verify.base import Target


class Mirror(Target):
    """The same again."""

    what = "the same engine"

    def check(self, *given, **more):
        raise NotImplementedError
''',
        "Mirror",
    ),
}  # fmt: skip


def packaged(folder: Path, entries: dict[str, dict[str, tuple[str, str]]]) -> dict[str, str]:
    """A package with a module for each entry of each group (name, source, class), and the environment that has it."""
    info = folder / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    lines: list[str] = []
    for group, modules in entries.items():
        lines.append(f"[steerlab.{group}]")
        for name, (source, called) in modules.items():
            (folder / f"{name}.py").write_text(source)
            lines.append(f"{name} = {name}:{called}")
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return with_path(folder)


def with_path(folder: Path) -> dict[str, str]:
    above = str(Path(steerlab.__file__).parents[1])
    path = f"{folder}{os.pathsep}{above}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def copied(folder: Path, files: dict[str, tuple[str, str]]) -> dict[str, str]:
    """The library with one file more in some of its folders, by links, and the environment in which that is what is imported."""
    source, here = Path(steerlab.__file__).parent, folder / "steerlab"

    def linked(there: Path, at: Path, inside: dict[tuple[str, ...], tuple[str, str]]) -> None:
        at.mkdir(parents=True)
        deeper = {pieces[0] for pieces in inside if pieces}
        for child in there.iterdir():
            if child.name == "__pycache__":  # what is compiled here is not compiled there
                continue
            if child.name in deeper:
                linked(child, at / child.name, {p[1:]: v for p, v in inside.items() if p and p[0] == child.name})
            else:
                (at / child.name).symlink_to(child)
        if () in inside:
            name, text = inside[()]
            (at / f"{name}.py").write_text(text)

    linked(source, here, {tuple(place.split(".")): named for place, named in files.items()})
    return with_path(folder)


def run(environment: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return children.run(["-P", *words], cwd=folder, env=environment)


def laws(environment: dict[str, str], folder: Path, tests: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return run(
        environment, folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--pyargs", tests, *flags
    )


def test_the_example_method_keeps_the_whole_contract(tmp_path):
    environment = packaged(tmp_path / "site", {"methods": {"median_gap": (METHOD, "MedianGap")}})
    found = laws(environment, tmp_path, "steerlab.testing.test_methods", "--steerlab-methods", "median_gap")
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in found.stdout
    broken = METHOD.replace("positive.median(dim=0).values - negative", "negative.median(dim=0).values - negative")
    (tmp_path / "site" / "median_gap.py").write_text(broken.replace("along(gap, positive, negative)", "gap + 1e-3"))
    found = laws(environment, tmp_path, "steerlab.testing.test_methods", "--steerlab-methods", "median_gap")
    assert found.returncode == 1, "a wrong method must fail the contract"


USED = """
import sys, json, torch
import steerlab as sl
from steerlab import edits, plugins
from steerlab.positions import ALL
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
from steerlab.testing import tiny
assert ("Towards" in edits.kinds()) == (sys.argv[1] == "file"), sorted(edits.kinds())
plugins.bring()
engine = tiny.engine("llama")
edit = edits.kinds()["Towards"].random(engine.width(Site(1)), torch.Generator().manual_seed(0))
made = Steering((Intervention(Site(1, "mlp"), edit, ALL),))
made.save("towards.safetensors")
print(made.digest)
"""

READ = """
import torch
from pathlib import Path
import steerlab as sl
from steerlab import exports
from steerlab.contrast import Example
from steerlab.steering import Steering
from steerlab.testing import tiny
engine, read = tiny.engine("llama"), Steering.load("towards.safetensors")
examples = [Example.ask(f"w{k} w5", "w1 w2 w3") for k in range(3)]
plain, steered = engine.logprobs(examples), engine.logprobs(examples, read)
assert max((a - b).abs().max() for a, b in zip(plain, steered)) > 1e-3
written = exports.format_named("baked").write(read, Path("baked"), engine)
from transformers import AutoModelForCausalLM
from steerlab.engines.hf import HFEngine
baked = HFEngine(AutoModelForCausalLM.from_pretrained("baked"), engine.tokenizer)
apart = max((a - b).abs().max() for a, b in zip(steered, baked.logprobs(examples)))
assert apart < 1e-5, apart
from steerlab.cli.show import drawn
drawn(read, Path("towards.safetensors"))
print(read.digest)
"""


@pytest.mark.parametrize("way", ["package", "file"])
def test_the_example_edit_is_saved_read_shown_exported_and_under_the_laws(tmp_path, way):
    if way == "package":
        environment = packaged(tmp_path / "site", {"edits": {"towards": (EDIT, "Towards")}})
    else:
        environment = copied(tmp_path / "site", {"edits": ("towards", EDIT)})
    made = run(environment, tmp_path, "-c", USED, way)
    assert made.returncode == 0, made.stderr
    read = run(environment, tmp_path, "-c", READ)
    assert read.returncode == 0, read.stdout + read.stderr
    assert read.stdout.split()[-1] == made.stdout.split()[-1]  # its digest
    shown = " ".join(read.stdout.split())
    assert "Towards of width" in shown and "share 0.5" in shown and "target of norm" in shown
    only = ("--steerlab-edits", "Towards", "-k", "normal_form_equals or file_format or strength_0 or llama-resid")
    found = laws(environment, tmp_path, "steerlab.testing.test_edits", "steerlab.testing.test_engines", *only)
    assert found.returncode == 0, found.stdout + found.stderr
    assert int(re.search(r"(\d+) passed", found.stdout)[1]) >= 6  # laws of edits, and of an engine that runs it


def test_a_wrong_edit_fails_the_laws(tmp_path):
    wrong = EDIT.replace("None, None, share * self.target", "None, None, -share * self.target")
    environment = packaged(tmp_path / "site", {"edits": {"towards": (wrong, "Towards")}})
    only = ("--steerlab-edits", "Towards", "-k", "normal_form")
    found = laws(environment, tmp_path, "steerlab.testing.test_edits", *only)
    assert found.returncode == 1 and "test_the_normal_form_equals_the_call" in found.stdout


def test_a_kind_of_somebody_elses_takes_no_name_that_is_here(tmp_path):
    environment = packaged(tmp_path / "site", {"edits": {"towards": (EDIT.replace("Towards", "Shift"), "Shift")}})
    code = "from steerlab import edits, plugins; plugins.bring(); print(edits.kinds()['Shift'].__module__)"
    assert run(environment, tmp_path, "-c", code).stdout.strip() == "steerlab.edits.linear"


CONTROL = """
from dataclasses import dataclass
from steerlab.controls import Constant


@dataclass(frozen=True)
class Halved(Constant):
    pass
"""


def test_a_control_of_a_package_is_read_from_a_file(tmp_path):
    environment = packaged(tmp_path / "site", {"controls": {"halved": (CONTROL, "Halved")}})
    made = """
import torch
from halved import Halved
from steerlab.edits import Shift
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
Steering((Intervention(Site(1), Shift(torch.ones(4)), control=Halved(0.5)),)).save("h.safetensors")
"""
    assert run(environment, tmp_path, "-c", made).returncode == 0
    code = "import steerlab as sl; print(sl.Steering.load('h.safetensors').interventions[0].control.kind)"
    found = run(environment, tmp_path, "-c", code)
    assert found.stdout.strip() == "Halved", found.stderr


NAMES = """
import contextlib, io, json, sys
from steerlab import plugins
from steerlab.cli import main
known = {f: [n for n in plugins.names(f) if plugins.load(n, f)] for f in plugins.FOLDERS}
listed = {}
for folder, words in json.loads(sys.argv[1]).items():
    sys.argv = ["steerlab", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    listed[folder] = out.getvalue()
print(json.dumps([known, listed]))
"""
LISTED = {
    "data.readers": ("data", "layouts"), "judges": ("judge", "list"), "suites": ("suite", "list"), "exports": ("formats",),
    "methods": ("fit", "--help"),
}  # fmt: skip


@pytest.mark.parametrize("way", ["package", "file"])
def test_one_more_of_each_is_found_and_listed(tmp_path, way):
    if way == "package":
        environment = packaged(
            tmp_path / "site", {group: {name: (text, called)} for group, name, text, called in ONE_OF_EACH.values()}
        )
    else:
        environment = copied(tmp_path / "site", {f: (name, text) for f, (_, name, text, _) in ONE_OF_EACH.items()})
    found = run({**environment, "COLUMNS": "200"}, tmp_path, "-c", NAMES, json.dumps(LISTED))
    assert found.returncode == 0, found.stderr
    known, listed = json.loads(found.stdout)
    for folder, (_, name, _, _) in ONE_OF_EACH.items():
        assert name in known[folder], folder
        if folder in LISTED:
            assert name.replace("_", "-") in listed[folder].replace("_", "-"), (folder, listed[folder])
