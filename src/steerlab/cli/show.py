"""`steerlab show FILE`: a steering drawn for a person: what, where, when, how much, model, data, figures of the fit."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Config, Json, coloured, console, dump

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ..edits import Edit
    from ..steering import Steering


def show(
    file: Annotated[Path, typer.Argument(help="A steering's file (.safetensors).")],
    json: Json = False,
    config: Config = None,
) -> None:
    """Draw a steering: what it does, where, when, how strongly, and where it comes from."""
    from ..steering import Steering

    steering = Steering.load(file)
    if json:
        dump(described(steering, file))
    else:
        drawn(steering, file)


def described(steering: Steering, file: Path) -> dict[str, Any]:
    """Everything about a steering as plain data."""
    from dataclasses import asdict

    low, high = steering.domain
    return {
        "file": str(file),
        "digest": steering.digest,
        "strengths": [None if v in (float("inf"), float("-inf")) else v for v in (low, high)],
        "interventions": [
            {
                "what": i.edit.kind,
                "how": _what(i.edit),
                "where": str(i.site),
                "when": str(i.positions),
                "how_much": _how_much(i.control),
            }
            for i in steering.interventions
        ],
        "prompt": None if steering.prompt is None else asdict(steering.prompt),
        "meta": asdict(steering.meta),
    }


def drawn(steering: Steering, file: Path) -> None:
    """Print it."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    out = console()
    low, high = steering.domain
    kind = "both ways (−1 is the opposite, 0 leaves the model as it is, +1 is as fitted)"
    if low >= 0:
        kind = f"from 0 (untouched) to {high:g}" if high < float("inf") else "from 0 (untouched) up"
    head = Text.assemble((_line(str(file)), "bold"), f"\ndigest {steering.digest[:16]}…   strength {kind}")
    out.print(Panel(head, expand=False))
    table = Table("what", "where", "when", "how much", box=None, pad_edge=False, header_style="bold")
    for i in steering.interventions:
        table.add_row(_what(i.edit), str(i.site), str(i.positions), _how_much(i.control))
    if steering.prompt is not None:
        table.add_row(
            f"prompt: {steering.prompt.positive!r}", steering.prompt.placement, "–", f"{steering.prompt.strength:g}"
        )
    out.print(table)
    out.print(_provenance(steering))


def _provenance(steering: Steering) -> Table:
    from rich.table import Table

    meta = steering.meta
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    method = dict(meta.method)
    name = method.pop("name", None)
    data = meta.data
    sizes = ", ".join(f"{data[k]} {k}" for k in ("positive", "negative", "neutral") if data.get(k))
    rows: list[tuple[str, str | Text | None]] = [
        ("model", " ".join(str(v) for v in (meta.model, meta.revision) if v) or None),
        ("template", {None: None, "plain": "plain text"}.get(meta.template, f"chat, {str(meta.template)[:12]}…")),
        ("method", None if name is None else f"{name} ({', '.join(f'{k}={v}' for k, v in method.items())})"),
        ("data", _told(data, sizes) if data else None),
        ("range", coloured(meta.range) if meta.range else None),
        ("versions", ", ".join(f"{k} {v}" for k, v in meta.versions.items()) or None),
        *((f"fit: {key}", _figure(key, value)) for key, value in meta.figures.items()),
    ]  # fmt: skip
    for label, value in rows:
        if value:
            table.add_row(_line(label), _line(value) if isinstance(value, str) else value)
    return table


def _line(text: str) -> str:
    """A text of the file on one line: it can't be taken for another row."""
    return text.replace("\n", "\\n").replace("\t", "\\t")


def _told(data: dict[str, Any], sizes: str) -> str:
    paired = ", paired" if data.get("paired") else ""
    return f"{data.get('concept') or 'unnamed'}: {sizes}{paired}; {data.get('source') or 'source not told'}"


def _what(edit: Edit) -> str:
    """An edit in words, with the numbers that a person would ask for."""
    from .. import deltas, edits

    if isinstance(edit, edits.Clamp):
        poles = f"{_numbers(edit.positive)} (+1), {_numbers(edit.negative)} (−1)"
        only = " coordinates that fall short" if isinstance(edit, edits.Push) else ""
        return f"{edit.kind}: set{only} rank {edit.rank} to {poles}"
    if isinstance(edit, edits.OffsetShift):
        size = float(edit.v.norm())
        return f"OffsetShift: add a vector of norm {size:.3g}, and {edit.offset:+.3g} times it at any strength but 0"
    if isinstance(edit, edits.Shift):
        return f"Shift: add a vector of norm {float(edit.v.norm()):.3g}"
    if isinstance(edit, edits.Ablate):
        return f"Ablate: remove rank {edit.rank}"
    if isinstance(edit, edits.Rotate | edits.PointTo):
        return f"{edit.kind}: angle {edit.angle:.3g} rad"
    if isinstance(edit, deltas.Delta):
        size = "whole" if edit.low_rank is None else f"rank {edit.low_rank}"
        ways = "both ways" if edit.symmetric else "0 to 1"
        return f"Delta: change weights [{edit.height}, {edit.width}], {size}, norm {edit.norm:.3g}, {ways}"
    if isinstance(edit, edits.Descend):
        aim = "as high as they go" if edit.target is None else f"to {edit.target:g}"
        return f"Descend: {edit.steps} steps ({edit.rule}, {edit.step:g}) that bring a value network's scores {aim}"
    if isinstance(edit, edits.OneSided):
        return f"OneSided({_what(edit.inner)})"
    return (
        f"{edit.kind} of width {edit.width}: {', '.join(_field(f.name, getattr(edit, f.name)) for f in fields(edit))}"
    )


def _field(name: str, value: Any) -> str:
    """A field of an edit that this page knows nothing else of."""
    from torch import Tensor

    from ..edits import Edit

    if isinstance(value, Edit):
        return f"{name} ({_what(value)})"
    if not isinstance(value, Tensor):
        return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
    if value.ndim == 0:
        return f"{name} {float(value):.3g}"
    return f"{name} of norm {float(value.float().norm()):.3g}" if value.ndim == 1 else f"{name} {list(value.shape)}"


def _how_much(control: Any) -> str:
    from ..controls import Constant, Decision, Gate, Network

    if isinstance(control, Constant):
        return f"{control.value:g}"
    if isinstance(control, Decision):
        ahead = "decided by a pass of the prompt before"
        held = ahead if control.ahead else "decided at the last prompt token" if control.held else "per token"
        if isinstance(control, Gate):
            return f"{control.value:g} where {control.site} > {control.threshold:.3g} ({held})"
        if isinstance(control, Network):
            return f"up to {control.value:g} as a network at {control.site} says, its output {control.output} ({held})"
    return control.kind


def _numbers(values: Any) -> str:
    found = [f"{v:.3g}" for v in values.tolist()]
    return found[0] if len(found) == 1 else "[" + ", ".join(found) + "]"


def _figure(key: str, value: Any) -> str:
    if key == "divergence" and (shares := _shares(value)):
        return shares
    if isinstance(value, dict):
        return "; ".join(f"{k} {_figure('', v)}" for k, v in value.items())  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value)  # pyright: ignore[reportUnknownVariableType]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shares(told: Any) -> str | None:
    """A divergence as CDAS notes it; None for anything else that a file may hold there."""
    try:
        scale, curve = float(told["unsteered"]), [float(v) for v in told["held_out"]]
        shares = " → ".join(f"{v / scale:.3f}" for v in curve)
    except (TypeError, ValueError, LookupError, ArithmeticError):
        return None
    return f"held-out, as a share of the unsteered {scale:.4f} nats: {shares} (0 is a perfect interchange)"
