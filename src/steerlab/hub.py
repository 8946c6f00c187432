"""Steerings on the Hugging Face hub: `hf://owner/name` wherever a steering's file is named, and `push_to_hub`.

`hf://owner/name@revision/folder/file.safetensors` names one file of one revision; without a file it is `steering.safetensors`,
without a revision the newest. Only that safetensors file is ever fetched, read and written, with a card beside it; no pickle
crosses in either direction. Tokens, endpoints and the cache are those of huggingface_hub (HF_TOKEN, HF_ENDPOINT, HF_HOME).
"""

from __future__ import annotations

import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .errors import ArtefactError, nearest
from .ranges import in_words

if TYPE_CHECKING:
    from os import PathLike

    from .steering import Steering

FILE = "steering.safetensors"
GREATEST = 2**33  # bytes of a steering's file
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_NAME = re.compile(rf"hf:/{{1,2}}(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[^/@]+))?(?:/(?P<file>.+))?")


class Name(NamedTuple):
    """One file on the hub."""

    repo: str
    revision: str | None
    file: str


def is_name(path: str | PathLike[str]) -> bool:
    """Whether it names something on the hub (a `Path` keeps one of the two slashes)."""
    return str(path).startswith("hf:/")


def parse(path: str | PathLike[str]) -> Name:
    """The file that is named. Raises `ArtefactError`."""
    found = _NAME.fullmatch(str(path))
    file = FILE if found is None or found["file"] is None else found["file"]
    if found is None or not file.endswith(".safetensors") or ".." in file.split("/"):
        raise ArtefactError(
            f"{str(path)!r} is no name of a steering on the hub; expected hf://owner/name, hf://owner/name@revision or"
            " hf://owner/name/file.safetensors (nothing but safetensors is read)."
        )
    return Name(found["repo"], found["revision"], file)


def fetched(path: str | PathLike[str]) -> Path:
    """The file, fetched to the cache (once). Raises `ArtefactError` where there is none, or the hub is out of reach."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, api = parse(path), HfApi()
    try:
        return Path(api.hf_hub_download(name.repo, name.file, revision=name.revision))
    except LocalEntryNotFoundError as problem:  # the hub wasn't reached, and the cache hasn't got it
        raise ArtefactError(f"{path} can't be fetched, and the cache hasn't got it: {_first(problem)}") from problem
    except EntryNotFoundError as problem:
        held: list[str] = []
        with suppress(HfHubHTTPError, OSError):  # a list of names would help, no more
            held = [f for f in api.list_repo_files(name.repo, revision=name.revision) if f.endswith(".safetensors")]
        raise ArtefactError(f"{name.repo} has no file {name.file}. {nearest(name.file, held)}") from problem
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as problem:
        raise ArtefactError(f"{path} can't be fetched: {_first(problem)}") from problem


def push_to_hub(
    steering: Steering, repo: str, *, file: str = FILE, private: bool = False, message: str | None = None
) -> str:
    """Put a steering and its card into a repository, which is made where there is none; gives its `hf://` name at that commit.

    Raises `ArtefactError` where the hub refuses or is out of reach.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name, api = parse(f"hf://{repo}/{file}"), HfApi()
    with tempfile.TemporaryDirectory(prefix="steerlab-") as folder:
        saved = Path(folder) / FILE
        steering.save(saved)
        adds = [
            CommitOperationAdd(name.file, str(saved)),
            CommitOperationAdd("README.md", card(steering, name.repo, name.file).encode()),
        ]
        try:
            api.create_repo(name.repo, private=private, exist_ok=True)
            done = api.create_commit(name.repo, adds, commit_message=message or f"Steering {steering.digest[:16]}")
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as problem:
            raise ArtefactError(f"{repo} can't be written on the hub: {_first(problem)}") from problem
    return f"hf://{name.repo}@{done.oid}" + ("" if name.file == FILE else f"/{name.file}")


def card(steering: Steering, repo: str, file: str) -> str:
    """The repository's README: what the steering does where, what it was fitted on, what was measured, how to use it."""
    meta, (low, high) = steering.meta, steering.domain
    named = f"hf://{repo}" + ("" if file == FILE else f"/{file}")
    head = ["---", "library_name: steerlab", "tags:", "- steering", "- activation-steering"]
    if meta.model and "/" in meta.model and re.fullmatch(rf"{_PART}/{_PART}", meta.model):
        head.append(f"base_model: {meta.model}")
    ways = (
        "both ways: −1 is the opposite, 0 leaves the model as it is, +1 is as fitted"
        if low < 0
        else f"from 0 to {high:g}"
    )
    rows = [f"| {i.edit.kind} | {i.site} | {i.positions} | {i.control.kind} |" for i in steering.interventions]
    facts = {
        "model": " ".join(str(v) for v in (meta.model, meta.revision) if v),
        "method": ", ".join(f"{k}={v}" for k, v in meta.method.items()),
        "data": ", ".join(f"{k}={v}" for k, v in meta.data.items() if v not in (None, "")),
        "figures": ", ".join(f"{k}={v}" for k, v in meta.figures.items()),
        "calibrated range": in_words(meta.range) if meta.range is not None else "",
        "versions": ", ".join(f"{k} {v}" for k, v in meta.versions.items()),
        "digest": steering.digest,
    }
    told = [f"- **{k}**: {_plain(v)}" for k, v in facts.items() if v]
    if steering.prompt is not None:
        told.append(f"- **prompt**: {_plain(steering.prompt.positive)}")
    concept = _plain(str(meta.data.get("concept") or "a behaviour"))
    return "\n".join(
        [*head, "---", "", f"# A steering: {concept}", "", f"Strength goes {ways}.", "",
         "| what | where | when | how much |", "|---|---|---|---|", *rows, "", *told, "",
         "```bash", f"steerlab show {named}", f"steerlab generate {named} -p 'Tell me about tea.' -s 0 -s 1", "```", ""]
    )  # fmt: skip


def _plain(text: str) -> str:
    """One line without what a page would take for markup."""
    return re.sub(r"\s+", " ", text).replace("<", "&lt;").replace("|", "\\|")[:2000]


def _first(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines()
    return (lines[0] if lines else repr(problem)).rstrip(".") + "."
