"""A folder that one process has to itself, or several share: a lock that the system frees however its holder ends."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from threading import Lock
from typing import ClassVar

from ..errors import ArtefactError

try:
    import fcntl
except ImportError:  # a system without it
    fcntl = None

log = logging.getLogger("steerlab.serve")
FILE = ".lock"


class Held:
    """A folder's lock, `shared` by all processes that say so, or this process's own; servers of one process have it together."""

    _mine: ClassVar[dict[Path, tuple[int, int]]] = {}  # of each lock file, its handle and how many here hold it
    _changing = Lock()

    def __init__(self, folder: Path, *, shared: bool) -> None:
        self._path, self._shared = folder / FILE, shared
        self._key: Path | None = None

    def take(self) -> None:
        """Take it; again changes nothing. Raises `ArtefactError` where another process has it."""
        if self._key is not None or fcntl is None:
            return
        key = self._path.resolve()
        with self._changing:
            handle, many = self._mine.get(key, (None, 0))
            handle = self._locked() if handle is None else handle
            if handle is not None:
                self._key, self._mine[key] = key, (handle, many + 1)

    def check(self) -> None:
        """Raise `ArtefactError` where another process has it."""
        if self._path.exists():
            self.take()
            self.leave()

    def leave(self) -> None:
        """Free it."""
        if self._key is None:
            return
        with self._changing:
            handle, many = self._mine.pop(self._key)
            if many > 1:
                self._mine[self._key] = (handle, many - 1)
            else:
                os.close(handle)
            self._key = None

    def _locked(self) -> int | None:
        """The lock file's handle once it is locked; None where the disk has no locks, which the log is told."""
        assert fcntl is not None
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as problem:
            if problem.errno != errno.EROFS:
                raise
            return None  # nothing can be written there, so nobody can break what a name means
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as problem:
            os.close(handle)
            if problem.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ArtefactError(
                    f"the folder {self._path.parent} of steerings is in use by another server; give this one another folder"
                    " (--store), or start both with --shared."
                ) from problem
            log.warning(
                "the folder %s can't be locked (%s): start no second server on it", self._path.parent, problem.strerror
            )
            return None
        return handle
