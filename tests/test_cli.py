"""The verbs, as a person would type them, on a tiny model in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import steerlab as sl
from steerlab import cli
from steerlab.testing import planted


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The planted model as a folder that transformers reads."""
    folder = tmp_path_factory.mktemp("model")
    engine = planted.engine()
    engine.model.save_pretrained(folder)
    engine.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from steerlab.data import write

    path = tmp_path_factory.mktemp("data") / "key.jsonl"
    positive, negative = planted.pairs(__import__("torch").Generator().manual_seed(1), 40)

    def told(examples):
        return tuple(
            sl.Example(e.messages, e.answer, family=f"length {len(e.instruction.split()) % 8}") for e in examples
        )

    write(sl.Contrast(told(positive), told(negative), True, "the key"), path)
    return str(path)


def test_fit_show_and_generate(steerlab, model, data, tmp_path):
    out = str(tmp_path / "key.safetensors")
    code, shown, said = steerlab(
        "fit", "cdas", "--data", data, "--model", model, "--out", out, "--site", "1", "--epochs", "3"
    )
    assert code == 0, said
    assert "Clamp: set rank 8" in shown
    assert "resid@1" in shown
    assert "0 is a perfect interchange" in shown
    assert "peak memory" in said
    steering = sl.Steering.load(out)
    assert steering.meta.method["epochs"] == 3

    code, shown, _ = steerlab("show", out, "--json")
    told = json.loads(shown)
    assert told["digest"] == steering.digest
    assert told["interventions"][0]["where"] == "resid@1"

    words = ("generate", out, "--model", model, "--max-new-tokens", "4", "-p", "w5 w6 w7")
    code, shown, _ = steerlab(*words, "-s", "-1", "-s", "0", "-s", "1", "--json")
    replies = {r["strength"]: r["text"] for r in json.loads(shown)["replies"]}
    assert replies[0].startswith("w20")
    assert replies[1].startswith("w10")
    assert replies[-1].startswith("w20")
    code, shown, _ = steerlab(*words, "-s", "0", "-s", "1")
    assert "unsteered" in shown
    assert "strength +1" in shown


def test_lines_from_a_pipe_are_answered_one_by_one(steerlab, model):
    code, shown, _ = steerlab("generate", "--model", model, "--max-new-tokens", "3", typed="w5 w6\n\nw0 w7\n")
    assert code == 0
    assert [line.split()[0] for line in shown.strip().splitlines()] == ["w20", "w10"]


def test_flags_from_yaml_and_the_command_line_wins(steerlab, model, data, tmp_path):
    settings = tmp_path / "fit.yaml"
    settings.write_text(f"data: {data}\nmodel: {model}\nsite: 1\nepochs: 1\nrank: 2\n")
    out = str(tmp_path / "key.safetensors")
    code, _, said = steerlab("fit", "cdas", "--config", str(settings), "--out", out, "--epochs", "2")
    assert code == 0, said
    made = sl.Steering.load(out).meta.method
    assert (made["rank"], made["epochs"], made["site"]) == (2, 2, "1")


def test_every_method_has_flags_of_its_own(steerlab, model, data, tmp_path):
    out = str(tmp_path / "p.safetensors")
    code, _, said = steerlab("fit", "diff-means", "--data", data, "--model", model, "--out", out, "--pooling", "paired")
    assert code == 0, said
    assert sl.Steering.load(out).meta.method["pooling"] == "paired"
    code, shown, said = steerlab("fit", "diff-means", "--data", data, "--out", out, "--rank", "2")
    assert code == 2
    assert "--rank" in said
    code, shown, _ = steerlab("fit", "--help")
    for name in ("cdas", "das", "kl-das", "pdas", "diff-means", "pca", "probe", "ablation", "random", "prompt"):
        assert name in shown


def test_evaluate_on_the_users_own_files(steerlab, model, data, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"w{i} w{i + 1} w{i + 2} w{i + 3} w{i + 4} w{i + 5}" for i in range(30, 40)))
    out = tmp_path / "run"
    code, shown, said = steerlab(
        "evaluate", "--data", data, "--rule", "words:w10,w11,w12", "--model", model, "--text", str(text),
        "--arm", "cdas,site=1", "--arm", "mean=diff_means,site=1", "--seeds", "2", "--prompts", "4", "--capability", "0",
        "--tokens", "4", "--workers", "1", "--out", str(out),
    )  # fmt: skip
    assert code == 0, said
    for arm in ("unsteered", "cdas", "mean", "random", "prompt"):
        assert arm in shown
    page = (out / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    found = json.loads((out / "results.json").read_text())
    row = next(r for r in found["table"] if (r["arm"], r["direction"], r["setting"]) == ("cdas", "elicit", "unit"))
    assert row["effect"]["mean"] > 0.5
    assert row["lost"]["mean"] is None, "no capability items were given: missing, not zero"
    code, shown, _ = steerlab(
        "evaluate", str(_saved(model, data, tmp_path)), "--data", data, "--rule", "words:w10,w11,w12", "--model", model,
        "--seeds", "1", "--prompts", "4", "--capability", "0", "--tokens", "4", "--workers", "1",
        "--out", str(tmp_path / "two"), "--json",
    )  # fmt: skip
    assert code == 0
    assert {r["arm"] for r in json.loads(shown)} == {"unsteered", "saved", "random", "prompt"}


def _saved(model, data, folder):
    path = folder / "saved.safetensors"
    if not path.exists():
        from steerlab.methods.base import method

        engine = sl.load(model)
        method("diff_means", {"site": "1"}).fit(engine, sl.Contrast.read(data)).save(path)
    return path


def test_data_verbs(steerlab, model, data, tmp_path):
    code, shown, _ = steerlab("data", "check", data, "--json")
    assert json.loads(shown)["pairs"] == 40
    code, shown, _ = steerlab("data", "layouts", "--json")
    assert {"jsonl", "csv", "parquet", "cdas", "axbench", "persona", "text"} <= {
        row["name"] for row in json.loads(shown)
    }
    out = tmp_path / "copy.jsonl"
    code, _, said = steerlab("data", "convert", data, "--out", str(out))
    assert code == 0
    assert sl.Contrast.read(out).digest() == sl.Contrast.read(data).digest()
    asks = tmp_path / "asks.txt"
    asks.write_text("\n".join(f"w{n} w{n + 1} w{n + 2}" for n in range(30, 50)))
    made = tmp_path / "made.jsonl"
    code, shown, said = steerlab(
        "data", "make", "w0", "--instructions", str(asks), "--rule", "words:w10,w11,w12", "--model", model,
        "--pairs", "6", "--max-new-tokens", "4", "--out", str(made),
    )  # fmt: skip
    assert code == 0, said
    pairs = sl.Contrast.read(made)
    assert len(pairs.positive) == 6
    assert all(e.answer.startswith("w10") for e in pairs.positive)


def test_the_pilots_data_can_be_looked_at(steerlab):
    code, shown, _ = steerlab("pilot", "concepts", "--json")
    assert len(json.loads(shown)) >= 20
    code, shown, _ = steerlab("pilot", "sample", "refused", "-n", "2", "--json")
    assert code == 0
    assert len(json.loads(shown)) == 2


def test_help_needs_neither_torch_nor_transformers():
    check = (
        "import sys\nfrom steerlab import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, env=os.environ.copy())
    assert found.stdout.strip().endswith("[]")
    for verb in ("demo", "fit", "generate", "evaluate", "show", "data", "pilot"):
        assert verb in found.stdout


def test_every_command_takes_a_yaml_file_of_its_flags():
    import typer

    def commands(command, path=()):
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                yield from commands(inner, (*path, name))
        else:
            yield path, {o for p in command.params for o in p.opts}

    found = dict(commands(typer.main.get_command(cli.build(["fit"]))))
    training = commands(typer.main.get_command(cli.build(["generator", "train"])))
    found |= {path: flags for path, flags in training if path[0] == "generator"}  # built only where they are needed
    assert len(found) > 15
    assert [path for path, flags in found.items() if "--config" not in flags] == []


def test_a_fit_that_found_nothing_says_so(steerlab, model, data, tmp_path):
    mixed = tmp_path / "mixed.jsonl"
    head, *rows = [json.loads(line) for line in Path(data).read_text("utf-8").splitlines()]
    plain = [row["negative"] for row in rows]
    both = [{"positive": p, "negative": n} for p, n in zip(plain[:20], plain[20:], strict=True)]
    mixed.write_text("".join(json.dumps(row) + "\n" for row in [head, *both]), encoding="utf-8")
    flags = ("--model", model, "--site", "1", "--epochs", "1")
    code, _, said = steerlab("fit", "cdas", "--data", str(mixed), *flags, "--out", str(tmp_path / "a.safetensors"))
    assert code == 0, said
    assert "it can't be expected to steer" in said
    _, _, said = steerlab("fit", "cdas", "--data", data, *flags, "--out", str(tmp_path / "b.safetensors"))
    assert "expected to steer" not in said


def test_a_dry_run_tells_what_a_fit_takes_and_writes_nothing(steerlab, model, data, tmp_path):
    out = tmp_path / "s.safetensors"
    flags = ("--data", data, "--model", model, "--out", str(out), "--site", "1", "--dry-run")
    code, shown, said = steerlab("fit", "cdas", *flags, "--json")
    assert code == 0, said
    told = json.loads(shown)
    assert told["steps"] == 108  # 36 of 40 pairs (families stay whole), 2 at a time, 6 epochs
    assert told["seconds"] > 0
    assert 0 < told["kept_mib"] <= told["memory_mib"]
    assert "108 steps, about" in steerlab("fit", "cdas", *flags)[1]
    assert not out.exists()
    code, _, said = steerlab("fit", "diff-means", *flags)
    assert code != 0
    assert "just run it" in said


def test_activations_are_kept_on_disk_and_read_by_the_next_fit(steerlab, model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("STEERLAB_CACHE", str(tmp_path / "cache"))
    flags = ("fit", "cdas", "--data", data, "--model", model, "--site", "1", "--epochs", "1", "--cache-gb", "0.1")
    assert steerlab(*flags, "--out", str(tmp_path / "a.safetensors"))[0] == 0
    (folder,) = (tmp_path / "cache" / "activations").iterdir()
    written = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert written
    assert steerlab(*flags, "--out", str(tmp_path / "b.safetensors"))[0] == 0
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == written, "the second fit computed nothing anew"
    one, other = (sl.Steering.load(tmp_path / f"{name}.safetensors") for name in "ab")
    assert one.digest == other.digest


# --- ranges, compositions, sentences ------------------------------------------------------------------------------------------

RULE = "words:w10,w11,w12"
LITTLE = ("--prompts", "4", "--items", "0", "--neutrals", "6", "--texts", "0", "--tokens", "4")
LOOSE = ("--kl", "0.9", "--lost", "0", "--perplexity", "0")


def test_calibrate_writes_a_range_that_generate_keeps_to(steerlab, model, data, tmp_path):
    bare, out = str(tmp_path / "key.safetensors"), str(tmp_path / "key-c.safetensors")
    steerlab("fit", "diff-means", "--data", data, "--model", model, "--out", bare, "--site", "1")
    words = ("calibrate", bare, "--data", data, "--rule", RULE, "--model", model, *LITTLE, *LOOSE)
    code, shown, said = steerlab(*words, "--out", out)
    assert code == 0, said
    assert "elicit" in shown and "suppress" in shown and "scored rows" in said
    told = sl.Steering.load(out).meta.range
    assert told["measured"]["unmeasured"] == [] and told["budget"] == {"lost": None, "kl": 0.9, "perplexity": None}
    code, _, said = steerlab(*words, "--out", out)
    assert code == 2 and "--force" in said

    asked = ("generate", out, "--model", model, "--max-new-tokens", "2", "-p", "w5 w6")
    code, _, said = steerlab(*asked, "-s", "50")
    assert code == 0 and "beyond its calibrated range" in said
    code, _, said = steerlab(*asked, "-s", "50", "--strict")
    assert code == 2 and "--strict" in said
    code, shown, _ = steerlab("show", out)
    assert "elicit" in shown


def test_calibrate_fits_where_dev_favours_it(steerlab, model, data, tmp_path):
    out = str(tmp_path / "key.safetensors")
    code, shown, said = steerlab(
        "calibrate", data, "--rule", RULE, "--model", model, "--arm", "diff_means", "--layers", "0,1", "--out", out,
        *LITTLE, *LOOSE, "--json",
    )  # fmt: skip
    assert code == 0, said
    told = json.loads(shown)
    assert told["measured"]["search"]["fits"] == 2 and told["measured"]["search"]["won"]["site"] in ("0", "1")
    code, _, said = steerlab("calibrate", data, "--rule", RULE, "--model", model)
    assert code == 2 and "--out" in said


def test_compose_proposes_a_file_and_a_picture(steerlab, model, data, tmp_path):
    files = [str(tmp_path / f"{site}.safetensors") for site in (0, 1)]
    for site, out in enumerate(files):
        steerlab("fit", "diff-means", "--data", data, "--model", model, "--out", out, "--site", str(site))
    from steerlab.data import write

    other = str(tmp_path / "other.jsonl")
    write(sl.Contrast.read(data).swapped(), other)
    words = (
        "compose",
        *files,
        "--model",
        model,
        "--data",
        data,
        "--data",
        other,
        "--rule",
        RULE,
        "--rule",
        "words:w20,w21,w22",
    )
    picture, out = tmp_path / "both.svg", tmp_path / "both.safetensors"
    code, shown, said = steerlab(
        *words,
        "--prompts",
        "4",
        "--test",
        "4",
        "--items",
        "0",
        "--tokens",
        "4",
        "--picture",
        str(picture),
        "--out",
        str(out),
    )
    assert code == 0, said
    assert "proposed" in shown and picture.is_file() and sl.Steering.load(out).interventions
    code, _, said = steerlab("compose", *files, "--model", model, "--data", data)
    assert code == 2 and "one for each" in said


def test_make_asks_for_a_yes_and_then_makes(steerlab, model, tmp_path):
    import torch

    _, plain = planted.pairs(torch.Generator().manual_seed(3), 40)
    lines = tmp_path / "instructions.jsonl"
    lines.write_text(
        "".join(
            json.dumps({**e.without_answer().to_json(), "family": f"f{k % 13}"}) + "\n" for k, e in enumerate(plain)
        )
    )
    words = (
        "make", "w0 w1", "--out", str(tmp_path / "made"), "--model", model, "--arm", "diff_means,site=1", "--rule", RULE,
        "--instructions", str(lines), "--pairs", "24", "--prompts", "4", "--test", "4", "--capability", "0", "--tokens", "4",
        "--gate", "no", *LOOSE,
    )  # fmt: skip
    code, shown, said = steerlab(*words, "--dry-run")
    assert code == 0 and "MiB of disk" in shown, said
    code, _, said = steerlab(*words)
    assert code == 2 and "--yes" in said and "w10" in said
    code, shown, said = steerlab(*words, "--yes")
    assert code == 0, said
    assert (tmp_path / "made" / "card.html").is_file() and sl.Steering.load(
        tmp_path / "made" / "steering.safetensors"
    ).meta.range
