"""Every field of the chat endpoints of OpenAI, vLLM and llama.cpp, and what becomes of it here.

Sources: OpenAI's `CompletionCreateParams` (openai 3.54), vLLM's `entrypoints/openai/chat_completion/protocol.py`, llama.cpp's
`tools/server/README.md` at 00dc805 (its chat endpoint takes what `/completion` takes). `table` writes the table of
docs/serving.md, and a test holds it to what the server does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENAI = (
    "messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens "
    "metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options "
    "prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop store stream "
    "stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options"
)
VLLM = (
    "messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n presence_penalty "
    "response_format seed stop stream stream_options temperature top_p tools tool_choice reasoning_effort include_reasoning "
    "parallel_tool_calls user use_beam_search top_k min_p repetition_penalty length_penalty stop_token_ids "
    "include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens "
    "truncate_prompt_tokens prompt_logprobs allowed_token_ids bad_words echo add_generation_prompt continue_final_message "
    "add_special_tokens documents chat_template chat_template_kwargs mm_processor_kwargs structured_outputs priority "
    "request_id logits_processors return_tokens_as_token_ids return_token_ids cache_salt kv_transfer_params vllm_xargs "
    "max_repetition_pattern_size min_repetition_pattern_size repetition_min_count"
)
LLAMA_CPP = (
    "messages model frequency_penalty logit_bias max_tokens n presence_penalty response_format seed stop stream "
    "stream_options temperature top_p tools tool_choice parallel_tool_calls logprobs top_logprobs chat_template_kwargs "
    "top_k min_p ignore_eos cache_prompt n_predict n_indent n_keep n_probs min_keep dynatemp_range dynatemp_exponent "
    "typical_p repeat_penalty repeat_last_n mirostat mirostat_tau mirostat_eta xtc_probability xtc_threshold dry_multiplier "
    "dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers grammar json_schema samplers id_slot "
    "t_max_predict_ms post_sampling_probs return_tokens return_progress timings_per_token response_fields lora "
    "reasoning_effort reasoning_format reasoning_control n_cmpl n_cache_reuse sse_ping_interval"
)

_SAMPLER = "this sampler isn't built; temperature, min_p, top_k, top_p and penalties are"
_TEXT = "replies are text"
ELSEWHERE: dict[str, str] = {
    "audio": _TEXT,
    "function_call": "it is OpenAI's older form; use tool_choice",
    "functions": "it is OpenAI's older form; use tools",
    "moderation": "nothing is moderated",
    "prediction": "replies aren't predicted; leave it out",
    "web_search_options": "nothing is searched; offer a tool",
    "truncate_prompt_tokens": "a prompt is never cut; shorten it",
    "prompt_logprobs": "a prompt's tokens aren't scored; ask for logprobs of the reply",
    "allowed_token_ids": "use logit_bias or structured_outputs",
    "bad_words": "use logit_bias",
    "documents": "put them into a message",
    "chat_template": "a request brings no template; the model's own is used",
    "mm_processor_kwargs": _TEXT,
    "logits_processors": "a request brings no code",
    "return_tokens_as_token_ids": "use return_token_ids",
    "kv_transfer_params": "caches aren't moved between servers",
    "vllm_xargs": "use steering, readouts and unsteered",
    "max_repetition_pattern_size": "repetition doesn't end a reply; use repetition_penalty",
    "min_repetition_pattern_size": "repetition doesn't end a reply; use repetition_penalty",
    "repetition_min_count": "repetition doesn't end a reply; use repetition_penalty",
    "guided_json": "it is vLLM's older form; use response_format or structured_outputs",
    "guided_regex": "it is vLLM's older form; use structured_outputs",
    "guided_choice": "it is vLLM's older form; use structured_outputs",
    "n_predict": "use max_tokens",
    "n_indent": "use response_format",
    "n_keep": "a prompt is never cut; shorten it",
    "n_probs": "use top_logprobs",
    "min_keep": _SAMPLER,
    "dynatemp_range": _SAMPLER,
    "dynatemp_exponent": _SAMPLER,
    "typical_p": _SAMPLER,
    "repeat_penalty": "use repetition_penalty, which looks at the whole prompt and reply",
    "repeat_last_n": "use repetition_penalty, which looks at the whole prompt and reply",
    "mirostat": _SAMPLER,
    "mirostat_tau": _SAMPLER,
    "mirostat_eta": _SAMPLER,
    "xtc_probability": _SAMPLER,
    "xtc_threshold": _SAMPLER,
    "dry_multiplier": _SAMPLER,
    "dry_base": _SAMPLER,
    "dry_allowed_length": _SAMPLER,
    "dry_penalty_last_n": _SAMPLER,
    "dry_sequence_breakers": _SAMPLER,
    "grammar": "GBNF isn't read; use structured_outputs with json, regex or choice",
    "json_schema": "use response_format",
    "samplers": "their order is fixed: penalties, temperature, min_p, top_k, top_p",
    "id_slot": "there are no slots",
    "t_max_predict_ms": "use max_tokens; the server has a --timeout",
    "post_sampling_probs": "log-probabilities are the model's own",
    "return_tokens": "use return_token_ids",
    "return_progress": "a prompt is read in one go",
    "timings_per_token": "see /metrics",
    "response_fields": "the whole answer is told",
    "lora": "adapters aren't served; a steering of weights is",
    "reasoning_format": "thinking is told apart, as reasoning_content",
    "reasoning_control": "use chat_template_kwargs",
    "n_cmpl": "use n",
    "n_cache_reuse": "a prompt is read whole",
    "sse_ping_interval": "streams send no pings",
}
TAKEN: dict[str, str] = {
    "messages": "text alone; images get 400 and a sentence",
    "model": "steered by name, too: `base+0.8*formal`",
    "logit_bias": "by token id, −100 to 100",
    "max_tokens": "up to `--most-tokens`",
    "max_completion_tokens": "up to `--most-tokens`",
    "n": "up to 8; reply k draws with seed + k",
    "logprobs": "the model's own, before penalties and temperature",
    "parallel_tool_calls": "false: a reply ends with its first call",
    "response_format": "`text`, `json_object`, `json_schema`: the reply has that form for certain",
    "stop": "up to 64",
    "temperature": "0 is greedy; up to 2",
    "tool_choice": "`none`, `auto`, `required`, or a function by name",
    "tools": "functions; `strict` holds calls to their schema",
    "top_k": "0 and −1: all",
    "repetition_penalty": "over the prompt and the reply",
    "frequency_penalty": "over the reply",
    "presence_penalty": "over the reply",
    "structured_outputs": "`json`, `json_object`, `regex`, `choice`",
    "echo": "the message that is continued is told again with the reply",
    "add_generation_prompt": "false: the assistant's turn isn't begun",
    "continue_final_message": "the last message, the assistant's, is gone on with",
    "chat_template_kwargs": "`enable_thinking`, where the template has it",
    "min_tokens": "no end token or stop string before",
    "stream_options": "`include_usage`",
}


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Each field: whose it is, what becomes of it (taken, left, its default only, refused), and what is to be said of that."""
    from .schema import LEFT, UNBUILT, ChatRequest

    servers = {"OpenAI": OPENAI.split(), "vLLM": VLLM.split(), "llama.cpp": LLAMA_CPP.split()}
    for name in sorted({name for names in servers.values() for name in names}):
        whose = ", ".join(server for server, names in servers.items() if name in names)
        if name not in ChatRequest.model_fields:
            yield name, whose, "refused", ELSEWHERE[name]
        elif name in LEFT:
            yield name, whose, "left", "it says nothing about the reply"
        elif name in UNBUILT:
            yield name, whose, "its default", UNBUILT[name]
        else:
            yield name, whose, "taken", TAKEN.get(name, "")


def table() -> str:
    """The table in Markdown."""
    head = "| field | of | here | |\n|---|---|---|---|\n"
    return head + "".join(f"| `{name}` | {whose} | {here} | {words} |\n" for name, whose, here, words in rows())
