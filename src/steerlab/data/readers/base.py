"""What a reader is: it recognises one layout by its content, and reads it as a `Contrast`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ...contrast import Contrast
    from ..examples import Concept
    from ..rows import Found


class Reader(ABC):
    """Reads one layout.

    `what` says in one line what the layout is for, `expects` what a file of it looks like; both are printed by
    `steerlab data layouts` and by errors. A `general` layout (any CSV, say) is taken only where no specific one fits.
    """

    what: ClassVar[str]
    expects: ClassVar[str]
    general: ClassVar[bool] = False

    @abstractmethod
    def recognises(self, found: Found) -> bool:
        """Whether the path is of this layout, by what was found there. Never raises."""

    @abstractmethod
    def read(self, found: Found, *, concept: str | None = None) -> Contrast:
        """The contrast; `concept` picks one where there are several, and names it where the file doesn't.

        Raises `DataError` that says which row is wrong, what was expected and what to do.
        """

    def concepts(self, found: Found) -> tuple[Concept, ...]:
        """The concepts that a path holds; none where the layout doesn't name them."""
        del found
        return ()
