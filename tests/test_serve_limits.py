"""Who may ask the server, how often and how long; and what it tells of itself: metrics, logs, pages that may call."""

from __future__ import annotations

import json
import logging

import pytest

from serving import TEXT, Here, clamp, holding, put, refused, saved, shift
from steerlab.errors import ConfigError
from steerlab.serve.guard import JsonLines
from steerlab.serve.keys import Keys
from steerlab.serve.settings import Settings, model_name
from steerlab.testing import tiny


@pytest.fixture(scope="module")
def engine():
    return tiny.engine("llama")


@pytest.fixture(scope="module")
def server(engine, tmp_path_factory):
    with holding(engine, tmp_path_factory.mktemp("store")) as here:
        yield here


# --- who may, how often, how long -------------------------------------------------------------------------------------


def test_keys_and_scopes(engine, tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(
        "keys:\n - {name: reader, key: reader-reader-reader}\n"
        " - {name: writer, key: writer-writer-writer, scopes: [use, upload]}\n"
    )
    here = Here(engine, tmp_path / "store", Keys.read(path, "the-key-of-the-admin"))

    def ask(method, where, key, **given):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return here.ask(method, where, headers=headers, **given).status_code

    reader, writer, admin = "reader-reader-reader", "writer-writer-writer", "the-key-of-the-admin"
    data = saved(shift(engine, 1), tmp_path)
    assert [ask("GET", "/v1/models", k) for k in (None, "wrong", "", reader, writer, admin)] == [
        401,
        401,
        401,
        200,
        200,
        200,
    ]
    assert [ask("PUT", "/v1/steerings/a", k, content=data) for k in (None, reader, writer, admin)] == [
        401,
        403,
        201,
        200,
    ]
    assert [ask("GET", "/metrics", k) for k in (None, reader, writer, admin)] == [401, 403, 403, 200]
    assert [ask("DELETE", "/v1/steerings/a", k) for k in (None, reader, writer, admin)] == [401, 403, 403, 200]
    assert [ask("GET", where, None) for where in ("/health", "/ready")] == [200, 200]
    here.close()


def test_without_keys_only_this_machines_names_are_answered(server):
    assert server.ask("GET", "/v1/models", headers={"host": "127.0.0.1:8000"}).status_code == 200
    refused(server.ask("GET", "/v1/models", headers={"host": "evil.example"}), 403, "no keys")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("keys: 3", "no list"),
        ("keys: []", "holds no key"),
        ("keys: [{name: a, key: short}]", "16 characters"),
        ("keys: [{name: a, key: long-enough-to-be-one, scopes: [usee]}]", "Did you mean 'use'"),
        ("keys: [{name: a, kee: x}]", "Did you mean 'key'"),
        (
            "keys: [{name: a, key: long-enough-to-be-one}, {name: a, key: long-enough-to-be-too}]",
            "two keys of one name",
        ),
    ],
)
def test_a_file_of_keys_is_checked(tmp_path, text, match):
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(ConfigError, match=match):
        Keys.read(tmp_path / "keys.yaml")


def test_too_many_requests_get_429_and_when_to_come_again(engine, tmp_path):
    here = Here(engine, tmp_path, rate=2)
    assert [here.chat(TEXT, max_tokens=1).status_code for _ in range(3)] == [200, 200, 429]
    told = here.chat(TEXT, max_tokens=1)
    assert refused(told, 429)["type"] == "rate_limit_error"
    assert int(told.headers["retry-after"]) >= 1
    here.close()
    here = Here(engine, tmp_path, rows=1, waiting=1)
    refused(here.chat(TEXT, n=3), 429, "as many as are taken")
    assert here.chat(TEXT, n=2, max_tokens=2).status_code == 200
    here.close()


def test_a_prompt_far_beyond_the_context_is_refused_before_it_is_made_tokens(engine, tmp_path, monkeypatch):
    here = Here(engine, tmp_path)
    read: list[int] = []
    text_ids = here.service.prompts._renderer.text_ids
    monkeypatch.setattr(
        here.service.prompts._renderer, "text_ids", lambda text: read.append(len(text)) or text_ids(text)
    )
    long = "w1 " * 300_000
    for body in (
        {"messages": [{"role": "user", "content": long}]},
        {"messages": [{"role": "user", "content": "w1 " * 3000}] * 100},
    ):
        refused(here.post("/v1/chat/completions", **body), 400, "context holds", "Shorten")
    refused(here.post("/v1/completions", prompt=long), 400, "context holds")
    assert max(read) <= 16 * engine.context  # of nine hundred thousand
    blank = " " * 5000 + "w1 w2"
    assert here.chat(blank, max_tokens=1).status_code == 200
    fits = "w1 " * (engine.context // 2)
    assert here.chat(fits, max_tokens=1).status_code == 200
    here.close()


def test_a_model_is_called_by_a_name_and_not_by_a_path(tmp_path, engine):
    assert model_name("pilot") == "pilot"
    assert model_name("owner/name") == "owner/name"
    for path in ("/data/models/My-Model", "./My-Model", "../x/My-Model", "a/b/My-Model", "~/My-Model"):
        assert model_name(path) == "My-Model"
    assert model_name(str(tmp_path)) == tmp_path.name
    for name in ("", "a+b", " a", "a\x1b[2J", "\u202ea", "x" * 257):
        with pytest.raises(ConfigError, match="can't be called"):
            Settings(name=name)
    here = Here(engine, tmp_path, name="my model")
    assert here.ask("GET", "/v1/models/my model").status_code == 200
    told = here.chat(TEXT, max_tokens=1, model="my model").json()
    assert told["model"] == "my model"
    here.close()


def test_time_is_up_and_the_end_is_near(engine, tmp_path):
    here = Here(engine, tmp_path, timeout=0.001)
    refused(here.chat(TEXT, max_tokens=100), 504, "0.001 s")
    here.close()
    here = Here(engine, tmp_path)
    assert here.ask("GET", "/ready").status_code == 200
    here.service.draining = True
    refused(here.chat(TEXT), 503, "ending")
    assert here.ask("GET", "/ready").status_code == 503
    assert here.ask("GET", "/health").status_code == 200
    here.close()
    assert here.service.scheduler.alive is False


# --- what it tells of itself ------------------------------------------------------------------------------------------


def test_metrics_count_and_monitors_are_histograms(engine, tmp_path):
    here = Here(engine, tmp_path, monitors=("watched",))
    put(here, "watched", clamp(engine, 1))
    told = here.chat(TEXT, max_tokens=5, temperature=0).json()
    assert "readouts" not in told["choices"][0]["steering"]
    text = here.ask("GET", "/metrics").text
    made = told["usage"]["completion_tokens"]
    assert f'steerlab_readout_count{{steering="watched",site="resid@1"}} {made}' in text
    assert 'steerlab_requests_total{route="/v1/chat/completions",status="200"} 1' in text
    assert "steerlab_running 0" in text
    for line in text.splitlines():
        assert line.startswith("# ") or isinstance(float(line.rsplit(" ", 1)[1]), float)
    here.close()


def test_logs_are_json_lines_without_prompts(engine, tmp_path, caplog):
    secret = "w41 w42 w43"
    for prompts in (False, True):
        here = Here(engine, tmp_path, log_prompts=prompts)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="steerlab.serve"):
            assert here.chat(secret, max_tokens=2, steering=[]).status_code == 200
            here.chat(secret, steering="nothing")
        lines = [JsonLines().format(record) for record in caplog.records if record.name == "steerlab.serve"]
        rows = [json.loads(line) for line in lines]
        assert [row["status"] for row in rows] == [200, 404]
        assert rows[0]["tokens"] <= 2
        assert any(secret in line for line in lines) == prompts
        here.close()


def test_pages_of_named_origins_may_call(engine, tmp_path):
    here = Here(engine, tmp_path, cors=("https://a.example",))

    def preflight(origin):
        asks = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        }
        return here.ask("OPTIONS", "/v1/chat/completions", headers=asks)

    assert preflight("https://a.example").headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in preflight("https://b.example").headers
    here.close()


def test_paths_and_methods_that_arent_there(server):
    refused(server.ask("GET", "/v1/nothing"), 404, "/v1/nothing")
    refused(server.ask("GET", "/v1/chat/completions"), 405)
    assert server.ask("GET", "/openapi.json").status_code == 200
