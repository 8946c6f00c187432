"""lm-evaluation-harness with the model type `steerlab`: `make test-lm-eval` runs this in an environment that has the harness."""

from __future__ import annotations

import json
import random
from contextlib import suppress

import pytest
import torch

import steerlab as sl
from steerlab.errors import ConfigError, UnsupportedError
from steerlab.harness.model import divides, rounds, row_of, steering_of
from steerlab.testing import tiny
from steerlab.testing.precision import MANY, ONE


def shift(layer, positions, seed=0, width=32, size=1.0):
    v = torch.randn(width, generator=torch.Generator().manual_seed(seed)) * size
    return sl.Steering((sl.Intervention(sl.Site(layer), sl.Shift(v), positions),))


# --- without the harness --------------------------------------------------------------------------------------------


def test_requests_of_equal_tokens_share_a_pass_only_where_they_divide_alike():
    requests = [
        ("a", [1, 2], [3, 4]),
        ("b", [1, 2, 3], [5]),
        ("c", [1, 2, 3], [6]),
        ("d", [1, 2], [3, 9]),
        ("e", [7], [8]),
    ]
    assert list(rounds(requests)) == [[0, 3, 4], [1, 2]]
    assert not divides(None)
    assert not divides(shift(1, sl.ALL))
    assert divides(shift(1, sl.GENERATED))
    assert not divides(shift(1, sl.GENERATED).scaled(0))


def test_rows_are_cut_from_the_left_and_know_their_prompt():
    assert row_of([1, 2, 3], [4, 5], 99) == ([1, 2, 3, 4], 3)
    assert row_of([1, 2, 3], [4], 99) == ([1, 2, 3], 3)
    assert row_of([1, 2, 3], [4, 5], 2) == ([3, 4], 1)
    assert row_of([1], [2, 3, 4], 2) == ([2, 3], 1)  # even the prompt is cut away


def test_what_cant_act_on_tokens_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    sl.Steering(prompt=sl.Prompt("Be brief.")).save(path)
    with pytest.raises(UnsupportedError, match="system_instruction"):
        steering_of(str(path), 1.0)
    assert steering_of("", 1.0) is None
    shift(0, sl.ALL).save(path)
    both = steering_of(f"{path}+{path}", 2.0)
    assert len(both.interventions) == 2
    assert both.interventions[0].control.value == 2.0


def test_one_pass_of_the_callers_is_steered_by_what_the_batch_says():
    engine = tiny.engine()
    steering = shift(1, sl.GENERATED)
    asked = [sl.Example.ask("w1 w2 w3", "w4 w5"), sl.Example.ask("w6", "w7 w8 w9")]
    batch = engine.batch(asked)
    with torch.no_grad(), engine.steer_batch(batch, steering):
        logits = engine.model(batch.ids).logits
    wanted = torch.cat(list(engine.logits(asked, steering)))
    assert float((logits[batch.predicts] - wanted).abs().max()) <= ONE
    assert not engine.model.model.layers[1]._forward_hooks


def test_without_the_harness_its_command_says_what_to_install():
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        from steerlab.harness import main

        with pytest.raises(ConfigError, match=r"steerlab\[eval\]"):
            main(["ls"])


# --- with it --------------------------------------------------------------------------------------------------------

BATCHES = (1, 3, 16)


@pytest.fixture(scope="module")
def harness():
    return pytest.importorskip("lm_eval", reason="lm-evaluation-harness isn't installed: `make test-lm-eval` has it")


@pytest.fixture(scope="module")
def made(harness):
    from steerlab.harness import register

    return register()


@pytest.fixture(scope="module")
def task(harness, tmp_path_factory):
    """A local multiple-choice task: questions of many lengths, with choices of one token and of several."""
    from lm_eval.tasks import TaskManager

    from steerlab import pilot

    folder = tmp_path_factory.mktemp("task")
    draw = random.Random(0)
    items = [e for e in pilot.capability(n=117, seed=0) if e.tags["kind"] in ("choice", "truth", "compare", "initials")]
    lines = []
    for e in items[:36]:
        like = sorted({x.answer for x in items if x.tags["kind"] == e.tags["kind"]} - {e.answer})
        lines.append(
            {"question": e.instruction, "choices": [e.answer, *draw.sample(like, min(2, len(like)))], "gold": 0}
        )
    (folder / "items.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    (folder / "local.yaml").write_text(
        "task: steerlab_local\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: " + str(folder / "items.jsonl")
        + "\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: gold\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n",
        encoding="utf-8",
    )  # fmt: skip
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Steerings of the built-in model that act everywhere, on what follows the prompt, and on its last token alone."""
    folder, engine = tmp_path_factory.mktemp("steerings"), sl.load("pilot")
    width = engine.width(sl.Site(2))
    for name, where in (
        ("all", sl.ALL),
        ("generated", sl.GENERATED),
        ("last", sl.LAST_PROMPT),
        ("usual", sl.NOT_TEMPLATE),
    ):
        shift(2, where, seed=1, width=width, size=0.3).save(folder / f"{name}.safetensors")
    return folder


def items_of(harness, task, model):
    """Each item's log-probabilities of its choices, in order; and the accuracy."""
    found = harness.simple_evaluate(
        model=model, tasks=["steerlab_local"], task_manager=task, log_samples=True, bootstrap_iters=0, verbosity="ERROR"
    )
    samples = sorted(found["samples"]["steerlab_local"], key=lambda s: s["doc_id"])
    return [[r[0] for r in s["filtered_resps"]] for s in samples], found["results"]["steerlab_local"]["acc,none"]


@pytest.mark.parametrize("size", [1, 8])
def test_at_strength_0_log_probabilities_are_bit_equal_to_the_harness_own_model(size, harness, made, task, files):
    from lm_eval.models.huggingface import HFLM

    from steerlab import pilot

    plain = HFLM(pretrained=str(pilot.folder("pilot")), dtype="float32", device="cpu", batch_size=size)
    wanted, accuracy = items_of(harness, task, plain)
    for name in ("generated", "all"):
        model = made(
            pretrained="pilot", steering=str(files / f"{name}.safetensors"), strength=0, device="cpu", batch_size=size
        )
        got, same = items_of(harness, task, model)
        assert got == wanted
        assert same == accuracy


@pytest.fixture(scope="module")
def rounding(harness, made, task):
    """How far the bare model's own items move between batch sizes: kernels round by the shape of a batch."""
    told = [items_of(harness, task, made(pretrained="pilot", device="cpu", batch_size=size))[0] for size in BATCHES]
    flat = [[x for item in one for x in item] for one in told]
    return max(abs(a - b) for one in flat for a, b in zip(one, flat[0], strict=True))


@pytest.mark.parametrize("name", ["all", "generated", "last", "usual"])
def test_no_items_log_probabilities_depend_on_batch_or_padding(name, harness, made, task, files, rounding, capsys):
    told = {}
    for size in BATCHES:
        model = made(pretrained="pilot", steering=str(files / f"{name}.safetensors"), device="cpu", batch_size=size)
        told[size], _ = items_of(harness, task, model)
    alone = made(
        pretrained="pilot", steering=str(files / f"{name}.safetensors"), device="cpu", batch_size=1, logits_cache=False
    )
    told["no cache"], _ = items_of(harness, task, alone)
    bare, _ = items_of(harness, task, made(pretrained="pilot", device="cpu", batch_size=1))
    flat = {k: [x for item in v for x in item] for k, v in told.items()}
    worst = max(abs(a - b) for v in flat.values() for a, b in zip(v, flat[1], strict=True))
    with capsys.disabled():
        print(f"\n{name}: at most {worst:.2e} over batch sizes {BATCHES} and without the cache; bare {rounding:.2e}")
    assert worst <= max(1e-5, min(3 * rounding, 1e-4))  # as receipts have it (steerlab.verify)
    assert max(abs(a - b) for a, b in zip(flat[1], [x for item in bare for x in item], strict=True)) > 0.05


def test_long_and_unlikely_continuations_move_no_more_than_the_plain_models(made, files, capsys):
    """A hundred nats in float32 round by 8e-6: what a batch's shape does to such a sum, steered and not, is told per token."""
    worst = {}
    for name in ("", "generated"):
        file = str(files / f"{name}.safetensors") if name else ""
        told = []
        for size in BATCHES:
            model = made(pretrained="pilot", steering=file, device="cpu", batch_size=size)
            ask = [
                model.tok_encode(t) for t in ("Describe a kite.", "Double 7.", "What is a library for, and who pays?")
            ]
            say = [model.tok_encode(t) for t in ("True, for all I know, and so on.", "B. seven seven", "zebra")]
            requests = [(("", ""), a, b) for a in ask for b in say for _ in range(2)]
            told.append(
                [
                    (v / len(r[2]))
                    for (v, _), r in zip(
                        model._loglikelihood_tokens(requests, disable_tqdm=True), requests, strict=True
                    )
                ]
            )
        worst[name or "plain"] = max(abs(a - b) for t in told for a, b in zip(t, told[0], strict=True))
    with capsys.disabled():
        print("\nper token of unlikely continuations: " + ", ".join(f"{k} {v:.2e}" for k, v in worst.items()))
    assert max(worst.values()) <= ONE


@pytest.mark.parametrize("name", ["generated", "last", "usual"])
def test_log_probabilities_are_the_engines_own(name, made, files):
    model = made(pretrained="pilot", steering=str(files / f"{name}.safetensors"), device="cpu", batch_size=4)
    engine, steering = model.engine, model.under
    asked = [sl.Example.ask("Describe a kite.", "It flies on a string."), sl.Example.ask("Double 7.", "14.")]
    batch = [engine.batch([e], close=False) for e in asked]
    requests = []
    for b in batch:
        ids, n = b.ids[0].tolist(), int(b.prompt_length[0])
        requests.append((("", ""), ids[:n], ids[n:]))
    got = [v for v, _ in model._loglikelihood_tokens(requests, disable_tqdm=True)]
    wanted = [float(v[:-1].double().sum()) for v in engine.logprobs(asked, steering)]
    assert got == pytest.approx(wanted, abs=MANY)


def test_equal_tokens_that_divide_elsewhere_are_steered_apart(made, files):
    model = made(pretrained="pilot", steering=str(files / "generated.safetensors"), device="cpu", batch_size=4)
    ids = model.tok_encode("Describe a kite on a long string.")
    early, late = (("", ""), ids[:4], ids[4:]), (("", ""), ids[:-1], ids[-1:])
    together = model._loglikelihood_tokens([early, late], disable_tqdm=True)
    alone = [model._loglikelihood_tokens([r], disable_tqdm=True)[0] for r in (early, late)]
    assert [v for v, _ in together] == pytest.approx([v for v, _ in alone], abs=ONE)


def test_generation_is_the_engines_own(made, files):
    from lm_eval.api.instance import Instance

    model = made(pretrained="pilot", steering=str(files / "usual.safetensors"), device="cpu", batch_size=3)
    prompts = ["Describe a kite.", "Name three uses of a rope, and say why.", "Double 7."]
    rendered = [model.apply_chat_template([{"role": "user", "content": p}]) for p in prompts]
    asked = [
        Instance("generate_until", {}, (r, {"until": ["\n\n"], "max_gen_toks": 12}), n) for n, r in enumerate(rendered)
    ]
    got = model.generate_until(asked, disable_tqdm=True)
    wanted = [r.text for r in model.engine.generate(prompts, model.under, sl.Sampling(12))]
    bare = [r.text for r in model.engine.generate(prompts, None, sl.Sampling(12))]
    assert [g.strip() for g in got] == [w.strip() for w in wanted]
    assert wanted != bare


def test_the_command_line_knows_the_model_type(made, task, files, tmp_path, capsys):
    from steerlab.cli import main

    folder = next(iter(task.include_path if isinstance(task.include_path, list) else [task.include_path]))
    words = ["lm-eval", "--model_args", f"pretrained=pilot,steering={files / 'all.safetensors'},strength=1",
             "--tasks", "steerlab_local", "--include_path", str(folder), "--device", "cpu", "--batch_size", "8",
             "--limit", "6", "--output_path", str(tmp_path)]  # fmt: skip
    with suppress(SystemExit):  # the harness ends by itself, or the command line does
        main(words)
    assert "steerlab_local" in capsys.readouterr().out
