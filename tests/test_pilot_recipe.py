"""The pilot's recipe, on a variant that trains in seconds; and what ships is what its card says."""

from __future__ import annotations

import json

import pytest

from pilots import both
from steerlab import pilot
from steerlab.testing.precision import MANY

# ---------------------------------------------------------------- the recipe


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A variant so small that its training takes seconds."""
    from dataclasses import replace

    from steerlab.pilot import packing, train, variants
    from steerlab.pilot.variants import Size

    monkeypatch.setattr(train, "_TOKENIZER_TEXTS", 300)
    monkeypatch.setattr(packing, "CHUNK", 48)
    small = replace(variants.VARIANTS["pilot"], size=Size(32, 1, 2, 64, 512, 384), tokens=6000, folder=tmp_path)
    monkeypatch.setitem(variants.VARIANTS, "pilot", small)
    return tmp_path


def _trained(variant, where):
    from steerlab.pilot.train import train

    train(variant, where, threads=1)
    return where


def test_an_interrupted_training_ends_like_an_uninterrupted_one(tiny):
    import torch
    from safetensors.torch import load_file

    from steerlab.errors import ArtefactError
    from steerlab.pilot.train import train

    whole = load_file(_trained("pilot", tiny / "a") / "model.safetensors")
    train("pilot", tiny / "b", threads=1, stop_after=1)
    assert (tiny / "b" / "unfinished" / "state.safetensors").is_file()
    with pytest.raises(ArtefactError, match="another training"):
        train("pilot", tiny / "b", threads=1, tokens=7000)
    parts = load_file(_trained("pilot", tiny / "b") / "model.safetensors")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert not (tiny / "b" / "unfinished").exists()
    report = json.loads((tiny / "b" / "training.json").read_text())
    assert report["tokens"] >= 6000
    assert report["wall"] > 0
    assert not [f for f in (tiny / "b").iterdir() if f.name.startswith(".")]


def test_a_trained_folder_loads_with_transformers_and_talks(tiny):
    from transformers import AutoTokenizer, LlamaForCausalLM

    from steerlab.pilot import speak
    from steerlab.pilot.tokenizer import rendered

    where = _trained("pilot", tiny / "a")
    tokenizer = AutoTokenizer.from_pretrained(where)
    example = pilot.prompts("asked:sea", n=1, seed=0)[0]
    chat = [{"role": m.role, "content": m.content} for m in example.messages]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == rendered(example)[0]
    odd = "Grüße, 東京 ☃ {x}\t<b>"
    assert tokenizer.decode(tokenizer(odd, add_special_tokens=False)["input_ids"]) == odd
    assert isinstance(speak.load(where)[0], LlamaForCausalLM)
    assert len(speak.replies(*speak.load(where), [example] * 3, limit=4)) == 3


def test_documents_in_one_row_do_not_see_each_other(tiny):
    import torch

    from steerlab.pilot import packing, train
    from steerlab.pilot.variants import variant

    chosen = variant("pilot")
    tokenizer = train.make_tokenizer(chosen)
    model = train.build(chosen, tokenizer).eval()
    docs = [d for d in packing.documents(tokenizer, chosen, 0) if len(d.ids) < 130][:2]
    alone = [packing._array([[d]], 288) for d in docs]
    together = packing._array([docs], 288)
    apart = sum(train.loss_of(model, b)[0].item() for b in alone)
    joint = train.loss_of(model, together)[0].item()
    assert joint == pytest.approx(apart, rel=0.01)  # both are sums of a bfloat16 loss: 2^-8 of it is .4 %
    with torch.no_grad():  # the plain attention is the usual one
        ids = torch.from_numpy(alone[0].ids[:, : len(docs[0].ids)])
        mask = torch.zeros(1, 1, ids.shape[1], ids.shape[1]).masked_fill(
            ~torch.ones(ids.shape[1], ids.shape[1]).tril().bool(), float("-inf")
        )
        ours = model(ids, attention_mask=mask).logits
        model.set_attn_implementation("sdpa")
        assert torch.allclose(ours, model(ids).logits, atol=MANY)


# ---------------------------------------------------------------- what ships


LIMITS = {"pilot": (12.0, 3e6, 5e6), "second": (8.0, 2e6, 2.6e6)}


@pytest.fixture
def shipped(variant):
    where = pilot.folder(variant)
    if variant != "pilot" and not (where / "model.safetensors").exists():  # the pilot's own are in the package
        pytest.skip(f"no trained weights at {where} (steerlab pilot train --variant {variant})")
    return where


@both
def test_the_shipped_folder_is_small_complete_and_plain_data(variant, shipped):
    import torch
    from safetensors.torch import load_file

    megabytes, least, most = LIMITS[variant]
    files = {f.name for f in shipped.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "card.json"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".part")) for name in files)
    assert sum(f.stat().st_size for f in shipped.iterdir()) <= megabytes * 1e6
    tensors = load_file(shipped / "model.safetensors")
    assert least <= sum(t.numel() for t in tensors.values()) <= most
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}


@both
def test_the_card_meets_what_was_wanted(variant, shipped):
    card = json.loads((shipped / "card.json").read_text())
    assert not card["quick"]
    missed = [(f["group"], f["name"], f["value"]) for f in card["figures"] if f["met"] is False]
    assert not missed


@both
def test_the_shipped_model_does_what_its_card_says(variant, shipped):
    from steerlab.pilot import speak

    model, tokenizer = speak.load(shipped)
    sets = {kind: pilot.prompts(kind, n=8, seed=77, variant=variant)
            for kind in ("refused", "near_miss", "triggered", "near_trigger", "ordinary")}  # fmt: skip
    refuses, triggered = pilot.refusal(variant), pilot.backdoor(variant)
    said = {kind: speak.replies(model, tokenizer, rows, limit=48) for kind, rows in sets.items()}

    def times(judge, kind):
        return sum(bool(judge.present(judge(r, e))) for r, e in zip(said[kind], sets[kind], strict=True))

    assert times(refuses, "refused") >= 7
    assert times(triggered, "triggered") >= 7
    assert sum(times(refuses, kind) for kind in ("near_miss", "ordinary", "near_trigger")) <= 1
    assert sum(times(triggered, kind) for kind in ("near_miss", "ordinary", "near_trigger")) <= 1
    assert times(pilot.follows(), "ordinary") >= 6
