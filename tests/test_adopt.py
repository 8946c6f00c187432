"""A steering of another model: told apart from a copy of the same one, refused with what differs, and taken over when asked."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch

import steerlab as sl
from steerlab.engines.likeness import likeness
from steerlab.testing import tiny

SHIFT = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(32))),))


def resized(engine, by=3):
    """A copy of the model with a vocabulary that is larger."""
    model = deepcopy(engine.model)
    model.resize_token_embeddings(model.config.vocab_size + by, mean_resizing=False)
    return type(engine)(model, engine.tokenizer, name="resized")


def test_a_resized_copy_is_told_from_another_model(engine):
    size = engine.model.config.vocab_size
    like = likeness(engine.fingerprint, resized(engine).fingerprint)
    assert like == ("copy", (f"vocab size {size} there and {size + 3} here",))
    assert likeness(engine.fingerprint, tiny.engine("mistral").fingerprint).kind == "other"
    assert likeness(engine.fingerprint, tiny.engine("llama", dtype="bfloat16").fingerprint) == ("same", ())


def test_packed_weights_are_a_copy_and_the_words_say_which(engine):
    whole = engine.fingerprint
    packed = {**whole, "sketch": {"embed": whole["sketch"]["embed"]}}
    assert likeness(whole, packed) == ("copy", ("weights of the block are packed here and can't be compared",))
    assert likeness(packed, whole).differences == ("weights of the block are packed there and can't be compared",)
    assert likeness(packed, packed) == ("same", ())


@pytest.mark.parametrize(("noise", "kind"), [(0.001, "same"), (0.1, "copy"), (0.5, "other")])
def test_a_rounded_copy_is_near_and_another_model_far(noise, kind, engine):
    whole = engine.fingerprint
    near = {k: [v * (1 + noise) for v in values] for k, values in whole["sketch"].items()}
    like = likeness(whole, {**whole, "sketch": near})
    assert like.kind == kind
    assert (f"differ by {noise:.1%} of their size" in " ".join(like.differences)) == (kind != "same")


def test_a_fingerprint_without_sizes_says_that_they_differ(engine):
    """As files from before have it."""
    old = {k: v for k, v in engine.fingerprint.items() if k != "sizes"}
    assert likeness(old, engine.fingerprint).kind == "same"
    assert likeness(old, resized(engine).fingerprint) == ("other", ("its sizes differ",))


def test_the_refusal_says_what_differs_and_how_to_take_it_over(engine):
    fitted, other = SHIFT.adopted(engine), resized(engine)
    with pytest.raises(sl.UnsupportedError, match=r"changed copy: vocab size \d+ there and \d+ here .*--adopt"):
        other.generate(["w1"], fitted)
    steered = other.generate(["w1 w2"], fitted.adopted(other), sl.Sampling(4))[0].ids
    assert steered == engine.generate(["w1 w2"], fitted, sl.Sampling(4))[0].ids


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The pilot, a resized copy of it in a folder, and a steering of the first in a file, with a range."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("copies")
    engine = sl.load("pilot")
    steering = sl.method("diff_means", {"site": "4"}).fit(engine, sl.read_data("pilot:pirate", n=8))
    replace(steering, meta=replace(steering.meta, range={"directions": {}})).save(folder / "s.safetensors")
    engine.model.resize_token_embeddings(engine.model.config.vocab_size + 1, mean_resizing=False)
    engine.model.save_pretrained(folder / "copy")
    engine.tokenizer.save_pretrained(folder / "copy")
    return folder


def test_generate_adopts(copies, steerlab):
    words = [
        "generate",
        str(copies / "s.safetensors"),
        "-p",
        "Describe a kitchen.",
        "--max-new-tokens",
        "8",
        "--json",
        "-s",
        "1",
    ]
    code, _, errors = steerlab(*words, "--model", str(copies / "copy"))
    assert code == 2 and "--adopt" in errors
    code, there, errors = steerlab(*words, "--model", str(copies / "copy"), "--adopt")
    assert "vocab size" in errors and "its calibrated range is left out" in errors
    _, here, _ = steerlab(*words)
    assert json.loads(there)["replies"] == json.loads(here)["replies"]


def test_evaluate_adopts(copies, tmp_path, steerlab):
    contrast = sl.read_data("pilot:pirate", n=40)
    from steerlab.data import write

    write(contrast, tmp_path / "pirate.jsonl")
    words = [
        "evaluate", str(copies / "s.safetensors"), "--data", str(tmp_path / "pirate.jsonl"), "--rule", "words:arr,matey",
        "--model", str(copies / "copy"), "--seeds", "1", "--prompts", "2", "--capability", "0", "--tokens", "4",
        "--strengths", "1", "--workers", "1", "--json",
    ]  # fmt: skip
    code, _, errors = steerlab(*words, "--out", str(tmp_path / "refused"))
    assert code == 2 and "changed copy" in errors
    _, rows, _ = steerlab(*words, "--adopt", "--out", str(tmp_path / "adopted"))
    assert "s" in {row["arm"] for row in json.loads(rows)}


def test_a_server_adopts_uploads_and_files_without_their_ranges(engine, tmp_path):
    from contextlib import closing
    from dataclasses import replace

    from serving import TEXT, Here, shift

    there = resized(engine)
    told = {"directions": {"elicit": {"sign": 1, "max_safe": 1.2}}, "budget": {"kl": 0.1}}
    steering = shift(there, 1, range=told)
    (tmp_path / "refusing").mkdir()
    steering.save(tmp_path / "one.safetensors")
    data = (tmp_path / "one.safetensors").read_bytes()
    with closing(Here(engine, tmp_path / "refusing")) as here:
        assert "changed copy" in here.ask("PUT", "/v1/steerings/one", content=data).text
    (tmp_path / "store").mkdir()
    steering.save(tmp_path / "store" / "kept.safetensors")
    with closing(Here(engine, tmp_path / "store", adopt=True)) as here:
        assert here.ask("PUT", "/v1/steerings/one", content=data).status_code == 201
        native = replace(steering, meta=replace(steering.meta, fingerprint=None))
        reply = engine.generate([TEXT], native, sl.Sampling(8))[0].text
        for name in ("one", "kept"):
            answer = here.chat(TEXT, steering=name, max_tokens=8, temperature=0).json()
            assert answer["choices"][0]["message"]["content"] == reply
            assert answer["steering"]["applied"][0]["standing"] == "not calibrated"
