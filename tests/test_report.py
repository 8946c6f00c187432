"""The report: structure, escaping, figures equal to the data, and what is missing shown as missing."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from report_example import HOSTILE, LABELS, NOTHING, synthetic
from steerlab.errors import ArtefactError
from steerlab.evals.report import page, write
from steerlab.evals.report_data import Figures, average
from steerlab.evals.report_figures import dose_chart
from steerlab.evals.report_frontier import undominated
from steerlab.evals.report_words import MEASURES, signed, strength_text
from steerlab.evals.results import Arm, Layer, Results, Row, Sample
from steerlab.evals.stats import Estimate


class Dom(HTMLParser):
    """Every element with its attributes, and all text, as a browser would have them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements, self.words, self.script = [], [], []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data):
        (self.script if self._inside == "script" else self.words).append(data)

    def handle_endtag(self, tag):
        self._inside = ""

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture(scope="module")
def results() -> Results:
    return synthetic()


@pytest.fixture(scope="module")
def text(results) -> str:
    return page(results, "results.json")


def small(**changes) -> Results:
    """One task, one method and the unsteered model."""
    full = synthetic(arms=("cdas", "unsteered"), seed=1)
    kept = [r for r in full.table if r.group == "refusal"]
    cut = replace(
        full, tasks=full.tasks[:1], table=kept, layers=[], samples=[],
        points=[p for p in full.points if p.task == "refusal"], costs=[c for c in full.costs if c.task == "refusal"],
    )  # fmt: skip
    return replace(cut, **changes)


def empty() -> Results:
    return Results("r", "yesterday", "", {}, {}, [], [], [], [], [], [])


def rows_of(text: str, key: str) -> list[str]:
    part = text[text.index(f'<section id="{key}"') :]
    return re.findall(r"<tr.*?</tr>", part[: part.index("</section>")])


def test_every_section_is_there_and_every_inner_link_arrives(text):
    dom = Dom(text)
    ids = [a["id"] for _, a in dom.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert [a["id"] for a in dom.all("section")] == [
        "short", "table", "dose", "frontier", "layers", "samples", "missing", "setup",
    ]  # fmt: skip
    inner = [a["href"][1:] for a in dom.all("a") if a["href"].startswith("#")]
    assert inner and set(inner) <= set(ids)
    assert {a["aria-labelledby"] for a in dom.all("section")} <= set(ids)
    assert all(a.get("aria-label") for a in dom.all("svg"))
    assert all(a.get("scope") for a in dom.all("th"))


def test_the_page_loads_nothing(text):
    dom = Dom(text)
    assert "://" not in text and "url(" not in text and "@import" not in text
    assert not [a for _, a in dom.elements if "src" in a or "srcset" in a]
    assert {a["href"] for a in dom.all("a") if not a["href"].startswith("#")} == {"./results.json"}
    policy = next(a["content"] for a in dom.all("meta") if a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256("".join(dom.script).encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"'sha256-{digest}'" in policy


def test_hostile_text_is_inert_wherever_it_stands():
    bad = HOSTILE + "\ud800"
    row = replace(small().table[0], group=bad, strength=bad)
    point, cost = replace(small().points[0], task=bad), replace(small().costs[0], task=bad)
    results = small(
        run=bad, created=bad, title=bad, model={"id": bad, bad: bad}, config={bad: [bad], "seeds": bad}, notes=[bad],
        tasks=[{"name": bad, "genre": bad, "group": bad}], arms=[Arm("cdas", bad, {bad: bad}), Arm("unsteered", bad)],
        points=[point, replace(point, strength=1.0)], costs=[cost], table=[row],
        layers=[Layer(bad, "cdas", 1, "elicit", NOTHING, NOTHING)], versions={bad: bad}, meter={bad: {bad: 1.0}},
        samples=[Sample(bad, "cdas", "elicit", bad, [{"strength": 1.0, "text": bad}])],
    )  # fmt: skip
    text = page(results, "<img>.json")
    text.encode()
    dom = Dom(text)
    assert len(dom.all("script")) == 1 and not dom.all("img") and not dom.all("b")
    assert not [name for _, a in dom.elements for name in a if name.startswith("on")]
    assert "alert" not in "".join(dom.script)
    shown = HOSTILE.replace("\x00", "\u2400") + "\ufffd"
    assert sum(shown in words for words in dom.words) >= 12


def test_the_figures_of_the_table_are_those_of_the_results(results, text):
    rows = [r for r in rows_of(text, "table") if "data-setting" in r]
    assert len(rows) == len(results.table)
    figures = Figures(results)
    wanted = {(figures.label(r.arm), r.setting, f"{m.of(r).mean:.9g}", m.text(m.of(r).mean), m.interval(m.of(r)))
              for r in results.table for m in MEASURES if m.of(r).mean is not None}  # fmt: skip
    found = set()
    for row in rows:
        arm, setting = re.search(r'scope="row">(.*?)</th>', row)[1], re.search(r'data-setting="(.*?)"', row)[1]
        for cell in re.findall(r'<td class="num" data-sort="(.*?)".*?>(.*?)</td>', row):
            inner = Dom(cell[1]).words
            if inner[-1].startswith("["):
                found.add((arm, setting, cell[0], inner[0], inner[-1]))
    assert found == wanted


def test_what_is_missing_is_shown_as_missing_and_never_as_zero(text):
    row = next(r for r in rows_of(text, "table") if "Probe" in r)
    cell = re.search(r'<td class="num" title="n 0, 12 missing">(.*?)</td>', row)
    assert cell and Dom(cell[1]).words == ["–", "12 missing"]
    assert "Effect at +1.5: missing, n 0, 12 missing" in text
    assert "Effect at +1.5: 0.0 %" not in text


def test_where_nothing_could_be_judged_no_figure_appears():
    def without(thing):
        return replace(thing, **{k: NOTHING for k, v in vars(thing).items() if isinstance(v, Estimate)})

    full = small()
    rows = [replace(without(r), worst=None) for r in full.table]
    points, costs = [without(p) for p in full.points], [without(c) for c in full.costs]
    text = page(replace(full, table=rows, points=points, costs=costs), "results.json")
    table = [words for row in rows_of(text, "table") for words in Dom(row).words]
    assert {w for w in table if "missing" in w} == {"12 missing"} and "0.0" not in table and "0.00" not in table
    dose = [words for row in rows_of(text, "dose") if "lost" not in row for words in Dom(row).words]
    assert "–" in dose and "0.0" not in dose
    chart, _ = dose_chart(Figures(replace(full, points=points, costs=costs)), "cdas", ["refusal"], wide=True)
    drawn = {m.y for s in chart.series for m in s.marks if m.x != 0}
    assert drawn == {None}


def test_the_best_method_of_a_column_is_marked_and_a_reference_never(results, text):
    rows = [r for r in rows_of(text, "table") if "data-setting" in r]
    best = max(
        r.joint.mean for r in results.table if (r.group, r.direction, r.setting) == ("concepts", "suppress", "tuned")
    )
    assert any(f'<span class="best">{MEASURES[1].text(best)}<' in row for row in rows)
    references = [r for r in rows if any(f">{LABELS[a]}</th>" in r for a in ("unsteered", "random", "prompt"))]
    assert references and not [r for r in references if "best" in r]


def test_the_summary_says_who_won_at_what_cost_and_how_the_references_do():
    def row(arm: str, joint: float | None, lost: float | None) -> Row:
        e = [Estimate(v, None if v is None else v - 0.01, None if v is None else v + 0.01, 50) for v in (joint, lost)]
        return Row(arm, "refusal", "elicit", "unit", "1", e[0], e[0], e[0], *[e[1]] * 6)

    arms = [Arm(name, LABELS[name]) for name in ("unsteered", "prompt", "cdas", "diff_means")]
    table = [
        row("unsteered", 0.04, None),
        row("cdas", 0.9, 0.031),
        row("diff_means", 0.61, 0.08),
        row("prompt", 0.95, 0.0),
    ]
    words = Dom(page(small(arms=arms, table=table, points=[], costs=[]), "x.json")).words
    told = " ".join("".join(words).replace("\xa0", " ").split())
    assert "CDAS, rank 1 has the highest joint success at unit strength, nothing tuned: 90.0 %" in told
    assert "for 3.1 points of capability lost. Next is Difference of means with 61.0 %, for 8.0 points." in told
    assert (
        "the model left alone reaches 4.0 %; a random direction was not measured; asking for it in the prompt reaches"
        in told
    )
    assert "The prompt does better than every method for refusal elicited." in told


def test_every_curve_starts_at_the_unsteered_model(results):
    figures = Figures(results)
    levels = figures.levels("cdas", ["refusal"], "suppress", lambda p: p.effect)
    plain = next(p for p in results.points if (p.arm, p.task, p.direction) == ("unsteered", "refusal", "suppress"))
    assert [v.strength for v in levels] == [-2, -1.5, -1, -0.5, 0] and levels[-1].estimate == plain.effect
    assert next(v for v in figures.lost("cdas", ["refusal"]) if v.strength == 0).estimate.mean == 0


def test_a_mean_over_tasks_leaves_out_and_counts_what_is_missing():
    mean = average([Estimate(0.2, 0.1, 0.3, 10), Estimate(0.6, 0.5, 0.7, 10, 2), Estimate(None, None, None, 0, 12)])
    assert mean.mean == pytest.approx(0.4) and (mean.n, mean.missing) == (20, 14)
    assert 0.1 < mean.low <= 0.2 and 0.6 <= mean.high < 0.7


def test_tasks_that_agree_do_not_look_certain():
    one = Estimate(0.5, 0.4, 0.6, 50)
    mean = average([one, replace(one, n=51)])
    half = 0.1 / math.sqrt(2)  # two independent normals
    # fixed draws, no rounding: two thousand know an end of it to a hundredth
    assert mean.low == pytest.approx(0.5 - half, abs=0.01) and mean.high == pytest.approx(0.5 + half, abs=0.01)


def test_an_arm_with_a_shorter_reach_says_so_and_keeps_the_common_axis(results):
    figures = Figures(results)
    chart, span = dose_chart(figures, "ablation", figures.groups["concepts"], wide=True)
    assert span == "0 to +1 only" and (chart.x.low, chart.x.high) == (-2.1, 2.1)
    assert [s.label for s in chart.series] == ["suppressed", "joint", "lost"]


def test_the_frontier_keeps_what_no_other_beats():
    assert undominated([(5, 50), (1, 20), (6, 50), (3, 10), (9, 80)]) == [1, 0, 4]


def test_signs_and_zeros_are_written_as_numbers_are_read():
    assert [signed(v, 1) for v in (-0.04, -1.25, 0.0, math.inf)] == ["0.0", "−1.2", "0.0", "∞"]
    assert [strength_text(s) for s in (-1.5, 0.0, 1.0)] == ["−1.5", "0", "+1"]


def test_verdicts_are_told_in_words_and_the_unjudged_is_not_a_no(text):
    part = text[text.index('<section id="samples"') :]
    for words in (
        "✓ effect",
        "✗ no effect",
        "? effect: unjudged",
        "✗ doesn’t follow",
        "fluent 0.72",
        "(an empty reply)",
    ):
        assert words in part


def test_time_memory_and_configuration_are_kept(text):
    for words in (
        "6 min 52 s",
        "1,801 MiB",
        "evaluate.budget",
        "5.16.1",
        "a path with &lt;angle brackets&gt; &amp; ampersands",
    ):
        assert words in text


def test_an_empty_evaluation_says_so_in_every_section():
    text = page(empty(), "results.json")
    assert Dom(text).words.count("No layer profile was measured.") == 1
    parts = text.split("<section ")[1:]
    assert len(parts) == 8 and all('class="nothing"' in part for part in parts)


def test_the_same_results_give_the_same_bytes_and_the_json_beside_is_the_same_results(tmp_path):
    results = small()
    one, two = write(results, tmp_path / "a" / "report.html"), write(results, tmp_path / "b" / "report.html")
    assert one.read_bytes() == two.read_bytes()
    assert Results.load(one.with_name("results.json")) == results


@pytest.mark.parametrize("data", ["report.html", "elsewhere/results.json"])
def test_the_figures_need_a_name_of_their_own_beside_the_report(tmp_path, data):
    with pytest.raises(ArtefactError, match=r"expected a file name other than the report's"):
        write(small(), tmp_path / "report.html", data=data)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
@pytest.mark.parametrize("width", [360, 1500])
def test_a_browser_shows_it_without_overflow_and_its_scripts_run(tmp_path, text, width):
    probe = "parent.postMessage([document.documentElement.scrollWidth,document.querySelectorAll('[role=tab]').length].join(),'*')"
    inner = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", text)  # the probe isn't in the policy
    (tmp_path / "page.html").write_text(inner.replace("</body>", f"<script>{probe}</script></body>"), encoding="utf-8")
    outer = "<body><script>onmessage=e=>document.body.append('got '+e.data)</script>"
    outer += f"<iframe src=page.html width={width} height=800>"
    (tmp_path / "frame.html").write_text(outer, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/p", "--dump-dom",
               "--virtual-time-budget=20000", f"file://{tmp_path}/frame.html"]  # fmt: skip
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    scroll, tabs = re.findall(r"got (\d+),(\d+)", dumped)[0]
    assert int(scroll) <= width and int(tabs) == 6
