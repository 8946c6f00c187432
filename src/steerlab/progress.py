"""Progress that knows the remaining time, for whatever runs longer than a few seconds.

Library code calls `track`; it is silent unless somebody shows it (`with shown():`, as the command line does).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from .escapes import console

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
_bars: ContextVar[Progress | None] = ContextVar("bars", default=None)


class Task:
    """One bar: `advance()` moves it on, `tell(...)` sets the words after it."""

    def __init__(self, label: str, total: float | None) -> None:
        self._bars = _bars.get()
        self._id = None if self._bars is None else self._bars.add_task(label, total=total, told="")

    def advance(self, by: float = 1) -> None:
        """Move on."""
        if self._bars is not None and self._id is not None:
            self._bars.advance(self._id, by)

    def tell(self, words: str) -> None:
        """Say how it stands, in a few words."""
        if self._bars is not None and self._id is not None:
            self._bars.update(self._id, told=words)

    def end(self) -> None:
        """Take the bar away."""
        if self._bars is not None and self._id is not None:
            self._bars.remove_task(self._id)


@contextmanager
def task(label: str, total: float | None = None) -> Generator[Task]:
    """A bar for the length of the block."""
    bar = Task(label, total)
    try:
        yield bar
    finally:
        bar.end()


def track(items: Iterable[T], label: str, total: float | None = None) -> Iterator[T]:
    """The items, with a bar that moves on with each."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # pyright: ignore[reportArgumentType, reportUnknownArgumentType]
    with task(label, total) as bar:
        for item in items:
            yield item
            bar.advance()


@contextmanager
def shown() -> Generator[None]:
    """Show the bars of everything that runs inside the block, on standard error."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if _bars.get() is not None:
        yield
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[told]}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=console(err=True), transient=True) as bars:
        token = _bars.set(bars)
        try:
            yield
        finally:
            _bars.reset(token)
