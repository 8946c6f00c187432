"""HyperSteer: what is known to be right, the generator's file, and what it refuses."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from dataclasses import replace

import pytest
import torch

import steerlab as sl
from steerlab import artefact
from steerlab.contrast import Contrast, Example
from steerlab.errors import ArtefactError, ConfigError, DataError, UnsupportedError
from steerlab.loading import read_concepts
from steerlab.methods.base import method
from steerlab.methods.fitting import ran
from steerlab.methods.forecast import forecast
from steerlab.methods.frozen import Frozen
from steerlab.methods.generator import Generator
from steerlab.methods.hypersteer import HyperSteer
from steerlab.methods.writing import Ask, Writer
from steerlab.positions import NOT_TEMPLATE
from steerlab.sites import Site
from steerlab.testing import planted, tiny
from steerlab.testing.precision import MANY, ONE

WORDS = [f"w{n}" for n in range(3, 85)]


def about(word: str, n: int = 4, seed: int = 0) -> Contrast:
    """A concept whose description is a word and whose answers say that word."""
    generator = torch.Generator().manual_seed(seed + int(word[1:]))
    prompts = [tiny.words(generator, 5) for _ in range(n)]
    return Contrast(
        tuple(Example.ask(f"{p} {word}", f"{word} {word}") for p in prompts),
        tuple(Example.ask(p, planted.WITHOUT) for p in prompts),
        paired=True,
        concept=word,
    )


def small(**settings) -> HyperSteer:
    made = method("hypersteer", {**HyperSteer.small, "site": "1", "epochs": 2, **settings})
    assert isinstance(made, HyperSteer)
    return made


@functools.cache
def toy():
    """A model that says a word when the last block writes the word's embedding: input and output embeddings are tied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from steerlab.engines.hf import HFEngine

    torch.manual_seed(0)
    config = LlamaConfig(**{**tiny.GATED, "num_hidden_layers": 2, "tie_word_embeddings": True})
    model = LlamaForCausalLM(config).eval()
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    return HFEngine(model, tiny.tokenizer(), name="toy")


@pytest.fixture(scope="module")
def trained() -> Generator:
    """A linear network from embeddings, trained on 70 words."""
    made = small(layers=0, reads="embed", epochs=12, step=0.03, close=False)
    return made.fit_generator(toy(), [about(w, 2) for w in WORDS[:70]])


def test_words_that_it_was_not_trained_on_are_said(trained):
    """What makes a word likely at the last block is its own embedding, which is tied: a linear function of what is read."""
    engine, unseen = toy(), WORDS[70:]
    gained, wrong = [], []
    for n, word in enumerate(unseen):
        asked = [replace(e, answer=word) for e in about(word, seed=9).negative]
        other = unseen[(n + 1) % len(unseen)]
        plain, right, off = (
            float(torch.stack([lp[0] for lp in engine.logprobs(asked, s)]).mean())
            for s in (None, trained(word), trained(other))
        )
        gained.append(right - plain)
        wrong.append(right - off)
    assert sum(g > 2 for g in gained) >= 10, gained
    assert sum(w > 2 for w in wrong) >= 10, wrong


def test_a_known_linear_function_of_what_is_read_is_recovered():
    engine, generator = tiny.engine(), torch.Generator().manual_seed(0)
    descriptions = list(dict.fromkeys(tiny.words(generator, 3) for _ in range(90)))
    truth = torch.randn(32, 32, generator=generator)
    read = Frozen(engine, [Site(1)]).reads([Example.ask(d) for d in descriptions], Site(1), NOT_TEMPLATE)
    vectors = [truth @ h.mean(dim=0) + 0.5 for h in read]
    contrasts = [replace(planted.contrast(1, seed=n), concept=d) for n, d in enumerate(descriptions)]
    steerings = [sl.Steering((sl.Intervention(Site(1), sl.Shift(v)),)) for v in vectors]
    made = small(layers=0, epochs=0, reconstruct=800, step=0.15)
    writes = made.fit_generator(engine, contrasts[:75], vectors=steerings[:75])
    for description, wanted in zip(descriptions[75:], vectors[75:], strict=True):
        v = writes(description).interventions[0].edit.v
        assert float(torch.cosine_similarity(v, wanted, dim=0)) > 0.99
        assert float((v - wanted).norm()) < 0.15 * float(wanted.norm())


def test_each_row_is_trained_under_the_vector_that_its_steering_adds():
    """The loss of rows of several concepts in one pass is what the engine says under the written steerings."""
    engine, contrasts = tiny.engine(), [about(w, 2) for w in WORDS[:3]]
    made = small(step=0.05)
    writes = made.fit_generator(engine, contrasts)
    frozen = Frozen(engine, writes.sites)
    given = made.given(engine, contrasts[0], writes.sites, writes.positions, frozen)
    rows = [row for c in contrasts for item in made.items(c, c) for row in made.rows(item, torch.Generator())]
    with torch.no_grad():
        step = ran(given, rows, made.touching(rows, writes.tensors, given))
        trained = float(made.loss(step, writes.tensors))
    said = engine.logprobs([row.example for row in rows], [writes(row.tag) for row in rows])
    assert trained == pytest.approx(-float(torch.cat(said).mean()), rel=ONE)
    assert len({writes(c.concept).digest for c in contrasts}) == 3


@pytest.mark.parametrize("context", ["none", "prompt", "cross"])
def test_neighbours_and_padding_change_no_vector(context):
    engine, made = tiny.engine(), small(context=context)
    writer = Writer(made, Frozen(engine, [Site(1)]))
    prompts = [Example.ask("w5 w6"), Example.ask("w7 w8 w9 w10 w11 w12"), Example.ask("w4")]
    asks = [writer.ask(d, p) for d, p in zip(("w3", "w20 w21 w22 w23 w24", "w30 w31"), prompts, strict=True)]
    free, constants = writer.begun(asks, torch.Generator().manual_seed(0))
    tensors = {**constants, **free, "head.weight": torch.randn(32, 32, generator=torch.Generator().manual_seed(1))}
    together = writer(tensors, asks)[0]
    assert float((together[0] - together[1]).norm()) > 0.1
    torch.testing.assert_close(writer(tensors, asks[::-1])[0].flip(0), together, rtol=MANY, atol=MANY)
    for ask, vector in zip(asks, together, strict=True):
        torch.testing.assert_close(writer(tensors, [ask])[0][0], vector, rtol=MANY, atol=MANY)
    other = [ask._replace(prompt=prompts[1]) if ask.prompt else ask for ask in asks[:1]]
    assert torch.allclose(writer(tensors, other)[0][0], together[0], atol=MANY) == (context == "none")


@pytest.mark.parametrize("context", ["none", "prompt", "cross"])
def test_the_untrained_head_leaves_the_model_as_it_is_and_training_lowers_the_loss(context):
    engine, contrasts = toy(), [about(w, 2) for w in WORDS[:6]]
    prompt = "w5 w6" if context != "none" else None
    examples = [Example.ask("w5 w6", "w7 w8")]
    before = {name: p.clone() for name, p in engine.model.named_parameters()}
    untrained = small(context=context, epochs=0).fit_generator(engine, contrasts)
    assert torch.equal(*(next(engine.logits(examples, s)) for s in (None, untrained("w9", prompt))))
    trained = small(context=context, epochs=6, step=0.02).fit_generator(engine, contrasts)
    losses = trained.meta.figures["loss"]
    assert losses[-1] < 0.8 * losses[0], losses
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in engine.model.named_parameters())


def test_a_generator_with_prompts_writes_for_each_prompt():
    writes = small(context="cross").fit_generator(planted.engine(), [about(w) for w in WORDS[:4]])
    first, second = writes("w9", "w5 w6"), writes("w9", Example.ask("w7 w8", "w1"))
    assert first.digest != second.digest
    assert second.digest == writes("w9", [sl.Message("user", "w7 w8")]).digest
    assert first.meta.data["prompt"] == "w5 w6"
    with pytest.raises(ConfigError, match="a prompt was not given"):
        writes("w9")
    with pytest.raises(ConfigError, match="one steering for all"):
        small(context="cross").fit(planted.engine(), planted.contrast(4))


def test_concepts_held_out_are_not_trained_on_and_the_best_iterate_is_kept():
    engine, contrasts = planted.engine(), [about(w) for w in WORDS[:10]]
    writes = small(held_out=0.3, epochs=4).fit_generator(engine, contrasts)
    curve = writes.meta.figures["held_out"]["loss"]
    assert len(curve) == 5
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()
    told = [
        -float(torch.cat(engine.logprobs([replace(n, answer=p.answer) for p, n in c.pairs], writes(c.concept))).mean())
        for c in (contrasts[i] for i in order[:3])
    ]
    # figures are kept with three digits
    assert sum(told) / 3 == pytest.approx(min(curve), abs=1e-3)


def test_the_same_seed_gives_the_same_digest_and_another_another():
    contrasts = [about(w) for w in WORDS[:4]]
    digests = [small(seed=s).fit_generator(planted.engine(), contrasts).digest for s in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_saved_and_loaded_it_writes_the_same(trained, tmp_path):
    path = tmp_path / "g.safetensors"
    trained.save(path)
    again = Generator.load(path, toy())
    assert again.digest == trained.digest
    assert again.meta == trained.meta
    first, second = trained(" w80 "), again("w80")
    assert first.digest == second.digest
    assert first.meta.data["generator"] == trained.digest
    assert (first.meta.method["description"], first.meta.method["seed"]) == ("w80", 0)
    second.save(tmp_path / "s.safetensors")
    assert sl.Steering.load(tmp_path / "s.safetensors").meta == second.meta
    assert [row["description"] for row in again.meta.data["concepts"]] == WORDS[:70]


def test_a_fit_writes_with_a_saved_generator(trained, tmp_path):
    path = str(tmp_path / "g.safetensors")
    trained.save(path)
    engine, contrast = toy(), about("w80")
    made = HyperSteer(generator=path)
    steering = made.fit(engine, contrast)
    assert steering.digest == trained("w80").digest
    assert steering.meta.figures == {"generator": trained.digest, "description": "w80"}
    assert steering.meta.data["digest"] == contrast.digest()
    assert replace(made, description="w81").fit(engine, contrast).digest == trained("w81").digest
    bare = replace(contrast, positive=tuple(e.without_answer() for e in contrast.positive))
    assert made.fit(engine, bare).digest == steering.digest
    with pytest.raises(ConfigError, match="edits resid@1, and site='0'"):
        replace(made, site="0").fit(engine, contrast)
    with pytest.raises(UnsupportedError, match="trains nothing"):
        forecast(made, engine, contrast)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "mixtral"])
def test_on_other_architectures_it_is_trained_and_written(architecture):
    engine, contrasts = tiny.engine(architecture), [about(w, 2) for w in WORDS[:3]]
    writes = small(context="cross", epochs=3).fit_generator(engine, contrasts)
    first, second = writes("w9", "w5"), writes("w10", "w5")
    assert first.digest != second.digest
    assert not engine.refuses(first)
    example = Example.ask("w5", "w6 w7")
    assert not torch.equal(next(engine.logits([example], first)), next(engine.logits([example])))


def test_several_sites_get_a_vector_each():
    writes = small(site="0,1").fit_generator(planted.engine(), [about(w) for w in WORDS[:3]])
    made = writes("w9").interventions
    assert [str(i.site) for i in made] == ["resid@0", "resid@1"]
    assert float((made[0].edit.v - made[1].edit.v).norm()) > 0


def test_a_file_that_does_not_fit_is_refused(trained, tmp_path):
    path, other = tmp_path / "g.safetensors", tmp_path / "other.safetensors"
    trained.save(path)
    with pytest.raises(ArtefactError, match="a generator for toy, and the model is tiny llama"):
        Generator.load(path, tiny.engine())
    with pytest.raises(ArtefactError, match="is a generator, which writes steerings"):
        sl.Steering.load(path)
    trained("w5").save(other)
    with pytest.raises(ArtefactError, match="is a steering, not a generator"):
        Generator.load(other, toy())
    document, tensors = artefact.read(path)

    def tampered(tensors=tensors, **changed):
        artefact.write(other, {**document, **changed}, tensors)
        return Generator.load(other, toy())

    assert tampered().digest == trained.digest
    with pytest.raises(ArtefactError, match="kind 'hyperster'. Did you mean 'hypersteer'"):
        tampered(generator="hyperster")
    with pytest.raises(ArtefactError, match="format 2"):
        tampered(format=2)
    with pytest.raises(ArtefactError, match=r"'head.weight' of the shape \(32, 31\).*needs \(32, 32\)"):
        tampered({**tensors, "head.weight": tensors["head.weight"][:, 1:]})
    with pytest.raises(ArtefactError, match="disagree"):
        tampered(network={**document["network"], "wording": "about {}"})
    with pytest.raises(ArtefactError, match="another chat template"):
        tampered(meta={**document["meta"], "template": "plain"})
    with pytest.raises(ArtefactError, match="valid generator"):
        tampered(sites=["resid"])
    with pytest.raises(ArtefactError, match="NaN"):
        tampered({**tensors, "unit": tensors["unit"] * float("nan")})


def test_every_field_of_a_generators_header_is_checked(trained, tmp_path):
    path = tmp_path / "g.safetensors"
    trained.save(path)
    document, tensors = artefact.read(path)
    for field in (*document, *document["meta"]):
        for value in ([], 3, {"a": None}):
            changed = copy.deepcopy(document)
            (changed if field in document else changed["meta"])[field] = value
            artefact.write(path, changed, {} if field == "tensors" else tensors)
            with contextlib.suppress(ArtefactError):  # and nothing else
                Generator.load(path, toy())
    artefact.write(path, {**document, "generator": []}, tensors)
    with pytest.raises(ArtefactError, match="of the kind"):
        Generator.load(path, toy())


def test_bad_input_is_told(trained):
    engine, contrasts = planted.engine(), [about(w) for w in WORDS[:3]]
    for empty in ("", " \n"):
        with pytest.raises(DataError, match="description is empty"):
            trained(empty)
    with pytest.raises(DataError, match="description can't be read.*context holds 128"):
        trained("w5 " * 200)
    with pytest.raises(DataError, match="description is empty"):
        small().fit(engine, replace(planted.contrast(4), concept=""))
    with pytest.raises(DataError, match="1 contrasts with 1 different"):
        small().fit_generator(engine, contrasts[:1])
    with pytest.raises(DataError, match="3 contrasts with 2 different"):
        small().fit_generator(engine, [*contrasts[:2], contrasts[0]])
    with pytest.raises(ConfigError, match="a prompt was given"):
        trained("w5", "w6 w7")
    for vectors in (None, [], [trained("w5")]):
        with pytest.raises(ConfigError, match="give a vector for each"):
            small(reconstruct=3).fit_generator(engine, contrasts, vectors=vectors)
    with pytest.raises(ConfigError, match="or neither"):
        small().fit_generator(engine, contrasts, vectors=[trained("w5")] * 3)
    with pytest.raises(ConfigError, match="needs vectors"):
        small(reconstruct=3).fit(engine, contrasts[0])
    clamp = method("cdas", {"site": "1", "epochs": 0}).fit(engine, planted.contrast(6))
    with pytest.raises(ConfigError, match="no single vector"):
        small(reconstruct=3).fit_generator(engine, contrasts, vectors=[clamp] * 3)
    with pytest.raises(ConfigError, match="30 wide, which 4 heads"):
        small(width=30).fit_generator(engine, contrasts)
    for wrong in ({"wording": "bees"}, {"context": "cross", "layers": 0}, {"heads": 0}, {"layers": -1}):
        with pytest.raises(ConfigError, match="expected"):
            small(**wrong)


def test_concepts_of_the_corpus_come_with_their_descriptions():
    some = read_concepts("pilot:topics", concepts=3, n=2)
    assert [c.digest() for c in some] == [c.digest() for c in read_concepts("pilot:topics", concepts=3, n=2)]
    assert all(not c.concept.startswith("topic:") and len(c.pairs) == 2 and not c.neutral for c in some)
    assert read_concepts("pilot:topic:foxes", n=2)[0].concept == "foxes"
    with pytest.raises(DataError, match="9999 concepts were wanted"):
        read_concepts("pilot:topics", concepts=9999)


def test_the_verbs_train_and_write(tmp_path, capsys):
    from steerlab import cli
    from steerlab.data import write

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        told = capsys.readouterr()
        return end.value.code or 0, told.out, told.err

    folder, out = tmp_path / "model", str(tmp_path / "g.safetensors")
    planted.engine().model.save_pretrained(folder)
    planted.engine().tokenizer.save_pretrained(folder)
    files = []
    for word in WORDS[:3]:
        write(about(word), path := tmp_path / f"{word}.jsonl")
        files += ["--data", str(path)]
    common = ("--model", str(folder), "--json")
    code, shown, said = run(
        "generator",
        "train",
        *files,
        *common,
        "--out",
        out,
        "--site",
        "1",
        "--width",
        "8",
        "--layers",
        "1",
        "--epochs",
        "1",
    )
    assert code == 0, said
    told = json.loads(shown)
    assert told["concepts"] == 3
    steering = str(tmp_path / "s.safetensors")
    code, shown, said = run("generator", "write", out, "w9 w8", *common, "--out", steering)
    assert code == 0, said
    assert json.loads(shown)["meta"]["data"]["generator"] == told["digest"]
    assert sl.Steering.load(steering).digest == json.loads(shown)["digest"]
    code, _, said = run("generator", "write", out, " ", *common, "--out", str(tmp_path / "t.safetensors"))
    assert code == 2
    assert "description is empty" in said
    code, _, said = run("show", out)
    assert code == 2
    assert "steerlab generator write" in said
    assert run("generator", "--help")[0] == 0


def test_an_ask_without_a_prompt_is_one_for_all_prompts():
    writer = Writer(small(), Frozen(tiny.engine(), [Site(1)]))
    assert writer.ask("w5", Example.ask("w6")) == Ask("w5") == writer.ask("w5", None)
