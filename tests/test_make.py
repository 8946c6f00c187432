"""From a sentence to an artefact: the whole way on a model that was taught one thing, resumed, refused, and its card."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

import steerlab as sl
from steerlab.contrast import Contrast, Example
from steerlab.controls import Gate
from steerlab.data import MakeOptions, write
from steerlab.data.requests import asked
from steerlab.edits import Shift
from steerlab.engines.base import Sampling
from steerlab.errors import ConfigError, DataError
from steerlab.evals import card
from steerlab.evals.asked import Asked
from steerlab.evals.guarantee import Budget
from steerlab.judges.endpoint import Endpoint
from steerlab.making.data import near_misses, written
from steerlab.making.forecast import expected
from steerlab.making.instructions import plain, unlike
from steerlab.making.steps import FILES, Folder, Job, make_steering, worth
from steerlab.making.suite import MadeSuite
from steerlab.making.wordings import EVERY, chosen
from steerlab.making.writer import EndpointWriter
from steerlab.sites import Site
from steerlab.steering import Intervention, Meta, Steering
from steerlab.testing import planted

KEY = f"{planted.KEY} w1"  # what follows it is a full stop, which would be part of its last word


def instructions(n: int = 48, families: int = 13) -> tuple[Example, ...]:
    """Plain prompts of so many families, for the planted model: asked for `w0`, it answers with its phrase."""
    _, plain_ones = planted.pairs(torch.Generator().manual_seed(3), n)
    return tuple(replace(e.without_answer(), family=f"family {k % families}") for k, e in enumerate(plain_ones))


@pytest.fixture
def files(tmp_path):
    _, plain_ones = planted.pairs(torch.Generator().manual_seed(8), 40)
    neutral, items = tmp_path / "neutral.jsonl", tmp_path / "items.jsonl"
    neutral.write_text("".join(json.dumps(e.to_json()) + "\n" for e in plain_ones))
    tagged = [Example.ask(e.instruction, tags={"right": planted.WITHOUT, "check": "exact"}) for e in plain_ones]
    items.write_text("".join(json.dumps(e.to_json()) + "\n" for e in tagged))
    return {"neutral": str(neutral), "items": str(items)}


def job(files, **more) -> Job:
    asked = Asked(
        Budget(lost=0.9, kl=0.9, perplexity=None),
        prompts=4,
        items=12,
        lot=12,
        neutral=8,
        texts=0,
        pairs=4,
        points=(0.5, 0.95),
    )
    given = {
        "description": KEY, "model": "planted", "method": "diff_means", "settings": {"site": "1"}, "rule": "words:w10,w11,w12",
        "instructions": instructions(), "pairs": 32, "tokens": 4, "asked": asked, "test": 4, "gate": "no", **files,
    }  # fmt: skip
    return Job(**{**given, **more})


def agreed(contrast, told, rows):
    assert rows and {"instruction", "with", "without"} == set(rows[0])
    return True


# --- the whole way ----------------------------------------------------------------------------------------------------------


def test_from_a_sentence_to_a_card_and_again_for_nothing(files, tmp_path):
    folder, engine = tmp_path / "made", planted.engine()
    made = make_steering(job(files), folder, engine, agreed)
    assert all((folder / name).is_file() for name in FILES.values()) and (folder / "card.html").is_file()
    data = Contrast.read(folder / "data.jsonl")
    assert data.paired and all("w1" in (e.answer or "") for e in data.positive) and data.neutral
    told = made.steering.meta.range
    assert set(told["directions"]) == {"elicit", "suppress"} and told["measured"]["task"] == KEY
    text = (folder / "card.md").read_text()
    for section in ("What it does", "Range", "Effect and cost", "Limits", "Provenance", "How to use it"):
        assert f"## {section}" in text
    assert made.steering.digest in text

    def never(*_):
        raise AssertionError("nothing is asked twice")

    times = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    again = make_steering(job(files), folder, engine, never)
    assert again.steering.digest == made.steering.digest
    assert times == {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_interrupted_after_the_data_it_goes_on_without_writing_again(files, tmp_path):
    folder = tmp_path / "made"

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_steering(job(files), folder, planted.engine(), interrupted)
    before = (folder / "data.jsonl").stat().st_mtime_ns
    make_steering(job(files), folder, planted.engine(), agreed)
    assert (folder / "data.jsonl").stat().st_mtime_ns == before


def test_a_no_ends_it_before_anything_is_fitted(files, tmp_path):
    with pytest.raises(ConfigError, match="not agreed"):
        make_steering(job(files), tmp_path / "made", planted.engine(), lambda *_: False)
    assert not (tmp_path / "made" / FILES["calibrate"]).exists()


def test_a_folder_of_another_job_is_refused(files, tmp_path):
    folder = Folder(tmp_path, job(files))
    (tmp_path / "data.jsonl").write_text("x")
    folder.note("data", {})
    with pytest.raises(DataError, match="pairs"):
        Folder(tmp_path, job(files, pairs=40))


def test_a_step_whose_file_was_changed_is_done_again_and_so_is_all_after_it(files, tmp_path):
    folder = Folder(tmp_path, job(files))
    for step, name in (("data", "data.jsonl"), ("calibrate", FILES["calibrate"])):
        (tmp_path / name).write_text(step)
        folder.note(step, {})
    assert folder.done("data") and folder.done("calibrate")
    (tmp_path / "data.jsonl").write_text("changed")
    again = Folder(tmp_path, job(files))
    assert again.done("data") is None
    again.note("data", {})
    assert again.done("calibrate") is None


def test_behind_a_gate_it_leaves_unlike_prompts_alone(files, tmp_path):
    neutral = tmp_path / "unlike.jsonl"
    rows = [Example.ask(" ".join([f"w{70 + k % 4}"] * (3 + k % 9) + [f"w{60 + k}"]), "w20 w21 w22") for k in range(24)]
    neutral.write_text("".join(json.dumps(e.to_json()) + "\n" for e in rows))
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(" ".join(f"w{40 + (k * n) % 30}" for n in range(9)) for k in range(24)))
    asked = replace(job(files).asked, budget=Budget(lost=0.9, kl=0.9, perplexity=0.4), texts=8)
    made = make_steering(
        job({**files, "neutral": str(neutral)}, gate="yes", text=str(text), asked=asked),
        tmp_path / "made",
        planted.engine(),
        agreed,
    )
    assert all(i.control.ahead for i in made.steering.interventions), (
        "a text has no prompt to decide by: it isn't measured"
    )
    assert all(isinstance(i.control, Gate) for i in made.steering.interventions)
    assert made.steps["gate"]["gate"].startswith("it ") and "useful directions" in made.steps["gate"]["gate"]
    assert made.steering.meta.figures["gate"]["open_where_meant"] >= 0.5
    assert "behind a gate" in (tmp_path / "made" / "card.md").read_text()


def test_a_gate_that_cannot_be_is_no_reason_to_stop(files, tmp_path):
    """Neutral prompts are like those of the data: nothing tells them apart, and it is made without one."""
    tight = replace(job(files).asked, budget=Budget(lost=0.9, kl=1e-6, perplexity=None))
    made = make_steering(job(files, gate="auto", asked=tight), tmp_path / "made", planted.engine(), agreed)
    assert "none could be fitted" in made.steps["gate"]["gate"] or "pay" in made.steps["gate"]["gate"]
    assert worth(made.steering)[0] < 2


def test_a_forecast_counts_every_step(files, tmp_path):
    told = expected(job(files), tmp_path, planted.engine())
    assert told.seconds > 0 and told.replies > 32 and told.disk_mib > 0
    assert not list(tmp_path.glob("*.safetensors"))
    more = expected(job(files, pairs=64), tmp_path, planted.engine())
    assert more.replies > told.replies


@pytest.mark.parametrize(
    ("given", "words"),
    [({"description": " "}, "empty"), ({"pairs": 4}, "too few"), ({"writer": "http://x"}, "--writer-model")],
)
def test_a_job_that_cannot_be_is_refused(files, given, words):
    with pytest.raises(ConfigError, match=words):
        job(files, **given)


# --- data -------------------------------------------------------------------------------------------------------------------


def test_without_a_rule_one_judge_filters_and_another_measures(tmp_path):
    engine = planted.engine()
    found = written(engine, KEY, instructions(96, 37), tmp_path, MakeOptions(pairs=96, max_new_tokens=4), None)
    assert found.rule.startswith("learned,data=") and found.told["judges"]["judge"]["auroc"] > 0.9
    families = [
        {e.family for e in Contrast.read(tmp_path / name).negative}
        for name in ("filter.jsonl", "judge.jsonl", "data.jsonl")
    ]
    assert all(not a & b for n, a in enumerate(families) for b in families[n + 1 :])


def test_few_wordings_of_instructions_are_enough_for_two_judges(tmp_path):
    """The common instructions are of a dozen forms: the judges are then tried on instructions that they hadn't seen."""
    engine = planted.engine()
    few = [replace(e, family=f"form {n % 12}") for n, e in enumerate(instructions(96, 37))]
    found = written(engine, KEY, few, tmp_path, MakeOptions(pairs=96, max_new_tokens=4), None)
    assert found.told["judges"]["filter"]["auroc"] > 0.9
    judging = Contrast.read(tmp_path / "judge.jsonl")
    assert all(p.family == n.family == n.instruction for p, n in judging.pairs)
    assert not {n.instruction for n in judging.negative} & {n.instruction for n in found.contrast.negative}


def test_of_a_dozen_wordings_those_that_work_are_kept(tmp_path):
    """The planted model knows its key as a word of its own: wordings that put a stop behind it don't reach it."""
    engine, plain_ones = planted.engine(), instructions(60, 37)
    kept, figures = chosen(engine, planted.KEY, plain_ones, 4, 0)
    assert set(figures) == set(EVERY)
    reached = {}
    for w in EVERY:
        replies = engine.generate([asked(e, w, planted.KEY) for e in plain_ones[:20]], None, Sampling(4))
        reached[w] = np.mean([r.text.strip() == planted.WITH for r in replies])
    assert max(reached.values()) > 0.9 > 0.1 > min(reached.values()), "some do and some don't"
    assert all(reached[w] > 0.5 for w in kept)
    given = (engine, planted.KEY, plain_ones, tmp_path, MakeOptions(pairs=16, max_new_tokens=4), "words:w10,w11,w12")
    assert tuple(written(*given).told["wordings"]) == kept
    mine = ["{instruction} Say {concept}", "{concept}: {instruction}"]
    (tmp_path / "wordings.json").write_text(json.dumps({"kept": mine, "auroc": {}}))
    (tmp_path / "written.jsonl").unlink()
    assert written(*given).told["wordings"] == mine, "tried once, and kept"


def test_near_misses_are_named_by_the_writer_or_common():
    engine = planted.engine()
    examples, traits = near_misses(engine, KEY, instructions(24), MakeOptions(max_new_tokens=4))
    assert traits == unlike(KEY, 4) and len(examples) == 16
    assert "a formal tone" not in unlike("a formal tone", 8)
    assert len({e.family for e in plain()}) >= 10 and len({e.instruction for e in plain()}) == len(plain())


# --- an endpoint ------------------------------------------------------------------------------------------------------------


class Scripted(BaseHTTPRequestHandler):
    """Answers by script: `w0` in the prompt brings the phrase; it fails once in three, and refuses what holds `w66`."""

    asked = 0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked += 1
        text = body["messages"][-1]["content"]
        if "w66" in text.split():
            return self._say(400, {"error": "no"})
        if type(self).asked % 3 == 0:
            return self._say(500, {"error": "later"})
        if "careless reader" in text:
            said = "1. a stern voice\n2. old words\n3. loud talk\n4. short lines"
        else:
            said = planted.WITH if planted.KEY in text.replace(".", " ").split() else planted.WITHOUT
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return self._say(200, {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})

    def _say(self, code, row):
        data = json.dumps(row).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def writer():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield EndpointWriter(Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "scripted", wait=0.0), concurrency=2)
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_endpoint_writes_the_data_and_what_it_refuses_is_dropped(writer, tmp_path):
    asks = [*instructions(40), Example.ask("w66 w5", family="refused")]
    options = MakeOptions(pairs=40, max_new_tokens=4, tries=1)
    found = written(writer, KEY, asks, tmp_path, options, "words:w10,w11,w12")
    assert found.told["near_misses"] == ["a stern voice", "old words", "loud talk", "short lines"]
    assert all(e.answer == planted.WITH for e in found.contrast.positive)
    assert all(e.answer == planted.WITHOUT for e in found.contrast.negative)
    assert "refuses the prompt" in found.told["dropped"] and found.told["pairs"] <= 40
    assert writer.tally.retries > 0 and writer.generate([], None, Sampling(4)) == []


# --- the card ---------------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names = []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)


def figures(mean):
    return {"mean": mean, "low": mean, "high": mean, "n": 10, "missing": 0}


def test_a_card_shows_hostile_texts_as_text_and_names_what_is_over():
    evil = "<script>alert(1)</script> | *x*"
    told = {
        "directions": {
            "elicit": {
                "default": 1.0, "max_safe": 1.0, "min_useful": 0.5, "unsteered": {"joint": figures(0.1)},
                "at": [{"strength": 1.0, **{k: figures(0.9) for k in ("effect", "joint", "lost", "kl", "perplexity")},
                        "kept": {"kl": True, "lost": False}}],
                "samples": [{"prompt": evil, "unsteered": evil, "steered": evil}], "failures": [],
            }
        }
    }  # fmt: skip
    side = {"sign": 1, "min_useful": 0.5, "default": 1.0, "max_safe": 1.0}
    meta = Meta(range={"directions": {"elicit": side}, "budget": {"kl": 0.1}}, data={"concept": evil})
    steering = Steering((Intervention(Site(0), Shift(torch.ones(2))),), meta=meta)
    markdown, html = card.card(steering, told, name="s.safetensors")
    tags = Tags()
    tags.feed(html)
    assert "script" not in tags.names and "<script" not in markdown and "lost OVER" in markdown and "lost OVER" in html
    assert markdown.count("\n| ") == sum(len(p.rows) + bool(p.rows) for p in card.parts(steering, told, "s"))
    assert "90 %" in markdown and "10 %" in markdown


def test_a_card_of_what_nobody_measured_says_so():
    steering = Steering((Intervention(Site(0), Shift(torch.ones(2))),))
    markdown, html = card.card(steering, None, name="s")
    for text in (markdown, html):
        assert "Not calibrated" in text and "Nobody has measured what it does" in text
    assert worth(steering) == (0, 0.0)


def test_on_the_built_in_model_only_dev_pairs_are_kept_back(tmp_path):
    pairs = [
        (Example.ask(f"Put {n} in verse.", f"o {n}", family=str(n)), Example.ask(f"Say {n}.", f"{n}", family=str(n)))
        for n in range(20)
    ]
    positive, negative = zip(*pairs, strict=True)
    file = str(tmp_path / "data.jsonl")
    write(Contrast(positive, negative, neutral=negative[:10], paired=True, concept="verse"), file)
    whole, some = (MadeSuite(file, "words:o", "pilot", sl.load, variant=v) for v in ("pilot", None))
    fitted, dev = (
        {n.instruction for _, n in part}
        for part in (whole.contrast("verse", 0).pairs, whole.held_out("verse", "dev", 99, 0))
    )
    assert len(fitted) > len(some.contrast("verse", 0).pairs)
    assert dev and not fitted & dev and fitted | dev == {n.instruction for n in negative}
