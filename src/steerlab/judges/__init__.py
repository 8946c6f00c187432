"""Judges say how much of something a text shows. One file per kind; none shares a lexicon with what made the data."""

from .base import Judge, Score

__all__ = ["Judge", "Score"]
