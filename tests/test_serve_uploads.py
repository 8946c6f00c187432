"""Steerings that are uploaded to the server: kept, listed, fetched, removed, and refused where they aren't this model's."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys

import pytest
import torch

from serving import TEXT, Here, made, put, refused, saved, shift, write_header
from steerlab.edits import Shift
from steerlab.errors import ArtefactError
from steerlab.sites import Site
from steerlab.steering import Intervention, Steering
from steerlab.testing import tiny


def test_uploads_are_listed_fetched_and_removed(server, engine, steerings, tmp_path):
    fresh = shift(engine, 40)
    first = put(server, "fresh", fresh)
    assert first.status_code == 201
    assert first.json()["digest"] == fresh.digest
    assert put(server, "fresh", fresh).status_code == 200
    refused(put(server, "fresh", shift(engine, 41)), 409, "never changes", "fresh-2")
    assert "fresh" in [row["name"] for row in server.ask("GET", "/v1/steerings").json()["data"]]
    assert server.ask("GET", "/v1/steerings/fresh").json()["edits"] == ["Shift"]
    (tmp_path / "got.safetensors").write_bytes(server.ask("GET", "/v1/steerings/fresh/file").content)
    assert Steering.load(tmp_path / "got.safetensors").digest == fresh.digest
    assert "tiny llama+fresh" in [m["id"] for m in server.ask("GET", "/v1/models").json()["data"]]
    assert server.ask("GET", "/v1/models/tiny llama+fresh").status_code == 200
    assert server.ask("DELETE", "/v1/steerings/fresh").json()["deleted"] is True
    refused(server.chat(TEXT, steering="fresh"), 404, "'fresh'")
    refused(server.ask("DELETE", "/v1/steerings/fresh"), 404)
    refused(server.ask("GET", "/v1/models/tiny llama+fresh"), 404)


def test_uploads_that_arent_steerings_of_this_model_are_refused(server, engine, tmp_path):
    def upload(data, name="bad"):
        return server.ask("PUT", f"/v1/steerings/{name}", content=data)

    good = saved(shift(engine, 50), tmp_path)
    refused(upload(pickle.dumps({"a": 1})), 400, "never read")
    refused(upload(b"PK\x03\x04" + b"\0" * 400), 400, "never read")
    refused(upload(good[: len(good) // 2]), 400)
    refused(upload(b""), 400, "0 bytes")
    refused(upload(struct.pack("<Q", 2**60) + b"{}" + b"x" * 100), 400, "whole")
    refused(upload(struct.pack("<Q", 600 << 10) + b"{" + b" " * (700 << 10)), 400, "at most")
    refused(upload(struct.pack("<Q", 20) + b"{" + b"[" * 400), 400)
    wide = Steering((Intervention(Site.parse("1"), Shift(torch.ones(33))),))
    refused(upload(saved(wide, tmp_path)), 400, "width 33")
    other = shift(tiny.engine("gpt2"), 1)
    refused(upload(saved(other, tmp_path)), 400, "fitted on tiny gpt2")
    deep = Steering((Intervention(Site.parse("9"), Shift(torch.ones(32))),))
    refused(upload(saved(deep, tmp_path)), 400)
    huge = made(engine, Shift(torch.full((32,), 2e38)))
    refused(upload(saved(huge + huge, tmp_path)), 400, "strength 1", "NaN or infinite")
    assert "bad" not in [row["name"] for row in server.ask("GET", "/v1/steerings").json()["data"]]
    for name in (
        "base",
        "a b",
        "..%2fx",
        "a%2f..%2fb",
        "%00",
        "x" * 65,
        ".hidden",
        "a..b",
        "ü",
        "a+b",
        "a*b",
        "-a",
        "deadbeef",
    ):
        refused(upload(good, name), 404 if "%2f" in name else 400)
    assert not list(server.service.settings.store.glob(".*.part"))


def test_a_body_that_is_too_large_or_encoded_is_refused(engine, tmp_path):
    here = Here(engine, tmp_path, body=2000, upload=3000)
    refused(here.chat("w1 " * 1000), 413, "2000 bytes")
    refused(here.ask("PUT", "/v1/steerings/x", content=b"x" * 3001), 413, "3000 bytes")
    gzip = {"content-encoding": "gzip", "content-type": "application/json"}
    refused(here.ask("POST", "/v1/chat/completions", content=b"x", headers=gzip), 415)
    refused(here.ask("POST", "/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"}), 415)
    here.close()


def test_a_store_is_read_again_and_checked(engine, tmp_path):
    here = Here(engine, tmp_path, stored=1)
    assert put(here, "kept", shift(engine, 1)).status_code == 201
    refused(put(here, "more", shift(engine, 2)), 409, "remove one")
    here.close()
    (tmp_path / ".kept.safetensors.abc.part").write_bytes(b"half")
    again = Here(engine, tmp_path)
    assert [entry.name for entry in again.service.store.all()] == ["kept"]
    assert not list(tmp_path.glob(".*.part"))
    again.close()


def aside(here) -> dict[str, str]:
    return here.service.store.aside


def test_one_bad_file_hides_none_of_the_others_at_the_start(engine, tmp_path, caplog):
    shift(engine, 1).save(tmp_path / "kept.safetensors")
    shift(tiny.engine("gpt2"), 1).save(tmp_path / "alien.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"{" * 100)
    bad = {
        "null": None,
        "text": "x",
        "lists": {"embed": [None]},
        "huge": {"embed": [10**400]},
        "deep": {"embed": [[1.0]]},
    }
    for name, sketch in bad.items():
        write_header(
            shift(engine, 2),
            tmp_path / f"{name}.safetensors",
            lambda d, s=sketch: d["meta"]["fingerprint"].update(sketch=s),
        )
    for name in ("a+b", "base", "Kept", "Tiny Llama", "deadbeef"):
        shift(engine, 3).save(tmp_path / f"{name}.safetensors")
    here = Here(engine, tmp_path)
    # of two names that differ in case alone, the first in order is served
    assert [row["name"] for row in here.ask("GET", "/v1/steerings").json()["data"]] == ["Kept"]
    reasons = aside(here)
    assert set(reasons) == {"kept", "alien", "noise", "a+b", "base", "Tiny Llama", "deadbeef", *bad}
    assert "in case alone" in reasons["kept"] and "fitted on tiny gpt2" in reasons["alien"]
    assert all("sketch" in reasons[name] for name in bad)
    assert all("own name" in reasons[name] for name in ("base", "Tiny Llama"))
    told = [r.told for r in caplog.records if r.getMessage() == "a file in the store can't be served"]
    assert {t["file"]: t["why"] for t in told} == reasons  # each once, with its reason
    assert not any(str(tmp_path) in why for why in reasons.values())
    refused(here.chat(TEXT, steering="alien"), 409, "fitted on tiny gpt2")
    refused(put(here, "alien", shift(engine, 4)), 409, "taken by a file that can't be served")
    assert here.ask("DELETE", "/v1/steerings/alien").json() == {
        "object": "steering", "name": "alien", "digest": None, "deleted": True,
    }  # fmt: skip
    assert put(here, "alien", shift(engine, 4)).status_code == 201
    assert here.chat(TEXT, steering="alien", max_tokens=1).status_code == 200
    assert f"steerlab_steerings_aside {len(reasons) - 1}" in here.ask("GET", "/metrics").text
    here.close()


def test_a_bad_sketch_is_refused_on_every_way_in(engine, server, tmp_path):
    path = tmp_path / "odd.safetensors"
    for sketch in (None, 3, [1.0], {"embed": None}, {"embed": ["x"]}, {"embed": [True]}, {"embed": [float("nan")]}):
        write_header(shift(engine, 2), path, lambda d, s=sketch: d["meta"]["fingerprint"].update(sketch=s))
        with pytest.raises(ArtefactError, match="sketch"):
            Steering.load(path)
        refused(server.ask("PUT", "/v1/steerings/odd", content=path.read_bytes()), 400, "sketch")
        with pytest.raises(ArtefactError, match="sketch"):
            server.service.bring(path)


def test_names_that_differ_in_case_alone_and_the_models_own_are_refused(engine, tmp_path):
    here = Here(engine, tmp_path / "store")
    assert put(here, "Formal", shift(engine, 1)).status_code == 201
    refused(put(here, "formal", shift(engine, 1)), 409, "'Formal' in case alone")
    for name in ("BASE", "Base"):
        refused(put(here, name, shift(engine, 1)), 400, "own name")
    for name, match in (("fORMAL", "in case alone"), ("base", "own name"), ("TINY LLAMA", "own name")):
        shift(engine, 1).save(tmp_path / f"{name}.safetensors")
        with pytest.raises(ArtefactError, match=match):
            here.service.bring(tmp_path / f"{name}.safetensors")
    here.close()


def test_a_file_that_was_put_there_by_hand_is_never_replaced(engine, tmp_path):
    here = Here(engine, tmp_path)
    shift(engine, 1).save(tmp_path / "mine.safetensors")
    refused(put(here, "mine", shift(engine, 2)), 409, shift(engine, 1).digest[:12])
    assert put(here, "mine", shift(engine, 1)).status_code == 200
    here.close()


HOLDS = """
import sys
from pathlib import Path
from steerlab.errors import ArtefactError
from steerlab.serve.locks import Held
held = Held(Path(sys.argv[1]), shared=sys.argv[2] == "shared")
try:
    held.take()
except ArtefactError as problem:
    print(problem, flush=True)
else:
    print("taken", flush=True)
    sys.stdin.read()
"""


def holder(folder, how: str) -> subprocess.Popen[str]:
    """A process that takes a folder, and has it until it ends."""
    words = [sys.executable, "-c", HOLDS, str(folder), how]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_store_belongs_to_one_process_unless_all_share_it(engine, tmp_path):
    first = Here(engine, tmp_path)
    for how in ("alone", "shared"):
        other = holder(tmp_path, how)
        assert "in use by another server" in said(other)
        end(other)
    first.close()
    one, two = (holder(tmp_path, "shared") for _ in range(2))
    assert said(one) == said(two) == "taken\n"
    with pytest.raises(ArtefactError, match="in use by another server.*--shared"):
        Here(engine, tmp_path)
    Here(engine, tmp_path, shared=True).close()
    end(one)  # killed, and so it holds nothing any more
    end(two)
    Here(engine, tmp_path).close()
