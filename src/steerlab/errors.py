"""What can go wrong, and how it is told.

::

    SteerlabError
    ├── DataError(ValueError)                    contrast data or a prompt is unusable
    ├── SiteError(LookupError)                   no such site in this model
    ├── EditError(ValueError)                    an edit's own invariant is broken
    ├── ArtefactError(ValueError)                unreadable file, other model, wrong width
    ├── ConfigError(ValueError)                  an unknown key, flag, method or plug-in
    ├── UnsupportedError(NotImplementedError)    refused, with reasons
    └── JudgeError(RuntimeError)                 a judge is out of reach

Every message says what was given, what was expected, the nearest legal thing where there is one, and what to do.
Each class also derives from the built-in that a caller would catch without knowing this package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from .escapes import visible


class SteerlabError(Exception):
    """Any error that steerlab raises on purpose; its text is written for the person at the keyboard.

    What it quotes of files and names is shown, and never done: control characters are written out.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


class DataError(SteerlabError, ValueError):
    """Contrast data, a prompt or an example that cannot be used as it is."""


class SiteError(SteerlabError, LookupError):
    """A site that this model does not have."""


class EditError(SteerlabError, ValueError):
    """An edit whose tensors or strength break its own definition."""


class ArtefactError(SteerlabError, ValueError):
    """A file that cannot be read or written, or that belongs to another model."""


class ConfigError(SteerlabError, ValueError):
    """A key, flag, method or plug-in name that does not exist, or a value outside its domain."""


class UnsupportedError(SteerlabError, NotImplementedError):
    """Something an engine or an export would not do exactly, and therefore refuses."""


class JudgeError(SteerlabError, RuntimeError):
    """A judge that cannot be reached or set up. (A reply that cannot be judged is no error: its score is None.)"""


def nearest(given: str, legal: Iterable[str]) -> str:
    """The sentence that points from a wrong name to the right one: `` Did you mean 'layer'?``, or the legal names."""
    names = sorted(set(legal))
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    if not names:
        return "There is none."
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"Known: {shown}."
