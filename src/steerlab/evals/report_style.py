"""The look of a report: a set page, light or dark as the reader's system is, on a phone as on a wide screen or paper."""

from __future__ import annotations

from .charts_style import CHART_CSS, PALETTE_CSS, SANS

_SERIF = '"Iowan Old Style","Palatino Linotype",Palatino,"Book Antiqua","TeX Gyre Pagella",Charter,Georgia,"DejaVu Serif",serif'

_PAGE = f"""
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%;text-size-adjust:100%}}
body{{margin:0;background:var(--paper);color:var(--ink);font:1.03rem/1.55 {_SERIF};overflow-wrap:break-word}}
main{{max-width:80rem;margin:0 auto;padding:2.6rem clamp(1rem,4vw,3.5rem) 4rem}}
h1,h2,h3{{font-weight:600;line-height:1.2;margin:0;text-wrap:balance}}
h1{{font-size:clamp(1.55rem,4.5vw,2.3rem);font-weight:500;letter-spacing:-.012em}}
h2{{font-size:1.35rem;margin-bottom:.5rem}}
h3{{font-size:1.02rem;font-style:italic;font-weight:500;margin:1.7rem 0 .5rem}}
section{{border-top:1px solid var(--rule);margin-top:2.8rem;padding-top:1.5rem}}
p{{margin:.5rem 0}}
a{{color:var(--effect);text-underline-offset:.15em}}
.lede,.data{{max-width:46rem;color:var(--soft)}}
.summary{{max-width:46rem;font-size:1.14rem;line-height:1.55;margin:1.4rem 0 .8rem}}
.nothing{{color:var(--soft);font-style:italic}}
nav{{font:.84rem/1.9 {SANS};margin-top:1.6rem}}
nav a{{color:var(--soft);margin-right:1.1em;white-space:nowrap}}
dl{{margin:0}}dd{{margin:0}}
.facts{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr));gap:.7rem 1.6rem;margin-top:1.3rem;
font-family:{SANS};font-size:.88rem;line-height:1.4}}
.facts dt,.words dt,.settings dt{{color:var(--soft);font-size:.76rem;letter-spacing:.02em}}
.words{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:.6rem 2rem;margin:.6rem 0 .4rem;
font-size:.9rem;line-height:1.4}}
.words dt{{font-family:{SANS};color:var(--ink);font-weight:600}}.words dd{{color:var(--soft)}}
.settings{{columns:22rem;column-gap:2rem;font-family:{SANS};font-size:.82rem;line-height:1.35}}
.settings div{{break-inside:avoid;padding:.18rem 0;border-bottom:1px solid var(--rule);display:flex;gap:1rem;
justify-content:space-between}}
.settings dt{{flex:0 1 auto}}.settings dd{{text-align:right;min-width:0;overflow-wrap:anywhere}}
.notes{{max-width:46rem;padding-left:1.2rem;margin:.4rem 0}}
details{{margin:.7rem 0}}
summary{{cursor:pointer;font:.86rem/1.5 {SANS};color:var(--soft);width:fit-content;max-width:100%}}
details[open]>summary{{color:var(--ink);margin-bottom:.5rem}}
:focus-visible{{outline:2px solid var(--effect);outline-offset:2px}}
.unseen{{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}}
pre{{font:.78rem/1.45 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;background:var(--wash);
padding:.9rem 1rem;margin:0;white-space:pre-wrap;overflow-wrap:anywhere}}
"""

_TABLES = f"""
.wide{{overflow-x:auto;max-width:100%;margin:.6rem 0;position:relative}}
table{{border-collapse:separate;border-spacing:0;font:.8rem/1.3 {SANS};font-variant-numeric:tabular-nums lining-nums;
min-width:100%}}
th,td{{text-align:left;padding:.34rem .7rem .34rem 0;vertical-align:baseline;border-bottom:1px solid var(--rule);
font-weight:400;white-space:nowrap}}
thead th{{color:var(--soft);border-bottom:1px solid var(--ink);vertical-align:bottom;line-height:1.2}}
tbody th{{position:sticky;left:0;background:var(--paper);z-index:1;max-width:17rem;min-width:7rem;white-space:normal;
overflow-wrap:break-word;font-weight:600}}
.num{{text-align:right;padding-left:.5rem}}
.interval,.unit{{display:block;color:var(--soft);font-size:.86em;font-weight:400}}
.short .interval{{display:inline}}.short th{{max-width:none}}.short .at{{padding-left:1.2rem}}
.short .who{{white-space:normal;min-width:8.5rem;max-width:15rem}}.narrow{{min-width:0}}
.narrow th,.narrow td{{padding-right:1.6rem}}.wrapped{{white-space:normal;min-width:14rem}}
.references{{font-style:italic}}.references tr:first-child>*{{border-top:1px solid var(--ink)}}
.references th{{font-weight:500}}
.setting{{color:var(--soft);display:inline-block;min-width:2.7em}}
.best{{font-weight:700;text-decoration:underline;text-decoration-thickness:1.5px;text-underline-offset:.18em}}
.absent{{color:var(--soft)}}
th button{{font:inherit;color:inherit;background:none;border:0;padding:0;margin:0;cursor:pointer;text-align:inherit}}
th button:hover{{color:var(--ink);text-decoration:underline dotted}}
[aria-sort=ascending] button::after{{content:" ↑"}}[aria-sort=descending] button::after{{content:" ↓"}}
.tabs,.picks{{display:flex;flex-wrap:wrap;gap:.25rem 1.2rem;font:.86rem/1.4 {SANS};margin:.9rem 0 .5rem}}
.tabs button,.picks button{{font:inherit;color:var(--soft);background:none;border:0;border-bottom:2px solid transparent;
padding:.15rem 0;cursor:pointer}}
.tabs [aria-selected=true],.picks [aria-pressed=true]{{color:var(--ink);border-color:var(--ink)}}
.tabbed.on h3{{display:none}}
[hidden]{{display:none}}
"""

_FIGURES = f"""
.panels{{display:grid;align-items:end;grid-template-columns:repeat(auto-fill,minmax(min(100%,var(--w)),1fr));gap:1.1rem 1.3rem;
margin:.5rem 0 .8rem}}
figure{{margin:0;min-width:0}}
figcaption{{font:600 .8rem/1.3 {SANS};margin-bottom:.15rem;overflow-wrap:anywhere}}
figcaption small{{font-weight:400;color:var(--soft);font-size:.94em}}
.chart{{display:block;width:100%;height:auto;max-width:33rem;overflow:visible}}
.by-task figcaption{{font-weight:500;font-size:.74rem}}
.key{{color:var(--tone);white-space:nowrap}}
.key::before{{content:"";display:inline-block;width:1.7em;margin-right:.35em;vertical-align:.22em;
border-top:2px solid var(--tone)}}
.key.dashed::before{{border-top-style:dashed}}.key.dotted::before{{border-top-style:dotted}}
.sample{{margin:1rem 0 1.5rem}}
.prompt{{font-size:.95rem;line-height:1.45;max-width:58rem}}
.prompt q{{unicode-bidi:isolate;overflow-wrap:anywhere}}
.way{{font:.76rem/1.4 {SANS};color:var(--soft);display:block}}
.arm{{margin-left:1.1rem}}.arm details{{margin:.3rem 0}}
.replies{{list-style:none;display:flex;gap:0;overflow-x:auto;margin:.5rem 0;padding:0 0 .3rem}}
.replies li{{flex:1 0 12.5rem;max-width:24rem;padding:.1rem .9rem .2rem;border-left:1px solid var(--rule);display:flex;
flex-direction:column;min-width:0}}
.replies li:first-child{{padding-left:0;border-left:0}}
.replies li.untouched{{background:var(--wash);padding-left:.9rem}}
.replies h4{{font:600 .8rem/1.4 {SANS};margin:.2rem 0}}.replies small{{font-weight:400;color:var(--soft)}}
.text{{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.88rem;line-height:1.42;unicode-bidi:isolate;
max-height:19rem;overflow-y:auto;flex:1}}
.badges{{display:flex;flex-wrap:wrap;gap:.1rem .7rem;font:.74rem/1.5 {SANS};margin:.5rem 0 .1rem;color:var(--soft)}}
.badge.no{{color:var(--cost)}}.badge.yes{{color:var(--ink)}}.badge.unjudged{{font-style:italic}}
footer{{border-top:1px solid var(--rule);margin-top:2.8rem;padding-top:.8rem;font:.8rem/1.5 {SANS};color:var(--soft)}}
"""

_PRINT = """
@media print{
body{font-size:9.5pt}main{max-width:none;padding:0}nav,.tabs,.picks{display:none}
section{break-inside:auto}figure,.sample,tr{break-inside:avoid}h2,h3,summary,.lede{break-after:avoid}
.panel[hidden]{display:block}.tabbed.on h3{display:block}.wide,.replies{overflow:visible}table{font-size:6.8pt}
th,td{padding-right:.4rem}tbody th{position:static}.text{max-height:none}.replies{flex-wrap:wrap}
}
@media (prefers-reduced-motion:no-preference){html{scroll-behavior:smooth}}
@media (max-width:34rem){tbody th{max-width:8.5rem;min-width:6rem}.replies li{flex-basis:76%}
.short .interval{display:block}.short .who{min-width:6.4rem}.settings{columns:auto}}
"""

CSS = PALETTE_CSS + CHART_CSS + _PAGE + _TABLES + _FIGURES + _PRINT
