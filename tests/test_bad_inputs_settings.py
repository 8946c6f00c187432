"""Settings, names and command lines with mistakes: the nearest legal thing is named, and nothing is half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import children
import steerlab as sl
from mistakes import ASK, left_in, told
from steerlab import config, plugins
from steerlab.engines.base import Sampling
from steerlab.engines.hf import HFEngine
from steerlab.errors import ArtefactError, ConfigError, DataError
from steerlab.judges.spec import parse_rule
from steerlab.methods.base import method
from steerlab.testing import planted, tiny

# --- settings and names -----------------------------------------------------------------------------------------------------


def test_an_unknown_method_and_an_unknown_setting():
    with told(ConfigError, "'cadas'", "Did you mean 'cdas'?"):
        method("cadas")
    with told(ConfigError, "no setting 'rnak'", "Did you mean 'rank'?"):
        method("cdas", {"rnak": 2})
    assert plugins.load("diff-means") is plugins.load("diff_means")


def test_settings_of_the_wrong_type_or_outside_their_domain():
    with told(ConfigError, "CDAS.rank", "'two'", "integer"):
        method("cdas", {"rank": "two"})
    with told(ConfigError, "CDAS.source", "'middle'", "'last' or 'aligned'"):
        method("cdas", {"source": "middle"})
    with told(ConfigError, "rank=0", "from 1"):
        method("cdas", {"rank": 0})
    with told(ConfigError, "held_out", "1.5", "[0, 1)"):
        method("cdas", {"held_out": 1.5})


def test_a_rank_as_wide_as_the_site():
    with told(ConfigError, "rank is 48", "48 wide"):
        method("cdas", {"rank": 48}).fit(planted.engine(), planted.contrast())


def test_a_start_that_does_not_fit(tmp_path):
    method("diff_means", {"site": "1"}).fit(planted.engine(), planted.contrast()).save(tmp_path / "s.safetensors")
    with told(ConfigError, "no direction at resid@0", "resid@1", "start='touched'"):
        method("cdas", {"site": "0", "start": str(tmp_path / "s.safetensors")}).fit(
            planted.engine(), planted.contrast()
        )


def test_a_yaml_file_with_mistakes(tmp_path):
    path = tmp_path / "fit.yaml"
    path.write_text("rank: [1\nsite: 3")
    with told(ConfigError, "fit.yaml, line 2", "not valid YAML"):
        config.read_yaml(path)
    path.write_text("- a\n- b")
    with told(ConfigError, "list", "key: value"):
        config.read_yaml(path)
    path.write_bytes(b"name: caf\xe9")
    with told(ConfigError, "not UTF-8", "byte"):
        config.read_yaml(path)
    with told(ConfigError, "there is no file", "fit.yaml"):
        config.read_yaml(tmp_path / "fti.yaml")


def test_sampling_settings_outside_their_domain(engine):
    with told(ConfigError, "max_new_tokens is 0"):
        Sampling(0)
    with told(ConfigError, "temperature is -1"):
        Sampling(temperature=-1)
    with told(ConfigError, "top_p is 0"):
        Sampling(top_p=0)
    with told(ConfigError, "stop string is empty"):
        Sampling(stop=("",))
    with told(ConfigError, "2 seeds for 1 rows"):
        engine.generate(["w1"], None, Sampling(seed=(1, 2)))


def test_an_engine_with_impossible_settings():
    with told(ConfigError, "'middle'", "'left' or 'right'"):
        tiny.engine("llama", padding="middle")
    with told(ConfigError, "batch_size is 0"):
        tiny.engine("llama", batch_size=0)
    with told(ConfigError, "'jinja'", "'chat' or 'plain'"):
        tiny.engine("llama", template="jinja")


def test_a_model_that_cannot_be_loaded(tmp_path):
    with told(ArtefactError, str(tmp_path), "can't be loaded", "'pilot'"):
        HFEngine.load(str(tmp_path))


def test_a_rule_that_cannot_be_read(tmp_path):
    with told(ConfigError, "'word:a'", "'words'"):
        parse_rule("word:a")
    with told(ConfigError, "regular expression"):
        parse_rule("regex:(")
    with told(ConfigError, "no word"):
        parse_rule("words:,")
    with told(ConfigError, "can't be read"):
        parse_rule(f"words:@{tmp_path / 'none.txt'}")


def test_a_prompt_arm_with_nothing_to_ask_for():
    unnamed = sl.Contrast((ASK,), (ASK,))
    with told(DataError, "no concept", "positive=..."):
        method("prompt").fit(planted.engine(), unnamed)


# --- the command line ---------------------------------------------------------------------------------------------------------


def steerlab(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return children.run(["-m", "steerlab", *words], cwd=cwd, env=environment, timeout=120)


def test_mistakes_on_the_command_line_are_a_sentence_and_exit_code_2(tmp_path):
    (tmp_path / "fit.yaml").write_text("rnak: 2")
    for words, expected in (
        (["fit", "cadas", "--data", "x", "--out", "y"], "Did you mean 'cdas'?"),
        (["fit", "cdas", "--data", "pilot:pirate", "--out", "y", "--config", "fit.yaml"], "Did you mean 'rank'?"),
        (["show", "none.safetensors"], "there is no file none.safetensors"),
        (["data", "check", "nothing.jsonl"], "nothing.jsonl"),
        (["evaluate", "--data", "x.jsonl", "--out", "run"], "--rule"),
    ):
        found = steerlab(*words, cwd=tmp_path)
        assert found.returncode == 2, found.stderr
        assert "Traceback" not in found.stderr
        assert expected in " ".join(found.stderr.split()), found.stderr
    assert left_in(tmp_path) == ["fit.yaml"]


def test_an_existing_steering_is_not_overwritten(tmp_path, steering):
    path = tmp_path / "mine.safetensors"
    steering.save(path)
    before = path.read_bytes()
    found = steerlab("fit", "diff-means", "--data", "pilot:pirate", "--out", "mine.safetensors", cwd=tmp_path)
    assert found.returncode == 2
    assert "--force" in found.stderr
    assert path.read_bytes() == before


def test_ctrl_c_in_training_leaves_nothing_half_written(tmp_path):
    model = tmp_path / "model"
    tiny.model("llama").save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    rows = [
        {"positive": {"messages": f"w0 w{n}", "answer": "w5 w6"}, "negative": {"messages": f"w{n}", "answer": "w7"}}
        for n in range(1, 40)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    words = [
        "fit",
        "cdas",
        "--data",
        "data.jsonl",
        "--model",
        "model",
        "--out",
        "out.safetensors",
        "--epochs",
        "100000",
    ]
    running = subprocess.Popen(
        [sys.executable, "-m", "steerlab", *words],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    time.sleep(12)
    assert running.poll() is None, running.stderr.read()
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    # a shell says 130 to both: Python ends itself by the signal where that came inside an exec, as imports have them
    assert running.returncode in (130, -signal.SIGINT), errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert left_in(tmp_path) == ["data.jsonl", "model"]
