"""Files of steerings that are missing, cut short, hostile or on a full disk: told in a sentence, and nothing is half-written."""

from __future__ import annotations

import copy
import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import steerlab as sl
from mistakes import left_in, told
from steerlab import artefact, files
from steerlab.errors import ArtefactError

# --- files ------------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path, steering):
    steering.save(tmp_path / "formal.safetensors")
    with told(ArtefactError, "there is no file", "formal.safetensors"):
        sl.Steering.load(tmp_path / "fromal.safetensors")


def test_a_truncated_file(tmp_path, steering):
    path = tmp_path / "cut.safetensors"
    steering.save(path)
    whole = path.read_bytes()
    for size in (0, 4, 40, len(whole) - 7):
        path.write_bytes(whole[:size])
        with told(ArtefactError, f"({size} bytes)", "not a readable safetensors file", "cut short"):
            sl.Steering.load(path)


def test_a_pickle_is_never_opened(tmp_path):
    path = tmp_path / "evil.safetensors"
    torch.save({"v": torch.ones(3)}, path)
    with told(ArtefactError, "not a readable safetensors file"):
        sl.Steering.load(path)


def test_a_safetensors_file_of_something_else(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    with told(ArtefactError, "without a steering in its header", "weight"):
        sl.Steering.load(path)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{not json", ["not valid JSON"]),
        ("[1, 2]", ["list", "object"]),
        ('{"format": 99, "interventions": [], "prompt": null, "meta": {}}', ["format 99", "Upgrade"]),
        ('{"format": "x"}', ["'x'", "from 1 to"]),
        ('{"format": 1, "interventions": 3, "prompt": null, "meta": {}}', ["valid steering"]),
        ('{"format": 1, "interventions": [], "prompt": null}', ["valid steering", "meta"]),
        ('{"format": 1, "interventions": [], "prompt": null, "meta": {"modle": 1}}', ["valid steering", "modle"]),
        ('{"format": 1, "interventions": [], "prompt": null, "meta": {}, "run": "rm"}', ["unknown entries", "run"]),
    ],
)
def test_a_hostile_header(tmp_path, document, words):
    path = tmp_path / "x.safetensors"
    save_file({}, path, metadata={artefact.KEY: document})
    with told(ArtefactError, *words):
        sl.Steering.load(path)


def test_a_file_with_an_unknown_kind_field_or_tensor(tmp_path, steering):
    path = tmp_path / "x.safetensors"
    steering.save(path)
    document, tensors = artefact.read(path)

    def changed(**edit):
        altered = copy.deepcopy(document)
        altered["interventions"][0]["edit"] = {**altered["interventions"][0]["edit"], **edit}
        return altered

    for altered, extra, words in (
        (changed(kind="Shfit"), {}, ["'Shfit'", "'Shift'"]),
        (changed(vv=1), {}, ["'vv'", "'v'"]),
        (document, {"stowaway": torch.ones(2)}, ["'stowaway'", "doesn't mention"]),
        (document, {"0.edit.v": torch.full((32,), float("inf"))}, ["Shift", "NaN or infinite"]),
        (document, {"0.edit.v": torch.ones(32, dtype=torch.float16)}, ["float16", "float32"]),
    ):
        artefact.write(path, altered, {**tensors, **extra})
        with told(ArtefactError, *words):
            sl.Steering.load(path)
    artefact.write(path, document, {})
    with told(ArtefactError, "names the tensor '0.edit.v'", "doesn't hold"):
        sl.Steering.load(path)


def test_a_full_disk_while_saving(tmp_path, steering, monkeypatch):
    path = tmp_path / "kept.safetensors"
    steering.save(path)
    before = path.read_bytes()

    def full(*_args, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with told(ArtefactError, "no space left", "nothing was changed", "Free some space"):
        steering.scaled(2).save(path)
    assert path.read_bytes() == before
    assert left_in(tmp_path) == ["kept.safetensors"]


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/bin/mount").exists(), reason="mounts a small disk, as root")
def test_a_disk_that_is_really_full(tmp_path, steering):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        big = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(4096))),))
        with told(ArtefactError, "no space left", "nothing was changed"):
            big.save(disk / "x.safetensors")
        assert left_in(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_written(tmp_path, steering):
    (tmp_path / "file").write_text("in the way")
    with told(ArtefactError, "can't be written", "Nothing was changed"):
        steering.save(tmp_path / "file" / "x.safetensors")


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "before")
    with pytest.raises(KeyboardInterrupt), files.whole(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert left_in(tmp_path) == ["a.txt"]


# --- files that hold what can't be -------------------------------------------------------------------------------------------


def test_one_direction_at_many_sites_is_saved(tmp_path):
    v = torch.ones(8)
    one = sl.Steering(tuple(sl.Intervention(sl.Site(n), sl.Shift(v)) for n in range(3)))
    both = one + one
    both.save(tmp_path / "x.safetensors")
    assert sl.Steering.load(tmp_path / "x.safetensors").digest == both.digest


def test_a_name_that_utf8_cannot_hold_is_saved(tmp_path):
    odd = sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(8))),), meta=sl.Meta(data={"source": "a\udcff"}))
    odd.save(tmp_path / "x.safetensors")
    assert sl.Steering.load(tmp_path / "x.safetensors").meta == odd.meta


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (("interventions", 0, "control", "value"), 10**400),
        (("interventions", 0, "site"), "resid@" + "9" * 5000),
        (("interventions", 0, "positions", "prompt"), [[None]]),
        (("prompt",), {"positive": 3}),
        (("prompt",), {"positive": "a", "strength": "x"}),
        (("meta", "fingerprint"), "abc"),
        (("interventions", 0, "edit"), "nested"),
    ],
)
def test_a_header_of_impossible_values(tmp_path, steering, entry, value):
    document, tensors = steering._document()
    document = json.loads(json.dumps(document))
    at = document
    for key in entry[:-1]:
        at = at[key]
    if value == "nested":
        for _ in range(900):
            at["edit"] = {"kind": "OneSided", "inner": at["edit"]}
    else:
        at[entry[-1]] = value
    artefact.write(tmp_path / "x.safetensors", document, tensors)
    with pytest.raises(ArtefactError, match=r"x\.safetensors"):
        sl.Steering.load(tmp_path / "x.safetensors")


def test_a_header_of_thousands_of_digits(tmp_path):
    metadata = {artefact.KEY: '{"format": ' + "1" * 5000 + "}"}
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata=metadata)
    with told(ArtefactError, "not valid JSON"):
        sl.Steering.load(tmp_path / "x.safetensors")
