"""Other tools' formats: what is written acts as the hook does, what is read is what was written, what can't be is refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import zipfile

import pytest
import torch

import steerlab as sl
from steerlab import exports
from steerlab.exports.base import Hints
from steerlab.testing import tiny
from steerlab.testing.precision import FEW, ONE

gguf = pytest.importorskip("gguf")
WIDTH = 32
VECTORS = ("gguf", "repeng", "easysteer", "svec", "easyedit")


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


def shift(layer, draw, part="resid", width=WIDTH):
    return sl.Intervention(sl.Site(layer, part), sl.Shift(torch.randn(width, generator=draw)), sl.ALL)


def unit(draw, rank=1):
    return torch.linalg.qr(torch.randn(WIDTH, rank, generator=draw))[0].T.contiguous()


def folded(steering):
    """Site and vector of each intervention, its strength folded in."""
    return {str(i.site): i.control.value * i.edit.v for i in steering.interventions}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_come_back_as_they_were(name, draw, tmp_path):
    steering = sl.Steering((shift(1, draw), shift(2, draw))).scaled(-0.5)
    path = tmp_path / f"v{exports.format_named(name).suffix}"
    written = exports.write(steering, path, name)
    back = exports.read(path)
    mine, again = folded(steering), folded(back)
    assert mine.keys() == again.keys()
    assert all(torch.equal(mine[k], again[k]) for k in mine)
    assert all(i.positions == sl.ALL for i in back.interventions)
    assert any("-0.5" in told for told in written.lost)


def test_a_gguf_file_has_what_llama_cpp_wants(draw, tmp_path):
    path = tmp_path / "v.gguf"
    steering = sl.Steering((shift(2, draw), shift(1, draw)))
    exports.write(steering, path, "gguf", engine=tiny.engine())
    reader = gguf.GGUFReader(path)
    assert [t.name for t in reader.tensors] == ["direction.1", "direction.2"]
    assert {t.tensor_type.name for t in reader.tensors} == {"F32"}
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 2
    vector = torch.from_numpy(reader.tensors[1].data.copy())
    assert torch.equal(vector, steering.interventions[1].edit.v)  # direction.2 is block 2's


def test_two_shifts_of_a_block_are_one_sum(draw, tmp_path):
    a, b = shift(1, draw), shift(1, draw)
    exports.write(sl.Steering((a, b)), tmp_path / "v.gguf", "gguf")
    assert torch.equal(folded(exports.read(tmp_path / "v.gguf"))["resid@1"], a.edit.v + b.edit.v)


def test_a_file_of_somebody_elses_is_read(draw, tmp_path):
    """As llama.cpp's generator writes it: a signed layer count and nothing that this package adds."""
    path, v = tmp_path / "theirs.gguf", torch.randn(WIDTH, generator=draw)
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_int32("controlvector.layer_count", 1)
    writer.add_tensor("direction.7", v.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    back = exports.read(path)
    assert torch.equal(folded(back)["resid@7"], v)
    assert back.meta.data["source"] == str(path)


def test_gguf_keeps_where_it_comes_from(draw, tmp_path):
    meta = sl.Meta(model="m", revision="r", method={"name": "diff_means"}, data={"concept": "tea"}, template="plain")
    exports.write(sl.Steering((shift(1, draw),), meta=meta), tmp_path / "v.gguf", "gguf")
    assert exports.read(tmp_path / "v.gguf").meta == meta


def gate(draw):
    return sl.Gate(sl.Site(0), torch.randn(WIDTH, generator=draw), 0.0)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("layer 0", "no direction.0"),
        ("clamp", "depends on the activation"),
        ("mask", "positions not_template"),
        ("gate", "Gate control"),
        ("prompt", "has a prompt"),
        ("mlp", "isn't at a block's output"),
        ("nothing", "edits nothing"),
        ("weights", "isn't at a block's output"),
    ],
)
def test_what_a_control_vector_cant_say_is_refused_with_the_reason(what, words, draw, tmp_path):
    v = sl.Shift(torch.randn(WIDTH, generator=draw))
    site = sl.Site(1)
    delta = sl.Delta(torch.ones(4, 1), torch.ones(1, 4))
    made = {
        "layer 0": (sl.Intervention(sl.Site(0), v, sl.ALL),),
        "clamp": (sl.Intervention(site, sl.Clamp.random(WIDTH, draw), sl.ALL),),
        "mask": (sl.Intervention(site, v),),
        "gate": (sl.Intervention(site, v, sl.ALL, gate(draw)),),
        "prompt": (sl.Intervention(site, v, sl.ALL),),
        "mlp": (sl.Intervention(sl.Site(1, "mlp"), v, sl.ALL),),
        "nothing": (sl.Intervention(site, v, sl.ALL, sl.Constant(0.0)),),
        "weights": (sl.Intervention(sl.Site(1, "w:mlp.down_proj"), delta, sl.ALL),),
    }[what]
    prompt = sl.Prompt("Be kind.") if what == "prompt" else None
    meta = sl.Meta(data={"source": "pilot:pirate"})
    with pytest.raises(sl.UnsupportedError) as problem:
        exports.write(sl.Steering(made, prompt, meta), tmp_path / "v.gguf", "gguf")
    assert words in str(problem.value)
    assert "steerlab fit diff-means --data pilot:pirate" in str(problem.value)
    assert "--positions all" in str(problem.value)
    assert not list(tmp_path.iterdir())


def test_every_reason_is_told_at_once(draw, tmp_path):
    made = (
        sl.Intervention(sl.Site(0), sl.Shift(torch.ones(WIDTH))),
        sl.Intervention(sl.Site(2), sl.Clamp.random(WIDTH, draw)),
    )
    found = exports.format_named("gguf").refuses(sl.Steering(made))
    assert len(found) == 4  # two masks, block 0, a clamp


def test_repeng_has_a_block_0_and_easysteer_the_methods_name(draw, tmp_path):
    steering = sl.Steering((shift(0, draw),), meta=sl.Meta(method={"name": "pca"}))
    exports.write(steering, tmp_path / "v.gguf", "easysteer")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert [t.name for t in reader.tensors] == ["direction.0"]
    assert reader.fields["controlvector.method"].contents() == "pca"
    exports.write(steering, tmp_path / "r.gguf", "repeng")
    assert folded(exports.read(tmp_path / "r.gguf")).keys() == {"resid@0"}


@pytest.mark.parametrize("keep", [0, 3, 20, 60, 200, -1])
def test_a_file_cut_short_is_told(keep, draw, tmp_path):
    path = tmp_path / "v.gguf"
    exports.write(sl.Steering((shift(1, draw),)), path, "gguf")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(sl.ArtefactError):
        exports.read(path, "gguf")


# --- GLP -------------------------------------------------------------------------------------------------------------


def ablation(layer, q, strength=1.0, part="resid"):
    return sl.Intervention(sl.Site(layer, part), sl.Ablate(q), sl.ALL, sl.Constant(strength))


@pytest.mark.parametrize("case", ["rank 1", "rank 2", "strengths", "writers"])
def test_projections_come_back(case, draw, tmp_path):
    rank, part = 2 if case == "rank 2" else 1, "mlp" if case == "writers" else "resid"
    strengths = (0.3, 0.9) if case == "strengths" else (0.7, 0.7)
    made = tuple(ablation(n + 1, unit(draw, rank), s, part) for n, s in enumerate(strengths))
    exports.write(sl.Steering(made), tmp_path / "p.gguf", "glp")
    back = exports.read(tmp_path / "p.gguf")
    h = torch.randn(5, WIDTH, generator=draw)
    for a, b in zip(made, back.interventions, strict=True):
        assert a.site == b.site
        assert torch.equal(a.edit.q, b.edit.q)
        assert (a.edit(h, a.control.value) - b.edit(h, b.control.value)).abs().max() < FEW
    version = gguf.GGUFReader(tmp_path / "p.gguf").fields["glp.spec_version"].contents()
    assert version == (1 if case in ("rank 1", "writers") else 2)


def glp_file(path, tensors, **metadata):
    writer = gguf.GGUFWriter(path, "controlvector")
    for key, value in {"glp_mode": "project", "glp_spec_version": 1, "glp_alpha_default": 1.0, **metadata}.items():
        key = key.replace("_", ".", 1)
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
        add[type(value)](key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_published_files_take_more_than_all_of_a_component_away(draw, tmp_path):
    q, h = unit(draw), torch.randn(5, WIDTH, generator=draw)
    glp_file(tmp_path / "p.gguf", {"direction.3": q[0]}, glp_alpha_default=4.0)
    (made,) = exports.read(tmp_path / "p.gguf").interventions
    assert (made.edit(h, made.control.value) - (h - 4 * (h @ q.T) * q)).abs().max() < ONE
    exports.write(sl.Steering((made,)), tmp_path / "again.gguf", "glp")
    assert gguf.GGUFReader(tmp_path / "again.gguf").fields["glp.alpha_default"].contents() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ("direction.1", {"glp_mode": "rotate"}, "glp.mode"),
        ("direction.1", {"glp_spec_version": 3}, "version"),
        ("direction.1", {"glp_hook_point": "elsewhere"}, "elsewhere"),
        ("direction.1", {"glp_content_sha256": "0" * 64}, "content_sha256"),
        ("direction.0", {}, "direction.0"),
        ("direction.1", {"glp_rank": 2, "glp_spec_version": 2}, "rank"),
        ("long", {}, "orthonormal"),
    ],
)
def test_a_projection_that_isnt_understood_is_never_guessed(tensors, metadata, words, draw, tmp_path):
    q = unit(draw)[0] * (2 if tensors == "long" else 1)
    glp_file(tmp_path / "p.gguf", {"direction.1" if tensors == "long" else tensors: q}, **metadata)
    with pytest.raises(sl.ArtefactError, match=words):
        exports.read(tmp_path / "p.gguf", "glp")


def test_a_projection_is_no_control_vector(draw, tmp_path):
    exports.write(sl.Steering((ablation(1, unit(draw)),)), tmp_path / "p.gguf", "glp")
    with pytest.raises(sl.ArtefactError, match="glp"):
        exports.read(tmp_path / "p.gguf", "gguf")
    with pytest.raises(sl.UnsupportedError, match="depends on the activation"):
        exports.write(sl.Steering((ablation(1, unit(draw)),)), tmp_path / "v.gguf", "gguf")


@pytest.mark.parametrize("what", ["centre", "block 0", "twice", "ranks", "parts", "shift"])
def test_what_glp_cant_say_is_refused(what, draw, tmp_path):
    centred = sl.Intervention(sl.Site(1), sl.Ablate(unit(draw), torch.ones(1)), sl.ALL)
    made = {
        "centre": (centred,),
        "block 0": (ablation(0, unit(draw)),),
        "twice": (ablation(1, unit(draw)), ablation(1, unit(draw))),
        "ranks": (ablation(1, unit(draw)), ablation(2, unit(draw, 2))),
        "parts": (ablation(1, unit(draw)), ablation(2, unit(draw), part="mlp")),
        "shift": (shift(1, draw),),
    }[what]
    with pytest.raises(sl.UnsupportedError):
        exports.write(sl.Steering(made), tmp_path / "p.gguf", "glp")


# --- dumps of tensors ------------------------------------------------------------------------------------------------


def test_axbench_dumps(draw, tmp_path):
    steering = sl.Steering((shift(5, draw),), meta=sl.Meta(model="m", data={"concept": "tea"}))
    exports.write(steering, tmp_path / "dump", "axbench")
    back = exports.read(tmp_path / "dump")
    assert torch.equal(folded(back)["resid@5"], steering.interventions[0].edit.v)
    assert (back.meta.model, back.meta.data["concept"]) == ("m", "tea")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    weight = torch.randn(3, WIDTH, generator=draw)
    torch.save(weight, theirs / "LsReFT_weight.pt")
    (theirs / "metadata.jsonl").write_text(
        "".join(json.dumps({"concept_id": n, "concept": f"c{n}"}) + "\n" for n in range(3))
    )
    back = exports.read(theirs, hints=Hints(layer=4, concept=2))
    assert torch.equal(folded(back)["resid@4"], weight[2])
    assert back.meta.data["concept"] == "c2"
    with pytest.raises(sl.ArtefactError, match="--layer"):
        exports.read(theirs)
    with pytest.raises(sl.ArtefactError, match="--concept"):
        exports.read(theirs, hints=Hints(layer=4, concept=3))
    (theirs / "LsReFT_weight.pt").rename(theirs / "rank_0_LsReFT_weight.pt")
    with pytest.raises(sl.ArtefactError, match="rank order"):
        exports.read(theirs, hints=Hints(layer=4))


def clamp(draw, positions):
    edit = sl.Clamp(unit(draw), torch.tensor([3.5]), torch.tensor([-1.25]))
    return sl.Intervention(sl.Site(2), edit, positions)


def test_cdas_dumps_keep_poles_and_prefix(draw, tmp_path):
    positions = sl.Positions((sl.Window(4),), (sl.Window(0),))
    steering = sl.Steering((clamp(draw, positions),))
    exports.write(steering, tmp_path / "dump", "cdas")
    assert exports.read(tmp_path / "dump").digest == steering.digest
    (tmp_path / "dump" / "config.json").unlink()
    with pytest.raises(sl.ArtefactError, match="--positive"):
        exports.read(tmp_path / "dump", hints=Hints(layer=2))
    told = Hints(layer=2, positive=3.5, negative=-1.25, prefix=4)
    assert exports.read(tmp_path / "dump", hints=told).digest == steering.digest


@pytest.mark.parametrize("what", ["rank", "push", "gate", "half", "last", "two"])
def test_what_a_cdas_dump_cant_say_is_refused(what, draw, tmp_path):
    i = clamp(draw, sl.ALL)
    made = {
        "rank": [sl.Intervention(sl.Site(2), sl.Clamp(unit(draw, 2), torch.ones(2), -torch.ones(2)), sl.ALL)],
        "push": [sl.Intervention(sl.Site(2), sl.Push(i.edit.q, i.edit.positive, i.edit.negative), sl.ALL)],
        "gate": [sl.Intervention(i.site, i.edit, sl.ALL, gate(draw))],
        "half": [i.scaled(0.5)],
        "last": [sl.Intervention(i.site, i.edit, sl.LAST_PROMPT)],
        "two": [i, i],
    }[what]
    with pytest.raises(sl.UnsupportedError):
        exports.write(sl.Steering(tuple(made)), tmp_path / "dump", "cdas")


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("how", ["pickle", "in torch's zip", "legacy", "compressed", "strided", "integers", "text"])
def test_hostile_tensor_files_are_refused_and_run_nothing(how, tmp_path):
    path, ran = tmp_path / "layer_1.pt", tmp_path / "ran"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(str(ran))))
    elif how == "in torch's zip":
        torch.save({"v": torch.ones(3), "x": Bomb(str(ran))}, path)
    elif how == "legacy":
        torch.save(torch.ones(3), path, _use_new_zipfile_serialization=False)
    elif how == "strided":
        torch.save(torch.ones(1).expand(10**12), path)
    elif how == "integers":
        torch.save(torch.ones(3, dtype=torch.int64), path)
    elif how == "text":
        path.write_text("hello")
    else:
        torch.save(torch.zeros(100_000), tmp_path / "plain.pt")
        with (
            zipfile.ZipFile(tmp_path / "plain.pt") as plain,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for entry in plain.infolist():
                packed.writestr(entry.filename, plain.read(entry.filename))
    with pytest.raises(sl.ArtefactError):
        exports.read(path, "easyedit")
    assert not ran.exists()


def test_the_bomb_would_go_off(tmp_path):
    pickle.loads(pickle.dumps(Bomb(str(tmp_path / "ran")))).close()  # noqa: S301
    assert (tmp_path / "ran").exists()


def test_svec_heads_and_what_is_ambiguous(draw, tmp_path):
    path = tmp_path / "v.svec"
    heads = torch.randn(4, 8, generator=draw)
    path.write_text(
        json.dumps({"model_type": "llama", "num_heads": 4, "head_dim": 8, "directions": {"1": heads.tolist()}})
    )
    (made,) = exports.read(path).interventions
    assert str(made.site) == "heads@1"
    assert torch.equal(made.edit.v, heads.flatten())
    path.write_text(json.dumps({"model_type": "llama", "directions": {"1": heads.tolist()}}))
    with pytest.raises(sl.ArtefactError, match="tokens in one method and a plane in another"):
        exports.read(path)
    for text in ('{"directions": {}}', '{"directions": {"x": [1]}}', '{"directions": {"1": [NaN]}}', "[]", "{", "[" * 100_000,
                 '{"directions": {"1": [[1, 2]], "2": [1]}}', '{"directions": {"1": ["a"]}}'):  # fmt: skip
        path.write_text(text)
        with pytest.raises(sl.ArtefactError):
            exports.read(path)


def test_an_unknown_format_or_file_is_told_with_the_nearest(tmp_path):
    with pytest.raises(sl.ConfigError, match="gguf"):
        exports.format_named("ggug")
    with pytest.raises(sl.ArtefactError, match="nothing at"):
        exports.read(tmp_path / "none.gguf")
    (tmp_path / "x.bin").write_bytes(b"hello")
    with pytest.raises(sl.ArtefactError, match="--format"):
        exports.read(tmp_path / "x.bin")
    with pytest.raises(sl.ConfigError, match="only written"):
        exports.read(tmp_path / "x.bin", "lm_eval")


# --- lm-evaluation-harness -------------------------------------------------------------------------------------------


def test_lm_evals_file_names_modules_and_actions(draw, tmp_path):
    engine, path = tiny.engine("gpt2"), tmp_path / "x.pt"
    exports.write(sl.Steering((shift(1, draw), shift(1, draw))).scaled(2), path, "lm_eval", engine=engine)
    held = torch.load(path, weights_only=True)
    assert list(held) == ["h.1"]
    assert held["h.1"]["action"] == "add"
    q = unit(draw)
    made = sl.Intervention(sl.Site(0, "mlp"), sl.Clamp(q, torch.tensor([2.0]), torch.tensor([-1.0])), sl.ALL)
    exports.write(sl.Steering((made, ablation(2, q))).scaled(1), path, "lm_eval", engine=engine)
    held = torch.load(path, weights_only=True)
    assert {k: (v["action"], v["steering_coefficient"]) for k, v in held.items()} == {
        "h.0.mlp": ("clamp", 2.0), "h.2": ("clamp", 0.0),
    }  # fmt: skip
    for bad in (
        (made.scaled(0.5),),
        (made, shift(0, draw, "mlp")),
        (shift(1, draw, "heads"),),
    ):
        with pytest.raises(sl.UnsupportedError):
            exports.write(sl.Steering(bad), path, "lm_eval", engine=engine)


HARNESS = """
import sys, torch
from lm_eval.models.hf_steered import SteeredModel
folder, steer, rows, out = sys.argv[1:]
model = SteeredModel(pretrained=folder, steer_path=steer, device="cpu", dtype="float32")
torch.save(model._model_call(torch.load(rows)), out)
"""


@pytest.mark.parametrize("what", ["add", "clamp"])
def test_the_harness_itself_gives_the_hooks_logits(what, draw, tmp_path):
    python = os.environ.get("STEERLAB_LMEVAL")
    if not python:
        pytest.skip("lm-evaluation-harness isn't installed: `make test-lm-eval` installs it and runs this")
    engine = tiny.engine()
    q = unit(draw)
    clamped = sl.Intervention(sl.Site(1), sl.Clamp(q, torch.tensor([2.0]), torch.tensor([-1.0])), sl.ALL)
    made = (shift(0, draw), shift(2, draw)) if what == "add" else (clamped, ablation(2, q, part="mlp"))
    steering = sl.Steering(made)
    engine.model.save_pretrained(tmp_path / "model")
    engine.tokenizer.save_pretrained(tmp_path / "model")
    exports.write(steering, tmp_path / "s.pt", "lm_eval", engine=engine)
    ids = torch.randint(8, 90, (2, 9), generator=draw)
    torch.save(ids, tmp_path / "rows.pt")
    words = [python, "-c", HARNESS, *(str(tmp_path / n) for n in ("model", "s.pt", "rows.pt", "out.pt"))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad(), engine.steer(steering):
        hooked = engine.model(ids).logits
    with torch.no_grad():
        bare = engine.model(ids).logits
    got = torch.load(tmp_path / "out.pt", weights_only=True)
    assert float((got - hooked).abs().max()) <= ONE
    assert float((got - bare).abs().max()) > 1e-2
