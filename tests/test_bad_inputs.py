"""Bad inputs: each gets a message that says what was given, what was expected, the nearest legal thing and what to do.

Here: data, sites, edits and strengths. Files, settings and calls of a model are in test_bad_inputs_*.py, the readers' own
bad inputs in test_data_*.py.
"""

from __future__ import annotations

import copy

import torch

import steerlab as sl
from mistakes import ASK, told
from steerlab.engines.hf import HFEngine
from steerlab.errors import ArtefactError, ConfigError, DataError, EditError, SiteError, UnsupportedError
from steerlab.methods.base import method
from steerlab.testing import planted, tiny

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


def test_steerings_of_different_templates(steering):
    from dataclasses import replace

    one, other = (replace(steering, meta=sl.Meta(template=t)) for t in ("a" * 64, "plain"))
    with told(ArtefactError, "different chat templates", "plain"):
        one + other


def test_a_clamp_to_serve_one_sided_where_there_is_none(steering):
    with told(EditError, "no clamp", "Shift"):
        steering.one_sided()
