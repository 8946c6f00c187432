"""Tool calls and thinking: templates in the styles of Hermes, Qwen 3 and Llama 3, a byte-level tokenizer, and a real model.

It is a GPT-2 whose weights make it say a given reply: the state at each position is the one-hot code of the next token.
"""

from __future__ import annotations

import json

import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import Here, Listening, shift
from steerlab.engines.hf import HFEngine
from steerlab.positions import GENERATED
from steerlab.serve.talk import Call, Form, Reader, Told
from steerlab.testing.precision import FEW

QWEN = (
    "{%- if tools %}<|im_start|>system\n{%- if messages[0].role == 'system' %}{{ messages[0].content }}{%- endif %}\n"
    "Functions are described within <tools></tools>:\n<tools>{%- for tool in tools %}\n{{ tool | tojson }}{%- endfor %}\n"
    "</tools>\nTo call one, write a JSON object within <tool_call></tool_call>:\n"
    '<tool_call>\n{\\"name\\": <name>, \\"arguments\\": <object>}'
    "\n</tool_call><|im_end|>\n"
    "{%- elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{%- elif m.role == 'assistant' %}<|im_start|>assistant\n"
    "{%- if m.reasoning_content is defined %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{%- endif %}{{ m.content }}"
    "{%- for call in m.tool_calls %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{%- endfor %}<|im_end|>\n"
    "{%- elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.name }}: {{ m.content }}\n</tool_response><|im_end|>\n"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
)
QWEN3 = (
    QWEN.removesuffix("{%- endif %}")
    + "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{%- endif %}{%- endif %}"
)
OPENS = QWEN.removesuffix("{%- endif %}") + "<think>\n{%- endif %}"  # as templates of models that always think do
LLAMA = (
    "<|begin_of_text|>{%- if tools %}<|start_header_id|>system<|end_header_id|>\n\nFunctions:\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.\n'
    "{%- for t in tools %}{{ t | tojson(indent=4) }}\n{%- endfor %}<|eot_id|>{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    '{{ {"output": m.content} | tojson }}<|eot_id|>'
    "{%- elif 'tool_calls' in m %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}<|eot_id|>'
    "{%- else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{%- endif %}"
)
MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASK = [{"role": "user", "content": "What is it like in Rome?"}]
ROME, OSLO = '{"name": "weather", "arguments": {"city": "Rome"}}', '{"name": "weather", "arguments": {"city": "Ösló"}}'
CALLED = f"Let me see.\n<tool_call>\n{ROME}\n</tool_call>\n<tool_call>\n{OSLO}\n</tool_call>"
ROMAN = '{"name": "weather", "parameters": {"city": "Rome"}}'


def tokenizer(template: str, marks_are_special: bool):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    built.add_tokens([AddedToken(word, special=marks_are_special) for word in MARKS])
    end = "<|eot_id|>" if "<|eot_id|>" in template else "<|im_end|>"
    made = PreTrainedTokenizerFast(tokenizer_object=built, eos_token=end)
    made.chat_template = template
    return made


def engine(template: str, *, marks_are_special: bool = False) -> HFEngine:
    """A GPT-2 without attention and MLPs, whose scores are its position's own code."""
    from transformers import GPT2Config, GPT2LMHeadModel

    words = tokenizer(template, marks_are_special)
    config = GPT2Config(
        vocab_size=len(words), n_embd=288, n_layer=2, n_head=4, n_positions=2048, tie_word_embeddings=False,
        bos_token_id=words.eos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
        model.lm_head.weight.copy_(0.3 * torch.eye(288)[: len(words)])
    return HFEngine(model, words, name="scripted")


class Scripted:
    """A server whose model says what it is told to, once it knows how long the prompt is."""

    def __init__(self, template: str, folder, *, marks_are_special: bool = False, listens: bool = False) -> None:
        self.engine = engine(template, marks_are_special=marks_are_special)
        self.tokens = self.engine.tokenizer
        shift(self.engine, 1, 0.3, "0", positions=GENERATED).save(folder / "firm.safetensors")
        self.here = None if listens else Here(self.engine, folder)

    def says(self, reply: str, length: int) -> None:
        """Say a reply after a prompt of so many tokens, and end."""
        script = [*self.tokens(reply, add_special_tokens=False)["input_ids"], self.tokens.eos_token_id]
        with torch.no_grad():
            self.engine.model.transformer.wpe.weight.zero_()
            for n, token in enumerate(script):
                self.engine.model.transformer.wpe.weight[length - 1 + n, token] = 10.0

    def ask(self, reply: str, **body):
        """The reply to a request, whole and streamed, which have to be the same; and the stream's finish."""
        body = {"messages": ASK, "temperature": 0, "max_tokens": 300, **body}
        told = self.here.post("/v1/chat/completions", **{**body, "max_tokens": 1})
        assert told.status_code == 200, told.text
        self.says(reply, told.json()["usage"]["prompt_tokens"])
        choice = self.here.post("/v1/chat/completions", **body).json()["choices"][0]
        text = self.here.post("/v1/chat/completions", stream=True, **body).text
        streamed = [json.loads(line[6:])["choices"][0] for line in text.split("\n\n") if line.startswith("data: {")]
        deltas = [c["delta"] for c in streamed]
        message = choice["message"]
        assert "".join(d.get("content") or "" for d in deltas) == (message["content"] or "")
        assert "".join(d.get("reasoning_content") or "" for d in deltas) == message.get("reasoning_content", "")
        calls = [call for d in deltas for call in d.get("tool_calls", ())]
        assert [c["index"] for c in calls] == list(range(len(calls)))
        assert [c["function"] for c in calls] == [c["function"] for c in message.get("tool_calls", ())]
        assert streamed[-1]["finish_reason"] == choice["finish_reason"]
        return choice


@pytest.fixture
def scripted(tmp_path):
    made = []

    def make(template: str, **how) -> Scripted:
        made.append(Scripted(template, tmp_path, **how))
        return made[-1]

    yield make
    for one in made:
        if one.here is not None:
            one.here.close()


def functions(choice) -> list[tuple[str, dict]]:
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in choice["message"]["tool_calls"]]


@pytest.mark.parametrize("marks_are_special", [False, True])
def test_calls_between_tags(scripted, marks_are_special):
    server = scripted(QWEN, marks_are_special=marks_are_special)
    choice = server.ask(CALLED, tools=[WEATHER])
    assert functions(choice) == [("weather", {"city": "Rome"}), ("weather", {"city": "Ösló"})]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Let me see.", "tool_calls")
    if marks_are_special:
        return
    for reply in (
        "It is warm.",
        "<tool_call>{broken</tool_call>",
        f"<tool_call>{ROME.replace('weather', 'rm')}</tool_call> so",
    ):
        choice = server.ask(reply, tools=[WEATHER])
        assert (choice["message"]["content"], choice["finish_reason"]) == (reply, "stop")
        assert "tool_calls" not in choice["message"]
    short = '<tool_call>{"name": "weather"}</tool_call>'
    assert functions(server.ask(short, tools=[WEATHER])) == [("weather", {})]
    assert server.ask(short)["message"]["content"] == short  # no tool was offered
    assert server.ask(short, tools=[WEATHER], tool_choice="none")["message"]["content"] == short


def test_a_reply_that_is_the_json_of_a_call(scripted):
    server = scripted(LLAMA)
    for reply in (ROMAN, f"<|python_tag|>{ROMAN}; {ROMAN}"):
        choice = server.ask(reply, tools=[WEATHER])
        assert functions(choice)[0] == ("weather", {"city": "Rome"})
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    for reply in ("It is {warm}.", '{"name": "weather", "parameters"', '{"name": "rm", "parameters": {}}', "{}"):
        choice = server.ask(reply, tools=[WEATHER])
        assert (choice["message"]["content"], choice["finish_reason"]) == (reply, "stop")


def test_thinking_is_told_apart_and_can_be_switched_off(scripted):
    server = scripted(QWEN3)
    choice = server.ask(f"<think>\nRome, hm.\n</think>\n\nWarm.\n<tool_call>{ROME}</tool_call>", tools=[WEATHER])
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("Rome, hm.", "Warm.")
    assert functions(choice) == [("weather", {"city": "Rome"})]
    cut = server.ask("<think>\nRome, hm, let me think on and on", max_tokens=12)
    assert (cut["message"]["content"], cut["finish_reason"]) == ("", "length")
    assert cut["message"]["reasoning_content"]
    plain = server.ask("Warm.", chat_template_kwargs={"enable_thinking": False})
    assert plain["message"]["content"] == "Warm."
    sizes = [
        server.here.post("/v1/chat/completions", messages=ASK, max_tokens=1, **more).json()["usage"]["prompt_tokens"]
        for more in ({}, {"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"})
    ]
    assert sizes[0] < sizes[1] == sizes[2]


def test_thinking_that_the_template_begins(scripted):
    choice = scripted(OPENS).ask("Rome, hm.\n</think>\n\nWarm.")
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("Rome, hm.", "Warm.")


@pytest.mark.parametrize(
    ("template", "reply", "scope", "begin", "end"),
    [
        (QWEN, f"Let me see.\n<tool_call>{ROME}</tool_call> So.", "tool_calls", "<tool_call>", "</tool_call>"),
        (QWEN3, "<think>\nRome, hm.\n</think>\n\nWarm.", "thinking", "<think>", "</think>"),
        (QWEN, 'So: ```json\n{"warm": true}\n``` it is.', "json", "```json", "```"),
        (LLAMA, ROMAN, "tool_calls", '{"name"', None),
    ],
)
def test_scopes_go_unsteered_token_by_token(scripted, template, reply, scope, begin, end):
    """The model's state depends on the position alone, so each token's log-probability tells whether it was steered."""
    server = scripted(template)

    def logprobs(**body) -> list[float]:
        choice = server.ask(reply, tools=[WEATHER], logprobs=True, **body)
        return [t["logprob"] for t in choice["logprobs"]["content"]]

    plain, steered = logprobs(), logprobs(steering="firm")
    scoped = logprobs(steering="firm", unsteered=[scope])
    words = [server.tokens.decode([i]) for i in server.tokens(reply, add_special_tokens=False)["input_ids"]]
    start = _place(words, begin, 0) + 1
    stop = len(words) if end is None else _place(words, end, start) + 1
    assert stop - start > 5
    # the reply's first token is predicted at the prompt's last one, which `generated` leaves alone
    assert all(abs(a - b) > 1e-4 for a, b in zip(plain[1 : len(words)], steered[1:]))
    assert scoped[start:stop] == pytest.approx(plain[start:stop], abs=FEW)
    outside = [*range(start), *range(stop, len(words))]
    assert [scoped[n] for n in outside] == pytest.approx([steered[n] for n in outside], abs=FEW)


def _place(words: list[str], mark: str, after: int) -> int:
    """The token that completes a mark."""
    return next(n for n in range(after, len(words)) if mark in "".join(words[after : n + 1]))


def test_the_openai_client_calls_a_tool_and_goes_on(tmp_path):
    server = Scripted(QWEN3, tmp_path, listens=True)
    with Listening(server.engine, tmp_path) as listening:
        client = openai.OpenAI(base_url=f"{listening.address}/v1", api_key="none", max_retries=0)

        def say(reply, messages, **how):
            body = {
                "model": "base+0.5*firm",
                "messages": messages,
                "tools": [WEATHER],
                "temperature": 0,
                "max_tokens": 200,
                **how,
            }
            usage = client.chat.completions.create(**{**body, "max_tokens": 1, "stream": False}).usage
            server.says(reply, usage.prompt_tokens)
            return client.chat.completions.create(**body)

        first = say(f"<think>\nHm.\n</think>\n\n<tool_call>\n{ROME}\n</tool_call>", ASK).choices[0]
        (call,) = first.message.tool_calls
        assert (first.finish_reason, call.type, call.function.name) == ("tool_calls", "function", "weather")
        answer = {"role": "tool", "tool_call_id": call.id, "content": "22 degrees"}
        turns = [*ASK, first.message, answer]
        with say("It is 22 degrees.", turns, stream=True) as stream:
            assert "".join(c.choices[0].delta.content or "" for c in stream) == "It is 22 degrees."
        with pytest.raises(openai.BadRequestError, match="which no turn before it made"):
            say("", [*ASK, first.message, {**answer, "tool_call_id": "call_x"}])
        broken = [
            *ASK,
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[]"}}]},
            *ASK,
        ]
        with pytest.raises(openai.BadRequestError, match="expected a JSON object"):
            say("", broken)


def test_the_template_gets_tools_calls_and_answers(tmp_path):
    server = Scripted(QWEN3, tmp_path)
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    turns = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "c1", "content": "22 degrees"},
    ]
    seen = []
    prompts = server.here.service.prompts
    plain = prompts.chat
    prompts.chat = lambda *given: seen.append(plain(*given)) or seen[-1]
    told = server.here.post("/v1/chat/completions", messages=turns, tools=[WEATHER], max_tokens=1)
    server.here.close()
    assert told.status_code == 200, told.text
    written = "".join(server.tokens.decode(seen[0].ids).split())
    for wanted in (
        f"<tools>{json.dumps(WEATHER)}</tools>",
        f"<think>Hm.</think><tool_call>{ROME}</tool_call><|im_end|>",
        "<tool_response>weather: 22 degrees</tool_response>",
    ):
        assert "".join(wanted.split()) in written
    head = server.tokens.decode(seen[0].ids[: seen[0].head])
    assert head.endswith("<|im_start|>user\n")  # the tools before the first message are the template's


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (QWEN, ("Tagged", True, False)), (QWEN3, ("Tagged", True, True)), (LLAMA, ("Bare", False, False)),
        ("{{ tools }}", (None, False, False)), ("<tool_call>\\n<function=name>", (None, False, False)),
        ("<tool_call>{name}\n<arg_key>k</arg_key>", (None, False, False)),
    ],
)  # fmt: skip
def test_templates_are_known_by_what_they_ask_for(template, form):
    found = Form.of(template)
    assert (found.calls and type(found.calls).__name__, found.thinks, found.switch) == form


REPLIES = st.lists(
    st.sampled_from([
        "<tool_call>", "</tool_call>", "<tool", "_call>", ROME, OSLO, ROMAN, "\n", " ", "Hm.", "<think>", "</think>", "</thi",
        "{", "}", ";", '{"name": "rm", "arguments": {}}', "<|python_tag|>", "<|python", "ö",
        '{"name": "weather", "arguments": NaN}',
    ]),
    max_size=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(REPLIES, st.sampled_from([QWEN, LLAMA]), st.booleans(), st.data())
def test_however_a_reply_comes_its_parts_are_the_same_and_nothing_is_taken_back(words, template, opened, data):
    text, form = "".join(words), Form.of(template)
    whole = Reader(form, frozenset({"weather"}), opened=opened and form.thinks).more(text, final=True)
    reader = Reader(form, frozenset({"weather"}), opened=opened and form.thinks)
    found, at = Told(), 0
    while at < len(text):
        step = data.draw(st.integers(1, 9))
        new = reader.more(text[at : at + step])
        found, at = Told(*(a + b for a, b in zip(found, new))), at + step
    found = Told(*(a + b for a, b in zip(found, reader.more("", final=True))))
    assert found == whole
    assert all(isinstance(call, Call) and call.name == "weather" for call in whole.calls)
    if not whole.calls and not whole.thinking and not form.thinks:
        assert whole.content == text
