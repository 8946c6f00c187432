"""The pictures of the README, from real output: `make pictures`."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

import steerlab as sl
from steerlab import pilot
from steerlab.cli.generate import columns, name_of
from steerlab.engines.base import Sampling
from steerlab.methods.base import method

OUT = Path(__file__).resolve().parents[1] / "docs" / "images"
STRENGTHS = (-1.0, 0.0, 1.0, 1.25)


def main() -> None:
    engine = sl.load("pilot")
    console = Console(record=True, width=132, file=io.StringIO(), markup=False, emoji=False, highlight=False)
    for concept, prompt in (("pirate", "Describe a lighthouse."), ("gloomy", "Write a short letter about a garden.")):
        steering = method("cdas").fit(engine, pilot.contrast(concept, n=64, seed=0))
        for text in (prompt, f"{prompt} {pilot.request(concept, seed=3)}"):
            replies = engine.generate([text] * len(STRENGTHS), [steering.scaled(s) for s in STRENGTHS], Sampling(64))
            console.print(columns(f"{concept}: {text}", [name_of(s) for s in STRENGTHS], replies))
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "steering.svg"
    path.write_text(console.export_svg(title="steerlab generate FILE -s -1 -s 0 -s 1 -s 1.25"))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
