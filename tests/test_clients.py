"""openai, LangChain, LiteLLM and ollama, in an environment of their own, against a served pilot (make test-clients)."""

from __future__ import annotations

import json
import os
import subprocess
from itertools import groupby
from pathlib import Path

import pytest

from serving import process

PYTHON = os.environ.get("STEERLAB_CLIENTS")
DOCS = Path(__file__).parents[1] / "docs" / "serving.md"


def table(rows) -> str:
    """The table of docs/serving.md."""
    lines = ["| client | what was done with it |\n", "|---|---|\n"]
    for (client, version), mine in groupby(rows, key=lambda row: (row["client"], row["version"])):
        lines.append(f"| {client} {version} | {'; '.join(row['what'] for row in mine)} |\n")
    return "".join(lines)


CALLS = (
    '{% if tools %}<|system|>\nTo call: <tool_call>{"name": ...}</tool_call>'
    "{% for t in tools %} {{ t.function.name }}{% endfor %}<|end|>\n{% endif %}"
)
TURN = (
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    '<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}'
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.mark.skipif(PYTHON is None, reason="make test-clients makes their environment")
def test_other_peoples_clients_work(tmp_path):
    with process(*_served(tmp_path), "--served-model-name", "pilot", "--adopt", folder=tmp_path) as server:
        script = Path(__file__).with_name("clients.py")
        ran = subprocess.run(
            [str(PYTHON), str(script), server.address, "pilot"], capture_output=True, text=True, timeout=900,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    rows = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    print(table(rows))
    broken = [f"{row['client']}, {row['what']}:\n{row['problem']}" for row in rows if row["problem"]]
    assert len(rows) >= 20 and not broken, "\n".join(broken)
    if os.environ.get("STEERLAB_WRITE"):
        head, rest = DOCS.read_text().split("<!-- clients -->\n")
        DOCS.write_text(f"{head}<!-- clients -->\n{table(rows)}<!-- /clients -->{rest.split('<!-- /clients -->')[1]}")
    assert DOCS.read_text().split("<!-- clients -->\n")[1].split("<!-- /clients -->")[0] == table(rows)


def _served(folder: Path) -> list[str]:
    """The pilot with a chat template that has a form for calls, and a steering of it."""
    from steerlab import cli
    from steerlab.loading import load

    with pytest.raises(SystemExit) as end:
        cli.main(("fit", "diff-means", "--data", "pilot:pirate", "--out", str(folder / "pirate.safetensors")))
    assert not end.value.code
    engine = load("pilot")
    engine.model.save_pretrained(folder / "model")
    engine.tokenizer.chat_template = "{{ bos_token }}" + CALLS + TURN
    engine.tokenizer.save_pretrained(folder / "model")
    return [str(folder / "pirate.safetensors"), "--model", str(folder / "model")]
