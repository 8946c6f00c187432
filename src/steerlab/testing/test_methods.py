"""The laws of methods: every one that is installed, fitted on a small model that was taught one thing.

Laws that look at the same fit share it (`usual`, `again`).
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import fields, replace

import pytest
import torch

from steerlab import config, plugins
from steerlab.contrast import Contrast, Example
from steerlab.errors import ConfigError, DataError, SiteError
from steerlab.methods.base import Method, method
from steerlab.steering import Steering
from steerlab.testing import planted

SITE = "0"
LEAST = 0.2  # nats by which strength 1 must move the first token of the wanted answer (a random direction: about 0)


def fitted(name: str, contrast: Contrast | None = None, **settings) -> Steering:
    made = method(name, {**small(name), **at_site(name), **settings})
    return made.fit(planted.engine(), contrast or planted.contrast())


@functools.cache
def usual(name: str) -> Steering:
    """The method fitted on what was planted; laws that only look at a steering share it."""
    return fitted(name)


@functools.cache
def again(name: str) -> tuple[Steering, bool, bool]:
    """The method rebuilt from what a steering of it keeps, and fitted again; whether model and data stayed as they were."""
    engine, contrast = planted.engine(), planted.contrast()
    before, digest = state_of(engine.model), contrast.digest()
    kept = usual(name).meta.method
    rebuilt = method(kept["name"], {k: v for k, v in kept.items() if k != "name"}).fit(engine, contrast)
    return rebuilt, state_of(engine.model) == before, contrast.digest() == digest


def small(name: str) -> dict:
    """What a method says it needs on a small model."""
    return dict(getattr(plugins.load(name), "small", {}))


def at_site(name: str) -> dict[str, str]:
    return {"site": SITE} if "site" in {f.name for f in fields(plugins.load(name))} else {}


def state_of(model: torch.nn.Module) -> str:
    h = hashlib.sha256()
    for name, p in model.named_parameters():
        h.update(f"{name} {p.requires_grad} {p.grad is None}".encode())
        h.update(p.detach().numpy().tobytes())
    for name, m in model.named_modules():
        h.update(f"{name} {m.training} {len(m._forward_hooks)} {len(m._forward_pre_hooks)}".encode())
    return h.hexdigest()


def test_it_is_a_frozen_dataclass_whose_settings_are_its_configuration(method_name):
    cls = plugins.load(method_name)
    assert issubclass(cls, Method)
    made = cls()
    assert made.name == method_name
    assert method(method_name, config.to_dict(made)) == made
    with pytest.raises(AttributeError):
        made.seed = 1
    with pytest.raises(ConfigError, match="no setting 'strenght'"):
        method(method_name, {"strenght": 1})
    assert (cls.__doc__ or "").strip()


def test_fitting_changes_neither_model_nor_data(method_name):
    _, same_model, same_data = again(method_name)
    assert same_model
    assert same_data
    assert torch.is_grad_enabled()


def test_the_same_seed_gives_the_same_digest(method_name):
    assert again(method_name)[0].digest == usual(method_name).digest


def test_what_was_planted_is_found(method_name):
    """Held-out prompts: +1 makes the other class's answer likelier, and −1 (or suppression) takes it away again.

    A selective method leaves the negative class's prompts as they are, to the bit, at nine of ten at least.
    """
    engine, steering = planted.engine(), usual(method_name)
    made = plugins.load(method_name)
    positive, negative = planted.pairs(torch.Generator().manual_seed(99), 12)
    wants = {
        "elicit": [replace(e, answer=planted.WITH) for e in negative],
        "suppress": [replace(e, answer=planted.WITHOUT) for e in positive],
    }

    def liking(examples, under) -> float:
        return float(torch.stack([lp[0] for lp in engine.logprobs(examples, under)]).mean())

    if made.aim == "control":
        moved = liking(wants["elicit"], steering) - liking(wants["elicit"], None)
        assert abs(moved) < 3.0, "a control should not find what was planted"
        return
    if made.selective:
        untouched = zip(engine.logits(wants["elicit"], steering), engine.logits(wants["elicit"]), strict=True)
        alike = [torch.equal(a, b) for a, b in untouched]
        assert sum(alike) >= 0.9 * len(alike), f"{len(alike) - sum(alike)} of {len(alike)} negative prompts are touched"
    else:
        gained = liking(wants[made.aim], steering) - liking(wants[made.aim], None)
        assert gained > LEAST, f"strength 1 moves the wanted answer's first token by {gained:.2f} nats only"
    if made.aim == "elicit" and steering.domain[0] < 0 and steering.prompt is None:
        lost = liking(wants["suppress"], steering.scaled(-1)) - liking(wants["suppress"], None)
        assert lost > LEAST, f"strength -1 brings the plain answer back by {lost:.2f} nats only"


def test_a_symmetric_method_fitted_with_the_classes_swapped_is_the_opposite(method_name):
    if not plugins.load(method_name).symmetric:
        pytest.skip(f"{method_name} doesn't declare itself symmetric")
    engine = planted.engine()
    there, back = usual(method_name), fitted(method_name, planted.contrast().swapped())
    positive, negative = planted.pairs(torch.Generator().manual_seed(7), 6)
    for s in (1.0, -0.5):
        for a, b in zip(
            engine.logprobs([*positive, *negative], there.scaled(s)),
            engine.logprobs([*positive, *negative], back.scaled(-s)),
            strict=True,
        ):
            # two fits in float32 from mirrored starts: each step rounds, and a fit of a hundred steps carries it on
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_saved_and_loaded_it_gives_identical_logits(method_name, tmp_path):
    engine, steering = planted.engine(), usual(method_name)
    steering.save(tmp_path / "steering.safetensors")
    again = Steering.load(tmp_path / "steering.safetensors")
    assert again.digest == steering.digest
    assert again.meta == steering.meta
    positive, negative = planted.pairs(torch.Generator().manual_seed(3), 4)
    for a, b in zip(
        engine.logits(positive + negative, steering), engine.logits(positive + negative, again), strict=True
    ):
        assert torch.equal(a, b)


def test_on_any_architecture_it_is_fitted_saved_and_moves_both_ways(method_name, architecture, tmp_path):
    from steerlab.testing import tiny

    engine = tiny.engine(architecture)
    known = {f.name for f in fields(plugins.load(method_name))}
    few = {name: value for name, value in {"site": "1", "epochs": 2}.items() if name in known}
    steering = method(method_name, {**small(method_name), **few}).fit(engine, planted.contrast(6))
    steering.save(tmp_path / "steering.safetensors")
    assert Steering.load(tmp_path / "steering.safetensors").digest == steering.digest
    examples = [e for side in planted.pairs(torch.Generator().manual_seed(5), 2) for e in side]
    if plugins.load(method_name).selective:  # a random model can't tell unseen prompts apart, so those that were fitted
        examples += planted.contrast(6).positive
    plain = torch.cat(list(engine.logits(examples)))
    low, _ = steering.domain
    for strength in (1.0, -1.0) if low <= -1 else (1.0,):
        moved = torch.cat(list(engine.logits(examples, steering.scaled(strength))))
        assert bool(torch.isfinite(moved).all())
        same_length = moved.shape == plain.shape
        assert not same_length or not torch.equal(moved, plain)
    assert torch.equal(torch.cat(list(engine.logits(examples, steering.scaled(0.0)))), plain)


def test_it_knows_its_model_method_and_data(method_name):
    steering, contrast = usual(method_name), planted.contrast()
    meta = steering.meta
    assert meta.method["name"] == method_name
    assert meta.data["digest"] == contrast.digest()
    assert meta.fingerprint == planted.engine().fingerprint
    assert meta.template == planted.engine().template
    assert not planted.engine().refuses(steering)
    assert again(method_name)[0].digest == steering.digest


def test_two_classes_that_do_not_differ_raise(method_name):
    if "site" not in at_site(method_name):
        pytest.skip(f"{method_name} reads no activations")
    same = tuple(planted.pairs(torch.Generator().manual_seed(0), 8)[0])
    with pytest.raises(DataError, match="same mean activation|identical"):
        fitted(method_name, Contrast(same, same, paired=True, concept="nothing"))


def test_a_model_that_gives_nan_raises(method_name):
    if "site" not in at_site(method_name):
        pytest.skip(f"{method_name} reads no activations")
    import copy

    from steerlab.engines.hf import HFEngine
    from steerlab.testing import tiny

    model = copy.deepcopy(planted.engine().model)
    with torch.no_grad():
        model.get_input_embeddings().weight[30:60] = float("nan")
    broken = HFEngine(model, tiny.tokenizer(), name="broken")
    with pytest.raises(DataError, match="NaN or infinite"):
        method(method_name, {**small(method_name), **at_site(method_name)}).fit(broken, planted.contrast())


def test_a_site_that_the_model_lacks_raises_with_the_last_one_there_is(method_name):
    if "site" not in at_site(method_name):
        pytest.skip(f"{method_name} has no site")
    with pytest.raises(SiteError, match="2 blocks, 0 to 1"):
        fitted(method_name, site="7")


def test_missing_answers_are_told_where_they_are_needed(method_name):
    bare = Contrast(
        tuple(Example.ask(e.instruction) for e in planted.contrast().positive),
        tuple(Example.ask(e.instruction) for e in planted.contrast().negative),
        paired=True,
        concept=planted.KEY,
    )
    try:
        steering = fitted(method_name, bare)
    except DataError as problem:
        assert "answer" in str(problem)  # noqa: PT017
    else:
        assert steering.interventions or steering.prompt
