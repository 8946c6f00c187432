"""Agreement: kappa, weighted kappa and rank agreement against worked cases, intervals, categories, files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from steerlab import cli
from steerlab.errors import DataError
from steerlab.evals.agree import Rater, agreement, column, compared, kappa, kendall, named, ranks, rows_of, spearman

LABELS = [0, 0, 1, 1, 2, 2, 2, 0]
OTHERS = [0, 1, 1, 1, 2, 2, 1, 0]


def test_kappa_of_a_worked_table():
    """Two readers on 50 grants (a textbook's case): 20 and 15 alike, 5 and 10 apart; kappa 0.4."""
    table = np.asarray([[20, 5], [10, 15]], float)
    assert float(kappa(table)) == pytest.approx(0.4)
    assert float(kappa(table, "linear")) == float(kappa(table, "quadratic")) == pytest.approx(0.4), (
        "two categories have one distance"
    )
    assert math.isnan(float(kappa(np.asarray([[7.0, 0], [0, 0]]))))
    both = kappa(np.stack([table, table.T, np.eye(2) * 9]))
    assert both.tolist() == pytest.approx([0.4, 0.4, 1.0])


def test_weighted_kappa_by_its_definition():
    found = agreement(LABELS, OTHERS)
    assert found.table == ((2, 1, 0), (0, 2, 0), (0, 1, 2))
    n, table = 8, np.asarray(found.table, float)
    for weights, power in (("linear", 1), ("quadratic", 2)):
        cost = np.abs(np.subtract.outer(np.arange(3), np.arange(3))) ** power
        seen = (cost * table).sum() / n
        chance = (cost * np.outer(table.sum(1), table.sum(0))).sum() / n**2
        assert getattr(found, weights).mean == pytest.approx(1 - seen / chance)
    assert found.same.mean == pytest.approx(6 / 8)


def test_ranks_and_their_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 60).astype(float), rng.normal(size=60)
    assert ranks(a).tolist() == stats.rankdata(a).tolist()
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert kendall(a, a) == pytest.approx(1) and spearman(a, -a) == pytest.approx(-1)
    assert math.isnan(spearman(a, np.ones(60)))


def test_missing_ratings_are_left_out_and_counted():
    found = agreement([*LABELS, None, 1, None], [*OTHERS, 1, None, None])
    assert (found.n, found.missing) == (8, 3)
    assert found.kappa.mean == agreement(LABELS, OTHERS).kappa.mean
    nothing = agreement([None, 1.0], [1.0, None])
    assert nothing.kappa.mean is None and nothing.missing == 2
    always = agreement([1, 1, 1], [1, 1, 1])
    assert always.kappa.mean is None and always.same.mean == 1.0, (
        "two who always say the same word show no agreement beyond chance"
    )


def test_intervals_hold_the_truth_and_families_make_them_wider():
    rng = np.random.default_rng(0)
    hits, draws = 0, 60
    truth = 0.4  # both right with p: kappa = (2p - 1)² for two balanced classes
    p = (1 + math.sqrt(truth)) / 2
    for n in range(draws):
        y = rng.integers(0, 2, 120)
        a, b = (np.where(rng.random(120) < p, y, 1 - y).astype(float) for _ in "ab")
        found = agreement(a.tolist(), b.tolist(), draws=200, seed=n).kappa
        hits += found.low <= truth <= found.high
    assert hits / draws > 0.87
    a, b = np.repeat(a, 6).tolist(), np.repeat(b, 6).tolist()
    families = [str(n // 6) for n in range(720)]
    alone, together = agreement(a, b, draws=300).kappa, agreement(a, b, draws=300, families=families).kappa
    assert together.high - together.low > 1.8 * (alone.high - alone.low)


def test_a_degree_becomes_the_category_that_people_used():
    judge = Rater("judge", (0.0, 0.2, 0.3, 0.7, 0.8, 1.0, None), threshold=0.75)
    people = Rater("people", (0, 0, 1, 1, 2, 2, 2))
    assert judge.among([0, 1, 2]) == [0, 0, 1, 1, 2, 2, None]
    assert judge.among([0, 1]) == [0, 0, 0, 0, 1, 1, None]
    assert compared(judge, people).kappa.mean == 1.0 and compared(judge, people).missing == 1
    both = compared(judge, Rater("other", (0.9,) * 3 + (0.0,) * 3 + (1.0,), threshold=0.5))
    assert both.table == ((1, 3), (2, 0)), "two judges: absent and present, each by its own threshold"
    with pytest.raises(DataError, match="gives 1 to every text"):
        compared(judge, Rater("people", (1.0,) * 7))
    with pytest.raises(DataError, match="at most 12"):
        compared(Rater("j", tuple(n / 20 for n in range(20)), 0.5), Rater("people", tuple(float(n) for n in range(20))))


def test_columns_and_files(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,mood\none,1,good\ntwo,,bad\nthree,0,\n")
    rows = rows_of(tmp_path / "a.csv")
    assert column("label", rows).values == (1.0, None, 0.0)
    assert column("mood", rows).values == (1.0, 0.0, None)
    with pytest.raises(DataError, match="Did you mean 'label'"):
        column("labels", rows)
    with pytest.raises(DataError, match="two words"):
        column("text", rows)
    with pytest.raises(DataError, match="no column 'txt'"):
        named(rows, "txt", (), "the text")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"text"\n')
    with pytest.raises(DataError, match="line 2 is no JSON"):
        rows_of(tmp_path / "b.jsonl")


def test_the_command_line_tells_agreement_and_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    texts = [
        ("Rain and thunder all night.", "yes"),
        ("Soup and bread.", "no"),
        ("A storm of thunder and rain.", "yes"),
        ("It may rain.", "no"),
    ] * 5
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"reply": t, "storm": s, "source": n % 4}) + "\n" for n, (t, s) in enumerate(texts))
    )

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main(["judge", "agree", str(tmp_path / "t.jsonl"), *words])
        told = capsys.readouterr()
        return end.value.code or 0, told.out, told.err

    code, out, _ = run("-j", "words:rain,thunder,storm", "--human", "storm", "--family", "source")
    assert code == 0
    for part in (
        "storm and words:rain,thunder,storm: 20 texts",
        "kappa",
        "quadratic weights",
        "Kendall's tau-b",
        "by what storm says (rows)",
    ):
        assert part in out
    code, out, _ = run("-j", "words:rain", "-j", "regex:rain", "--human", "storm", "--json")
    assert [(r["a"], r["b"]) for r in json.loads(out)] == [
        ("storm", "words:rain"),
        ("storm", "regex:rain"),
        ("words:rain", "regex:rain"),
    ]
    code, _, err = run("-j", "words:rain")
    assert code == 2 and "between two" in err


def test_the_built_in_judges_agree_with_steered_texts_that_were_read(monkeypatch, capsys):
    """300 texts and labels from no word list (benchmarks/labels.jsonl): kappa .6 for each rating and for all together."""
    benchmarks = Path(__file__).resolve().parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    labels = pytest.importorskip("labels", reason="benchmarks/ isn't beside the tests")
    labels.agree(benchmarks / "labels.jsonl")
    bars = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("bar ")]
    assert [b[1] for b in bars] == [f"labels_{what}_kappa" for what in ("present", "follows", "fluent", "all")]
    assert all(float(b[2]) >= 0.6 for b in bars)
    rows = rows_of(benchmarks / "labels.jsonl")
    assert len({(row["task"], row["reply"]) for row in rows}) == len(rows) == 300
