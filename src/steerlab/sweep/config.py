"""What is swept, as one small YAML file: the experiment, and nothing of the machine that runs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .. import config, plugins
from ..errors import ConfigError, nearest
from ..evals.files import FileSuite, ManySuite
from ..evals.measure import split_amounts
from ..evals.suite import Suite
from ..evals.unit import ArmPlan, Plan
from ..loading import load
from ..pilot import VARIANTS
from ..pilot.suite import PilotSuite

Template = Literal["chat", "plain"]
OF_CONCEPT = ("data", "rule", "layout", "concept")


@dataclass(frozen=True)
class Sweep:
    """The settings of a sweep.

    `methods` names what is fitted: a list of names, or each name with its settings (`method` where the name is your own).
    `concepts` are tasks of the pilot (none: all of them), or, on any other model, each with its `data` and `rule`.
    `layers` are blocks or sites for every method that has a site and doesn't name its own (`all`: every block; none: each
    method's own). `seeds` are so many fits, or a list. `controls` are added to the methods. `together` concepts are
    fitted in one pass, by methods that can. `pairs`, `prompts`, `capability`, `tokens`, `budget` and `strengths` are those of
    `steerlab evaluate`; `unrelated` neutral prompts and texts measure KL and perplexity, and `curves` tests every strength.
    """

    methods: dict[str, dict[str, Any] | None] | list[str]
    concepts: list[str] | dict[str, dict[str, str]] = field(default_factory=list[str])
    layers: list[int | str] | Literal["all"] = field(default_factory=list[int | str])
    seeds: int | list[int] = 3
    strengths: list[float] = field(default_factory=lambda: [0.5, 1.0, 1.5, 2.0])
    controls: list[str] = field(default_factory=lambda: ["random", "prompt"])
    together: int = 8
    pairs: int = 64
    prompts: int = 24
    capability: int = 100
    unrelated: int = 16
    tokens: int = 64
    budget: float = 0.10
    curves: bool = True
    title: str = "A sweep over concepts, methods, layers and strengths"
    model: str = "pilot"
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    template: Template = "chat"
    batch_size: int = 64
    neutral: str | None = None
    items: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        counts = {
            "together": 1,
            "pairs": 2,
            "prompts": 2,
            "capability": 0,
            "unrelated": 0,
            "tokens": 1,
            "batch_size": 1,
        }
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise ConfigError(f"the sweep has {name}: {getattr(self, name)}; expected at least {least}.")
        seeds = self.every_seed
        if not self.methods or not seeds or len(set(seeds)) < len(seeds):
            raise ConfigError("a sweep needs at least one method and one seed, each named once.")
        if isinstance(self.layers, list) and len(set(map(str, self.layers))) < len(self.layers):
            raise ConfigError(f"the layers {self.layers} name one twice; give each once.")
        if (self.model in VARIANTS) == isinstance(self.concepts, dict):
            raise ConfigError(
                "concepts of the built-in model are a list of names (`steerlab pilot concepts`); on any other model each has"
                " its data and its rule: `concepts: {formal: {data: formal.jsonl, rule: 'words:hence,thus'}}`."
            )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Sweep:
        """From a YAML file, whose relative paths are from the file's folder. Raises `ConfigError` with the line."""
        path = Path(path)
        values, lines = config.read_yaml(path), config.key_lines(path)
        asked = config.build(cls, values, where=str(path), lines={k: n for (k, *rest), n in lines.items() if not rest})
        for name, settings in asked.every_method.items():
            line = lines.get(("methods", name))
            _check(name, settings, f"{path}{'' if line is None else f', line {line}'}")
        return asked.beside(path.parent)

    def beside(self, folder: Path) -> Sweep:
        """The same with relative paths taken from a folder, where there is such a file."""

        def found(path: str | None) -> str | None:
            return str(folder / path) if path and (folder / path).exists() else path

        concepts = self.concepts
        if isinstance(concepts, dict):
            concepts = {n: {k: str(found(v)) if k == "data" else v for k, v in c.items()} for n, c in concepts.items()}
        files = {name: found(getattr(self, name)) for name in ("neutral", "items", "text")}
        model = self.model if self.model in VARIANTS else str(found(self.model))
        return replace(self, concepts=concepts, model=model, **files)

    @property
    def every_seed(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(self.seeds)

    @property
    def every_method(self) -> dict[str, dict[str, Any]]:
        """Each arm's settings by its name, the controls last; `method` says which it is of, where its name doesn't."""
        given = self.methods if isinstance(self.methods, dict) else dict.fromkeys(self.methods)
        return {name: dict(given.get(name) or {}) for name in dict.fromkeys((*given, *self.controls))}

    def suite(self) -> Suite:
        """What is measured, and on which model."""
        if isinstance(self.concepts, list):
            suite = PilotSuite(
                self.model, pairs=self.pairs, neutral_pairs=self.pairs, batch_size=self.batch_size, device=self.device
            )
        else:
            suite = ManySuite(tuple(self._of_files(name, given) for name, given in self.concepts.items()))
        known = [t.name for t in suite.tasks()]
        for name in self.concepts:
            if name not in known:
                raise ConfigError(f"the model {self.model!r} has no concept {name!r}. {nearest(name, known)}")
        return suite

    def plan(self, suite: Suite, depth: int) -> Plan:
        """The arms at every layer, and how they are measured; `depth` is the model's number of blocks."""
        dev, test = split_amounts(self.prompts, self.capability, self.tokens)
        few = {"neutral": min(dev.neutral, self.unrelated)}
        return Plan(
            arms=self.arms(depth), tasks=tuple(self.concepts) or tuple(t.name for t in suite.tasks()),
            seeds=self.every_seed, strengths=tuple(sorted(set(self.strengths))), budget=self.budget, curves=self.curves,
            dev=replace(dev, **few), test=replace(test, neutral=self.unrelated, texts=self.unrelated),
        )  # fmt: skip

    def arms(self, depth: int) -> tuple[ArmPlan, ...]:
        """Each method at each layer, or once where it has no site or names its own."""
        layers = [str(n) for n in (range(depth) if self.layers == "all" else self.layers)]
        found: list[ArmPlan] = []
        for name, given in self.every_method.items():
            method = str(given.get("method", name)).replace("-", "_")
            settings = {k: v for k, v in given.items() if k != "method"}
            if not layers or "site" in settings or "site" not in plugins.load(method).__dataclass_fields__:
                found.append(ArmPlan(name, method, settings))
                continue
            found += [
                ArmPlan(f"{name}@{n}", method, {**settings, "site": n}, label=f"{name} at {'block ' * n.isdigit()}{n}")
                for n in layers
            ]
        return tuple(found)

    def _of_files(self, name: str, given: Mapping[str, str]) -> FileSuite:
        for key in given:
            if key not in OF_CONCEPT:
                raise ConfigError(f"the concept {name!r} has the setting {key!r}. {nearest(key, OF_CONCEPT)}")
        if not {"data", "rule"} <= set(given):
            raise ConfigError(
                f"the concept {name!r} needs its data and a rule that tells it in a reply: {{data: {name}.jsonl, rule:"
                " 'words:a,b'}."
            )
        return FileSuite(
            given["data"], given["rule"], self.model, load, name=name, layout=given.get("layout"),
            concept=given.get("concept"), template=self.template, revision=self.revision, dtype=self.dtype,
            device=self.device, batch_size=self.batch_size, neutral_file=self.neutral, items_file=self.items,
            text_file=self.text,
        )  # fmt: skip


def _check(name: str, given: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigError` for a method or a setting that doesn't exist."""
    settings = {k: v for k, v in given.items() if k != "method"}
    try:
        cls = plugins.load(str(given.get("method", name)))
    except ConfigError as problem:
        raise ConfigError(f"{where}: {problem}") from problem
    config.build(cls, settings, where=where)
