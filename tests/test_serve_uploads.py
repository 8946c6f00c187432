"""Steerings that are uploaded to the server: kept, listed, fetched, removed, and refused where they aren't this model's."""

from __future__ import annotations

import pickle
import struct

import pytest
import torch

from serving import TEXT, Here, made, put, refused, saved, shift
from steerlab.edits import Shift
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
    assert not [p for p in server.service.settings.store.iterdir() if p.name.startswith(".")]


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
    assert not list(tmp_path.glob(".*"))
    again.close()
    shift(tiny.engine("gpt2"), 1).save(tmp_path / "alien.safetensors")
    with pytest.raises(Exception, match="Move it out of the folder"):
        Here(engine, tmp_path)
