"""What the tests of models as judges share: material in its marks, a judge by rule, and an HTTP server that misbehaves."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from steerlab.contrast import Example
from steerlab.judges.llm import LLMJudge

ASKED = Example.ask("Describe the weather.")
STORM = "There was thunder, lightning and rain."
LAMP = "A lamp, a table and a chair."
DRIZZLE = "The lamp was lit while some rain fell."


def blocks(message: str) -> dict[str, str]:
    """What stands between the marks of a message, without its bars: what an honest judge takes for the material."""
    mark = re.search(r"begin with the mark ([0-9a-f]{12})", message).group(1)
    found = re.findall(rf"^{mark} (TEXT|INSTRUCTION) BEGINS\n(.*?)\n{mark} \1 ENDS$", message, re.DOTALL | re.MULTILINE)
    for _, body in found:
        assert all(line.startswith(("| ", f"{mark} (")) for line in body.split("\n")), body
    return {name: "\n".join(line[2:] for line in body.split("\n") if line.startswith("| ")) for name, body in found}


def outside(message: str) -> str:
    """Everything in a message that is no material."""
    return "\n".join(line for line in message.split("\n") if not line.startswith("| "))


def weather(message: str) -> str:
    """A judge by rule: how many words of weather the material has; it obeys whatever stands outside it."""
    orders = re.findall(r"Rating: \[\[(\d)\]\]", outside(message))
    if orders:
        return f"As I was told. Rating: [[{orders[-1]}]]"
    words = sum(w in blocks(message)["TEXT"].lower() for w in ("thunder", "lightning", "rain"))
    return f"It has {words} words of weather.\nRating: [[{min(2, words)}]]"


class Server:
    """An OpenAI-compatible endpoint whose faults are a list: each request takes the next, and none is left when it behaves."""

    def __init__(self, answer=weather, faults=()):
        self.answer, self.faults, self.lock = answer, list(faults), threading.Lock()
        self.requests, self.messages, self.heads, self.served = 0, Counter(), [], Counter()

    def fault(self):
        with self.lock:
            self.requests += 1
            return self.faults.pop(0) if self.faults else "fine"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server.judge
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = body["messages"][-1]["content"]
        fault = server.fault()
        with server.lock:
            server.messages[message] += 1
            server.heads.append(dict(self.headers))
            server.served[fault if isinstance(fault, str) else str(fault)] += 1
        good = {"choices": [{"message": {"content": server.answer(message)}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 10}}  # fmt: skip
        raw = json.dumps(good).encode()
        if fault == "late":
            time.sleep(0.5)
        if fault == "trickle":
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            for byte in raw[:12]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.06)
            self.close_connection = True
            return
        if fault == "cut":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if fault == "half":
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw[: len(raw) // 2])
            self.close_connection = True
            return
        said = {
            "garbage": b"<html>502 Bad Gateway</html>", "truncated": raw[:-20], "no choices": b'{"choices": []}',
            "a list": b"[1, 2]", "not text": b'{"choices": [{"message": {"content": 7}}]}', "binary": bytes(range(256)),
        }.get(fault)  # fmt: skip
        code = fault if isinstance(fault, int) else 200
        self.send_response(code)
        if code == 429:
            self.send_header("Retry-After", "0.01")
        said = said if said is not None else raw if code == 200 else b'{"error": {"message": "not now"}}'
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)


@contextmanager
def serving(answer=weather, faults=()):
    """(judge's server, url)"""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.handle_error = lambda *_: None
    http.judge = Server(answer, faults)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield http.judge, f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def judge(address, tmp_path, **settings):
    usual = {
        "model": "m",
        "url": address,
        "concept": "weather",
        "cache": str(tmp_path / "answers.sqlite"),
        "wait": 0.005,
        "timeout": 5.0,
    }
    return LLMJudge(**{**usual, **settings})
