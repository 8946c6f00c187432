"""Files that exist whole or not at all: written beside, then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from .errors import ArtefactError


@contextmanager
def whole(path: str | os.PathLike[str]) -> Generator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well and removed when it doesn't.

    Also on Ctrl-C: an interrupted write leaves what was there before. Raises `ArtefactError` where the folder can't be
    written or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as problem:
        raise _told(path, problem) from problem
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.chmod(0o644)
        part.replace(path)
    except OSError as problem:
        raise _told(path, problem) from problem
    finally:
        part.unlink(missing_ok=True)


def clear_unfinished(folder: Path) -> None:
    """Remove what killed writers have left beside a folder's own files. For whoever has the folder to itself."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file whole; returns its path. A lone surrogate is written as JSON escapes it."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file whole; returns its path."""
    with whole(path) as part:
        part.write_bytes(data)
    return Path(path)


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes; of a folder, of its files' names, sizes and times."""
    path, h = Path(path), hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            told = file.stat()
            h.update(f"{file.relative_to(path)} {told.st_size} {told.st_mtime_ns}\n".encode(errors="surrogateescape"))
    else:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as problem:
            raise ArtefactError(f"{path} can't be read: {problem.strerror or problem}.") from problem
    return h.hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 over this package's Python files: figures of other code are other figures."""
    package, h = Path(__file__).parent, hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        h.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return h.hexdigest()


def _told(path: Path, problem: OSError) -> ArtefactError:
    if problem.errno == errno.ENOSPC:
        return ArtefactError(
            f"no space left on the disk of {path.parent} while writing {path.name}; nothing was changed. Free some space"
            " or choose another folder, and run the command again."
        )
    return ArtefactError(f"{path} can't be written: {problem.strerror or problem}. Nothing was changed.")
