"""The colours and strokes of the charts, as CSS variables: one palette for light paper, one for dark.

The hues stay apart for the common kinds of colour blindness (after Okabe and Ito), and nothing is told by hue alone:
cost is dashed, every arm has a shape of its own, labels stand at the lines. Text colours keep a contrast of at least
4.5 to 1 on their paper, marks at least 3 to 1; the tests compute both.
"""

from __future__ import annotations

ARM_TONES = ("c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8")
TONES = ("ink", "soft", "effect", "joint", "cost", "ref", *ARM_TONES)

LIGHT = {
    "paper": "#fffefb", "ink": "#1d1c1a", "soft": "#5e5b55", "rule": "#dcd8cf", "wash": "#f5f2ea",
    "effect": "#17589c", "joint": "#17589c", "cost": "#ad430a", "ref": "#6a6761",
    "c1": "#17589c", "c2": "#c04a00", "c3": "#00775a", "c4": "#9c4a86",
    "c5": "#8a6500", "c6": "#3b3a9c", "c7": "#ac1d48", "c8": "#00748a",
}  # fmt: skip
DARK = {
    "paper": "#16181b", "ink": "#e8e5de", "soft": "#aaa69d", "rule": "#3b3e43", "wash": "#1f2226",
    "effect": "#82b7ef", "joint": "#82b7ef", "cost": "#f0a360", "ref": "#a09d96",
    "c1": "#82b7ef", "c2": "#ff9c5e", "c3": "#52cba2", "c4": "#e39fd2",
    "c5": "#e0bf4e", "c6": "#b3abff", "c7": "#ff8ba6", "c8": "#61cfe0",
}  # fmt: skip

SANS = 'system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Noto Sans","DejaVu Sans",sans-serif'


def _variables(palette: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in palette.items())


PALETTE_CSS = (
    f":root{{color-scheme:light dark;{_variables(LIGHT)}}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}\n"
    f"@media print{{:root{{color-scheme:light;{_variables(LIGHT | {'paper': '#ffffff'})}}}}}\n"
)
CHART_CSS = (
    f".chart{{font-family:{SANS};font-variant-numeric:tabular-nums lining-nums}}\n"
    ".chart text{fill:var(--soft);font-size:10px}.chart .name{fill:var(--ink);font-size:11px;font-weight:600}\n"
    ".chart .of{fill:var(--tone)}.chart .who{fill:var(--ink)}\n"
    ".chart .grid{stroke:var(--rule);stroke-width:.6}.chart .axis{stroke:var(--soft);stroke-width:.8}\n"
    ".chart .line{fill:none;stroke:var(--tone);stroke-width:1.7;stroke-linejoin:round;stroke-linecap:round}\n"
    ".chart .dashed{stroke-dasharray:5 3.2;stroke-linecap:butt}.chart .dotted{stroke-dasharray:.1 3.4}\n"
    ".chart .thin{stroke-width:1}.chart .rule{stroke:var(--tone);stroke-width:.9;stroke-dasharray:1.5 2}\n"
    ".chart .band{fill:var(--tone);opacity:.16}.chart .bar{stroke:var(--tone);stroke-width:.9;opacity:.6}\n"
    ".chart .dot{fill:var(--tone)}.chart .hollow{fill:var(--paper);stroke:var(--tone);stroke-width:1.2}\n"
    ".chart .faint{opacity:.45}.chart .ring{fill:none;stroke:var(--tone);stroke-width:1.1}\n"
    ".chart .lost{stroke:var(--tone);stroke-width:1.2}.chart .leader{stroke:var(--tone);stroke-width:.5;opacity:.7;fill:none}\n"
    + "".join(f".t-{name}{{--tone:var(--{name})}}" for name in TONES)
    + "\n"
)
STANDALONE_CSS = PALETTE_CSS + CHART_CSS + ".paper{fill:var(--paper)}\n"
