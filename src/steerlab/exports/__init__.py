"""Other tools' formats, one file each, found by discovery; the file's name is the format's. `base.Format` says what one is.

`write(steering, path, "gguf")` writes a file that acts exactly as the steering does, or raises with every reason why it
can't; `read(path)` makes a steering of somebody else's file. A package of somebody else's adds a format with an entry
point in the group `steerlab.exports`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import plugins
from ..errors import ArtefactError, ConfigError, nearest

if TYPE_CHECKING:
    from os import PathLike

    from ..engines.hf import HFEngine
    from ..steering import Steering
    from .base import Format, Hints, Written


def format_named(name: str) -> Format:
    """The format of this name. Raises `ConfigError` with the nearest one."""
    return plugins.load(name, "exports")()


def formats() -> dict[str, Format]:
    """Every format there is, by its name."""
    return {name: format_named(name) for name in plugins.names("exports")}


def write(steering: Steering, path: str | PathLike[str], format: str, *, engine: HFEngine | None = None) -> Written:
    """Write a steering, as strong as it is now, in another tool's format; says what was written and what it can't hold.

    Raises `UnsupportedError` where the file would not act exactly as the steering does, with every reason and, where
    there is one, the command that fits one which can be written. `engine` is the model, where a format needs it.
    """
    made = format_named(format)
    if made.needs_model and engine is None:
        raise ConfigError(
            f"the format {format} needs the model whose matrices or modules it names; give one (--model)."
        )
    return made.write(steering, Path(path), engine)


def read(path: str | PathLike[str], format: str | None = None, hints: Hints | None = None) -> Steering:
    """The steering that another tool's file holds; the format is recognised where none is named.

    Raises `ArtefactError` for a file that is no valid one, or doesn't say enough (`hints` say what it doesn't).
    """
    from .base import Hints

    path = Path(path)
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ArtefactError(f"there is nothing at {path}. {nearest(path.name, beside)}")
    if format is None:
        format = recognised(path)
    made = format_named(format)
    if not made.reads:
        raise ConfigError(f"the format {format} is only written ({made.why_not_read}).")
    hints = hints or Hints()
    unused = [n for n in ("sites", "scale", "positions") if getattr(hints, n) not in ((), None) and n not in made.takes]
    if unused:
        raise ConfigError(
            f"{path} is read as {format}, which says itself where and how strongly it acts; leave {' and '.join(unused)} out,"
            " or name --format raw."
        )
    return made.read(path, hints)


def recognised(path: Path) -> str:
    """The format of a file. Raises `ArtefactError` where none claims it, or several do."""
    claims = {name: made for name, made in formats().items() if made.reads and made.claims(path)}
    claimed = [name for name, made in claims.items() if not made.fallback] or list(claims)
    if len(claimed) != 1:
        told = f"could be {' or '.join(claimed)}" if claimed else "is of no format that is read here"
        known = ", ".join(name for name, made in formats().items() if made.reads)
        raise ArtefactError(f"{path} {told}; name one with --format. Known: {known}.")
    return claimed[0]
