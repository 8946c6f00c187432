"""A page in a real browser (headless Chromium) asks the server from another origin, as docs/serving.md shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serving import Here, Listening, shift
from steerlab.errors import ConfigError
from steerlab.serve.keys import Keys
from steerlab.serve.settings import Settings
from steerlab.testing import tiny

DOCS = Path(__file__).resolve().parents[1] / "docs" / "serving.md"
PAGE = """<!doctype html><meta charset=utf-8><body><script type=module>
const told = [];
const report = (name, body) => fetch("/told/" + name, {method: "POST", body: JSON.stringify(body)});
console.log = (...words) => told.push(words.join(" "));
const at = "SERVER/v1/chat/completions";
const ask = body => fetch(at, {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body)});
if (location.hostname === "localhost") {  // an origin that the server wasn't told of
  try { await ask({model: "base", messages: []}); await report("stranger", "answered"); }
  catch (error) { await report("stranger", error.name); }
} else {
  const frame = document.createElement("iframe");
  frame.src = `http://localhost:${location.port}/`;
  document.body.append(frame);
  try {
    DOCUMENTED
    const wrong = await ask({model: "base+pirat", messages: [{role: "user", content: "w1"}]});
    const list = await fetch("SERVER/v1/steerings");
    const flooded = await fetch("SERVER/v1/models?" + "x".repeat(9000));
    await report("friend", {said: told, status: wrong.status, error: (await wrong.json()).error.message,
      id: wrong.headers.get("x-request-id"), names: (await list.json()).data.map(one => one.name), flooded: flooded.status});
  } catch (error) { await report("friend", String(error)); }
}
</script>"""


class Pages:
    """A web server of its own, which serves the page at every address and keeps what the page tells it."""

    def __init__(self) -> None:
        self.page, self.told = "", dict[str, object]()
        self.heard = threading.Condition()
        pages = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(pages.page.encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with pages.heard:
                    pages.told[self.path.rsplit("/", 1)[1]] = body
                    pages.heard.notify_all()
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def browse(address: str, folder: Path, pages: Pages, names: set[str]) -> None:
    """Open an address in a browser until the pages there have told what they found."""
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder}",
        "--remote-debugging-port=0",
    ]
    browser = subprocess.Popen([*command, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with pages.heard:
            assert pages.heard.wait_for(lambda: names <= set(pages.told), timeout=240), (
                f"only {set(pages.told)} told something"
            )
    finally:
        browser.kill()
        browser.wait()


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_a_page_of_a_named_origin_asks_and_reads_answers_and_errors_and_another_one_cant(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    engine = tiny.engine("llama")
    shift(engine, 1).save(store / "pirate.safetensors")
    blocks = re.findall(r"```js\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    pages = Pages()
    with Listening(engine, store, cors=(f"http://127.0.0.1:{pages.port}",), default_tokens=8) as server:
        documented = "".join("{" + block + "}\n" for block in blocks).replace("http://127.0.0.1:8000", server.address)
        pages.page = PAGE.replace("DOCUMENTED", documented).replace("SERVER", server.address)
        browse(f"http://127.0.0.1:{pages.port}/", tmp_path / "profile", pages, {"friend", "stranger"})
    pages.server.shutdown()
    pages.server.server_close()
    friend = pages.told["friend"]
    assert isinstance(friend, dict), friend
    assert len(friend["said"]) >= len(blocks) >= 2
    assert all(friend["said"])
    assert (friend["status"], friend["names"], friend["flooded"]) == (404, ["pirate"], 414)
    assert "Did you mean 'pirate'?" in friend["error"]
    assert friend["id"]
    assert pages.told["stranger"] == "TypeError"  # what fetch says where an answer may not be read


@pytest.mark.parametrize(
    "origin", ["https://a.example/", "a.example", "null", "ftp://a.example", "https://a.example/page", ""]
)
def test_an_origin_is_a_scheme_a_host_and_perhaps_a_port(origin):
    with pytest.raises(ConfigError, match="expected one like https://example.org"):
        Settings(cors=(origin,))


def test_every_origin_may_call_only_where_there_are_keys(tmp_path):
    engine = tiny.engine("llama")
    with pytest.raises(ConfigError, match="any page that is open on this machine"):
        Here(engine, tmp_path, cors=("*",))
    here = Here(engine, tmp_path, Keys.read(None, "the-key-of-the-admin"), cors=("*",))
    told = here.ask("GET", "/v1/models", headers={"origin": "https://b.example"})
    assert (told.status_code, told.headers["access-control-allow-origin"]) == (401, "*")
    here.close()
