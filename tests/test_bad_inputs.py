"""Bad inputs: each gets a message that says what was given, what was expected, the nearest legal thing and what to do,
and leaves nothing half-written. The readers' own bad inputs are in test_data_*.py."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import steerlab as sl
from steerlab import artefact, config, files, plugins
from steerlab.engines.base import Sampling
from steerlab.engines.hf import HFEngine
from steerlab.errors import (
    ArtefactError,
    ConfigError,
    DataError,
    EditError,
    SiteError,
    SteerlabError,
    UnsupportedError,
)
from steerlab.judges.spec import parse_rule
from steerlab.methods.base import method
from steerlab.testing import planted, tiny

ASK = sl.Example.ask("w1 w2", "w3")


@pytest.fixture
def engine():
    return tiny.engine("llama")


@pytest.fixture
def steering():
    return sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(32))),))


def told(error: type[SteerlabError], *words: str):
    """The error's message has all these words, in this order."""
    import re

    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(w) for w in words))


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- data -----------------------------------------------------------------------------------------------------------------


def test_a_contrast_of_one_class():
    with told(DataError, "no negative examples", "1 positive", "both classes"):
        sl.Contrast((ASK,), ())


def test_a_paired_contrast_of_unequal_sides():
    with told(DataError, "paired", "1 positive and 2 negative", "paired=False"):
        sl.Contrast((ASK,), (ASK, ASK), paired=True)


def test_pairs_asked_of_unpaired_data():
    bare = sl.Contrast((ASK,) * 6, (ASK,) * 6)
    with told(DataError, "not paired", "diff_means"):
        method("cdas").fit(planted.engine(), bare)


def test_a_message_of_an_unknown_role():
    with told(DataError, "'robot'", "system, user, assistant"):
        sl.Message("robot", "hello")


def test_a_message_that_is_no_text():
    with told(DataError, "int", "text"):
        sl.Message("user", 3)


def test_an_example_without_messages():
    with told(DataError, "no messages"):
        sl.Example(())


def test_an_example_that_ends_with_the_assistant():
    with told(DataError, "end with the assistant's turn", "`answer`"):
        sl.Example((sl.Message("user", "a"), sl.Message("assistant", "b")))


def test_an_example_with_a_nan_score():
    with told(DataError, "nan", "finite"):
        sl.Example((sl.Message("user", "a"),), score=float("nan"))


def test_an_example_with_an_unknown_field():
    with told(DataError, "'anwser'", "Did you mean 'answer'?"):
        sl.Example.from_json({"messages": "a", "anwser": "b"})


def test_splitting_by_impossible_fractions():
    many = sl.Contrast((ASK,) * 4, (ASK,) * 4)
    with told(DataError, "(0.8, 0.5)", "sum to at most 1"):
        many.split(0.8, 0.5)


def test_an_empty_prompt(engine):
    plain = tiny.engine("llama", template="plain")
    with told(DataError, "no tokens", "text"):
        plain.generate([""])
    assert engine.generate([]) == []


def test_a_prompt_longer_than_the_context(engine):
    with told(DataError, "prompt 1", "204 tokens", "128", "Shorten"):
        engine.generate(["w1", "w1 " * 200])


def test_an_answer_longer_than_the_context(engine):
    with told(DataError, "example 0", "128", "shorten"):
        engine.logprobs([sl.Example.ask("w1", "w2 " * 300)])


def test_a_tokenizer_without_a_chat_template():
    with told(DataError, "no chat template", "template='plain'", "--template plain"):
        HFEngine(tiny.model("llama"), tiny.tokenizer(chat=False))


def test_a_conversation_that_the_template_refuses():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{{ raise_exception('no system role here') }}"
    engine = HFEngine(tiny.model("llama"), tokenizer)
    with told(DataError, "chat template can't write", "system, user", "no system role here"):
        engine.generate([sl.Example.ask("a", system="b")])


def test_activations_that_are_nan(engine):
    model = copy.deepcopy(tiny.model("llama"))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with told(DataError, "32 of 32", "resid@1", "NaN or infinite", "bfloat16"):
        HFEngine(model, tiny.tokenizer()).capture([ASK], [sl.Site(1)])


def test_capturing_nothing(engine):
    with told(DataError, "no examples"):
        engine.capture([], [sl.Site(1)])


def test_responses_pooled_where_there_are_none():
    bare = sl.Contrast((sl.Example.ask("w0"),) * 4, (sl.Example.ask("w1"),) * 4)
    with told(DataError, "pooling='response'", "8 of 8", "pooling='last'"):
        method("diff_means", {"pooling": "response"}).fit(planted.engine(), bare)


def test_a_probe_of_too_few_rows():
    few = planted.contrast(3)
    with told(DataError, "at least 4 rows", "3 and 3"):
        method("probe").fit(planted.engine(), few)


def test_aligned_positions_that_do_not_align():
    with told(DataError, "aligned", "f3+l2"):
        method("cdas", {"source": "aligned", "poles": "factors", "positions": "prompt"}).fit(
            planted.engine(), planted.contrast()
        )


def test_aligned_sources_and_trained_poles_exclude_each_other():
    with told(ConfigError, "aligned", "poles='factors'"):
        method("cdas", {"source": "aligned", "poles": "trained"})


# --- sites, edits, strengths ----------------------------------------------------------------------------------------------


def test_a_layer_out_of_range(engine):
    with told(SiteError, "block 7", "3 blocks, 0 to 2", "resid@2"):
        engine.width(sl.Site(7))


def test_a_part_that_does_not_exist():
    with told(SiteError, "'residual'", "'resid'"):
        sl.Site(1, "residual")


def test_a_part_that_this_architecture_lacks():
    with told(SiteError, "norm_attn@1", "reads the stream itself", "norm"):
        tiny.engine("olmo2").width(sl.Site(1, "norm_attn"))


def test_a_negative_layer_and_a_missing_one():
    with told(SiteError, "-1", "count from 0"):
        sl.Site(-1)
    with told(SiteError, "'resid'", "needs a layer"):
        sl.Site()
    with told(SiteError, "'final'", "no layer"):
        sl.Site(3, "final")


def test_a_head_that_does_not_exist(engine):
    with told(SiteError, "number 4", "4, 0 to 3"):
        engine.width(sl.Site(1, "heads", 4))


def test_a_site_that_cannot_be_read():
    with told(SiteError, "'12@resid@x'", "resid@12"):
        sl.Site.parse("12@resid@x")


def test_positions_that_cannot_be_read():
    with told(DataError, "'promt'", "'prompt'"):
        sl.Positions.parse("promt")
    with told(DataError, "generated", "(-1, None, 'start')"):
        sl.Positions(generated=((-1, None),))
    with told(DataError, "(3, 3)", "start < stop"):
        sl.Positions(prompt=((3, 3),))


def test_a_strength_outside_the_domain(engine):
    ablate = sl.Steering((sl.Intervention(sl.Site(1), sl.Ablate(torch.eye(32)[:1])),))
    with told(EditError, "Ablate", "[0, 1]", "-1"):
        ablate.scaled(-1)
    with told(EditError, "nan", "finite"):
        ablate.scaled(float("nan"))


def test_a_prompt_arm_at_half_strength():
    with told(EditError, "0.5", "(-1, 0, 1)"):
        sl.Steering(prompt=sl.Prompt("be formal", "be casual")).scaled(0.5)


def test_a_held_gate_at_positions_that_have_passed():
    gate = sl.Gate(sl.Site(0), torch.ones(32), 0.0, held=True)
    with told(EditError, "held gate", "DECODING"):
        sl.Intervention(sl.Site(1), sl.Shift(torch.ones(32)), sl.ALL, gate)


def test_a_gate_that_reads_later_than_it_acts():
    gate = sl.Gate(sl.Site(2), torch.ones(32), 0.0)
    with told(EditError, "resid@2", "only later"):
        sl.Intervention(sl.Site(1), sl.Shift(torch.ones(32)), control=gate)


def test_a_steering_of_another_width(engine):
    wide = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(48))),))
    with told(UnsupportedError, "width 48", "32"):
        engine.generate(["w1"], wide)


def test_a_steering_of_another_model(engine):
    other = method("diff_means").fit(planted.engine(), planted.contrast())
    with told(UnsupportedError, "fitted on planted", "refit", "adopted"):
        engine.generate(["w1"], other)


def test_a_steering_fitted_under_another_template(engine, steering):
    plain = steering.adopted(tiny.engine("llama", template="plain"))
    with told(UnsupportedError, "plain text", "template"):
        engine.generate(["w1"], plain)


def test_steerings_of_two_models_added(steering):
    a, b = steering.adopted(tiny.engine("llama")), steering.adopted(tiny.engine("gpt2"))
    with told(ArtefactError, "different models"):
        a + b
    with told(ArtefactError, "both", "prompt"):
        sl.Steering(prompt=sl.Prompt("a")) + sl.Steering(prompt=sl.Prompt("b"))


def test_more_steerings_than_rows(engine, steering):
    with told(ConfigError, "2 steerings for 1 rows"):
        engine.generate(["w1"], [steering, None])


# --- files ------------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path, steering):
    steering.save(tmp_path / "formal.safetensors")
    with told(ArtefactError, "there is no file", "formal.safetensors"):
        sl.Steering.load(tmp_path / "fromal.safetensors")


def test_a_truncated_file(tmp_path, steering):
    path = tmp_path / "cut.safetensors"
    steering.save(path)
    whole = path.read_bytes()
    for size in (0, 4, 40, len(whole) - 7):
        path.write_bytes(whole[:size])
        with told(ArtefactError, f"({size} bytes)", "not a readable safetensors file", "cut short"):
            sl.Steering.load(path)


def test_a_pickle_is_never_opened(tmp_path):
    path = tmp_path / "evil.safetensors"
    torch.save({"v": torch.ones(3)}, path)
    with told(ArtefactError, "not a readable safetensors file"):
        sl.Steering.load(path)


def test_a_safetensors_file_of_something_else(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    with told(ArtefactError, "without a steering in its header", "weight"):
        sl.Steering.load(path)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{not json", ["not valid JSON"]),
        ("[1, 2]", ["list", "object"]),
        ('{"format": 99, "interventions": [], "prompt": null, "meta": {}}', ["format 99", "Upgrade"]),
        ('{"format": "x"}', ["'x'", "from 1 to"]),
        ('{"format": 1, "interventions": 3, "prompt": null, "meta": {}}', ["valid steering"]),
        ('{"format": 1, "interventions": [], "prompt": null}', ["valid steering", "meta"]),
        ('{"format": 1, "interventions": [], "prompt": null, "meta": {"modle": 1}}', ["valid steering", "modle"]),
        ('{"format": 1, "interventions": [], "prompt": null, "meta": {}, "run": "rm"}', ["unknown entries", "run"]),
    ],
)
def test_a_hostile_header(tmp_path, document, words):
    path = tmp_path / "x.safetensors"
    save_file({}, path, metadata={artefact.KEY: document})
    with told(ArtefactError, *words):
        sl.Steering.load(path)


def test_a_file_with_an_unknown_kind_field_or_tensor(tmp_path, steering):
    path = tmp_path / "x.safetensors"
    steering.save(path)
    document, tensors = artefact.read(path)

    def changed(**edit):
        altered = copy.deepcopy(document)
        altered["interventions"][0]["edit"] = {**altered["interventions"][0]["edit"], **edit}
        return altered

    for altered, extra, words in (
        (changed(kind="Shfit"), {}, ["'Shfit'", "'Shift'"]),
        (changed(vv=1), {}, ["'vv'", "'v'"]),
        (document, {"stowaway": torch.ones(2)}, ["'stowaway'", "doesn't mention"]),
        (document, {"0.edit.v": torch.full((32,), float("inf"))}, ["Shift", "NaN or infinite"]),
        (document, {"0.edit.v": torch.ones(32, dtype=torch.float16)}, ["float16", "float32"]),
    ):
        artefact.write(path, altered, {**tensors, **extra})
        with told(ArtefactError, *words):
            sl.Steering.load(path)
    artefact.write(path, document, {})
    with told(ArtefactError, "names the tensor '0.edit.v'", "doesn't hold"):
        sl.Steering.load(path)


def test_a_full_disk_while_saving(tmp_path, steering, monkeypatch):
    path = tmp_path / "kept.safetensors"
    steering.save(path)
    before = path.read_bytes()

    def full(*_args, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with told(ArtefactError, "no space left", "nothing was changed", "Free some space"):
        steering.scaled(2).save(path)
    assert path.read_bytes() == before
    assert left_in(tmp_path) == ["kept.safetensors"]


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/bin/mount").exists(), reason="mounts a small disk, as root")
def test_a_disk_that_is_really_full(tmp_path, steering):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        big = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(4096))),))
        with told(ArtefactError, "no space left", "nothing was changed"):
            big.save(disk / "x.safetensors")
        assert left_in(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_written(tmp_path, steering):
    (tmp_path / "file").write_text("in the way")
    with told(ArtefactError, "can't be written", "Nothing was changed"):
        steering.save(tmp_path / "file" / "x.safetensors")


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "before")
    with pytest.raises(KeyboardInterrupt), files.whole(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert left_in(tmp_path) == ["a.txt"]


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


def steerlab(*words: str, cwd: Path, **settings) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "steerlab", *words],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, **settings,
    )  # fmt: skip


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


# --- calls that can't be steered exactly ------------------------------------------------------------------------------------


def ids_and_mask(engine, *texts):
    rows = [engine.renderer.prompt(sl.Example.ask(t).messages).ids for t in texts]
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    return ids, torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])


def test_a_prompt_where_none_can_be_put_in(engine):
    asked = sl.Steering((), sl.Prompt("w1 w2"))
    with told(UnsupportedError, "has a prompt", "your own calls"), engine.steer(asked):
        pass
    with told(UnsupportedError, "has a prompt", "no conversation"):
        engine.text_logprobs(["w1 w2 w3"], asked)
    with engine.steer(asked.scaled(0)):
        pass


def test_decoding_without_a_cache(engine, steering):
    ids, mask = ids_and_mask(engine, "w1 w2")
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with engine.steer(steering), told(UnsupportedError, "without a cache", "leave use_cache on"):
        engine.model.generate(ids, use_cache=False, **settings)
    with engine.steer(steering):
        engine.model(ids[:, :-1], use_cache=False)
        engine.model(ids[:, :-2], use_cache=False)


def test_a_prefill_in_chunks_of_the_callers_own(engine, steering):
    ids, mask = ids_and_mask(engine, "w1 w2 w3 w4")
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with engine.steer(steering), told(UnsupportedError, "tokens after the first one", "no prefill_chunk_size"):
        engine.model.generate(ids, prefill_chunk_size=3, **settings)


def test_what_was_compiled_before_is_steered_too(engine, steering):
    ids, _ = ids_and_mask(engine, "w1 w2")
    compiled = torch.compile(engine.model.__call__, backend="eager")  # as transformers' generate does on accelerators
    with torch.no_grad():
        plain = compiled(ids).logits
        with engine.steer(steering):
            wanted, found = engine.model(ids).logits, compiled(ids).logits
        after = compiled(ids).logits
    assert torch.equal(found, wanted)
    assert not torch.allclose(found, plain)
    assert torch.allclose(after, plain, atol=1e-6)


def test_a_mask_is_heeded_wherever_it_is_given(engine, steering):
    ids, mask = ids_and_mask(engine, "w1", "w1 w2 w3 w4")
    late = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(32)), sl.LAST_PROMPT),))
    with torch.no_grad(), engine.steer(late):
        named = engine.model(input_ids=ids, attention_mask=mask).logits
        placed = engine.model(ids, mask).logits
    assert torch.equal(named, placed)


def test_scores_that_are_nan(steering):
    model = copy.deepcopy(tiny.model("llama"))
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with told(DataError, "NaN or infinite", "smaller strength"):
        HFEngine(model, tiny.tokenizer()).generate(["w1"], steering)


def test_a_reply_that_begins_with_its_stop_string_is_empty(engine):
    first = engine.generate(["w1 w2"], None, Sampling(4))[0].text.split()[0]
    stopped = engine.generate(["w1 w2"], None, Sampling(4, stop=(first,)))[0]
    assert (stopped.text, stopped.finish) == ("", "stop")
    assert "".join(p.text for p in engine.stream(["w1 w2"], None, Sampling(4, stop=(first,)))) == ""


def test_an_example_without_an_answer_has_no_logprobs(engine):
    found = engine.logprobs([sl.Example.ask("w1"), ASK])
    assert len(found[0]) == 0
    assert len(found[1]) > 0


# --- files that hold what can't be -------------------------------------------------------------------------------------------


def test_one_direction_at_many_sites_is_saved(tmp_path):
    v = torch.ones(8)
    one = sl.Steering(tuple(sl.Intervention(sl.Site(n), sl.Shift(v)) for n in range(3)))
    both = one + one
    both.save(tmp_path / "x.safetensors")
    assert sl.Steering.load(tmp_path / "x.safetensors").digest == both.digest


def test_a_name_that_utf8_cannot_hold_is_saved(tmp_path):
    odd = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(8))),), meta=sl.Meta(data={"source": "a\udcff"}))
    odd.save(tmp_path / "x.safetensors")
    assert sl.Steering.load(tmp_path / "x.safetensors").meta == odd.meta


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (("interventions", 0, "control", "value"), 10**400),
        (("interventions", 0, "site"), "resid@" + "9" * 5000),
        (("interventions", 0, "positions", "prompt"), [[None]]),
        (("prompt",), {"positive": 3}),
        (("prompt",), {"positive": "a", "strength": "x"}),
        (("meta", "fingerprint"), "abc"),
        (("interventions", 0, "edit"), "nested"),
    ],
)
def test_a_header_of_impossible_values(tmp_path, steering, entry, value):
    document, tensors = steering._document()
    document = json.loads(json.dumps(document))
    at = document
    for key in entry[:-1]:
        at = at[key]
    if value == "nested":
        for _ in range(900):
            at["edit"] = {"kind": "OneSided", "inner": at["edit"]}
    else:
        at[entry[-1]] = value
    artefact.write(tmp_path / "x.safetensors", document, tensors)
    with pytest.raises(ArtefactError, match=r"x\.safetensors"):
        sl.Steering.load(tmp_path / "x.safetensors")


def test_a_header_of_thousands_of_digits(tmp_path):
    metadata = {artefact.KEY: '{"format": ' + "1" * 5000 + "}"}
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata=metadata)
    with told(ArtefactError, "not valid JSON"):
        sl.Steering.load(tmp_path / "x.safetensors")


def test_steerings_of_different_templates(steering):
    from dataclasses import replace

    one, other = (replace(steering, meta=sl.Meta(template=t)) for t in ("a" * 64, "plain"))
    with told(ArtefactError, "different chat templates", "plain"):
        one + other


def test_a_clamp_to_serve_one_sided_where_there_is_none(steering):
    with told(EditError, "no clamp", "Shift"):
        steering.one_sided()
