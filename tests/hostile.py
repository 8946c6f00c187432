"""Hostile requests as bytes on a socket, by kind, each different: what the tests of the server throw at a real one.

`corpus(good, own, many)` makes `many` of each kind from a file of a steering that the server would take.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

USE, ADMIN = "the-key-of-an-app-here", "the-key-of-the-admin-here"
BODY, UPLOAD = 50_000, 200_000  # what the server under attack takes
KEYED = f"authorization: Bearer {ADMIN}\r\n"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


class Attack(NamedTuple):
    """What is sent, a part at a time with a pause after each; the server has to answer with one of `statuses`."""

    kind: str
    parts: tuple[bytes, ...]
    pause: float = 0.0
    statuses: tuple[int, ...] = tuple(range(400, 500))


def corpus(good: bytes, many: int) -> Iterator[Attack]:
    """`many` of each kind."""
    for make in KINDS:
        for n in range(many):
            yield make(n, random.Random(f"{make.__name__} {n}"), good)


def answer_to(address: tuple[str, int], attack: Attack, seconds: float = 60) -> tuple[int, str]:
    """The status and the body of the answer; status 0 where the connection was cut without one."""
    with socket.create_connection(address, timeout=seconds) as connection:
        got = b""
        try:
            for part in attack.parts:
                connection.sendall(part)
                if attack.pause:
                    connection.settimeout(attack.pause)
                    try:
                        got += connection.recv(65536)
                        if got:
                            break
                    except TimeoutError:
                        pass
        except (ConnectionError, BrokenPipeError):
            pass  # it was answered before it was whole
        connection.settimeout(seconds)
        try:
            while part := connection.recv(65536):
                got += part
        except ConnectionError:
            pass
    head, _, body = got.partition(b"\r\n\r\n")
    words = head.split(b" ")
    status = int(words[1]) if len(words) > 1 and words[0] == b"HTTP/1.1" else 0
    return status, body.decode("utf-8", "replace")


def asked(path: str, body: bytes, headers: str = "", method: str = "POST") -> bytes:
    """A whole request with a key that may do everything."""
    kind = "" if "content-type" in headers else "content-type: application/json\r\n"
    key = "" if "authorization" in headers else KEYED
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{key}{kind}{headers}"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


def put(body: bytes, name: str = "hostile", headers: str = "") -> bytes:
    return asked(f"/v1/steerings/{name}", body, headers, "PUT")


def fair(**more: Any) -> dict[str, Any]:
    """A request that would be served, but for what is given."""
    return {"model": "base", "messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 2, **more}


def dumped(body: Any) -> bytes:
    return json.dumps(body).encode()


# --- JSON ---------------------------------------------------------------------------------------------------------------


def malformed_json(n: int, rng: random.Random, good: bytes) -> Attack:
    whole = dumped(fair(seed=n))
    at = rng.randrange(1, len(whole) - 1)
    body = (
        whole[:at],
        whole + whole,
        whole[:at] + bytes([rng.randrange(0x80, 0xC0)]) + whole[at:],
        b"[" * (n + 500),
        whole[:-1] + b"," * (n + 1) + b"}",
        whole.replace(b'"', b"'") + b" " * n,
        b'{"model": ' + b"NaInfinity-"[n % 5 : n % 5 + 4] + b", %d}" % n,
        b"// %d\n" % n + whole + b"/*",
    )[n % 8]
    return Attack("malformed JSON", (asked((CHAT, TEXT)[n % 2], body),))


WRONG: tuple[tuple[str, Any], ...] = (
    ("model", 3), ("model", None), ("model", ["base"]), ("model", ""), ("messages", "hello"), ("messages", {}),
    ("messages", [3]), ("messages", [{"role": "user"}]), ("messages", [{"role": 3, "content": "x"}]),
    ("messages", [{"role": "user", "content": 3}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]),
    ("messages", [{"role": "root", "content": "x"}]), ("messages", [{"role": "user", "content": "x", "steering": "x"}]),
    ("messages", None), ("steering", 3), ("steering", {"name": "formal"}), ("steering", [[]]),
    ("steering", [{"name": "formal", "strength": True}]), ("steering", [{"name": "formal", "strength": "1"}]),
    ("steering", [{"name": "formal", "strength": []}]), ("steering", [{"strength": 1}]),
    ("steering", [{"name": "formal", "positions": 3}]), ("readouts", "formal"), ("readouts", [None]), ("unsteered", "json"),
    ("unsteered", [["a"]]), ("unsteered", [["a", "b", "c"]]), ("unsteered", [[1, 2]]), ("n", 0), ("n", 1.5), ("n", "1"),
    ("n", -1), ("stop", 3), ("stop", [""]), ("stop", [1]), ("seed", "7"), ("seed", 1.5), ("temperature", "hot"),
    ("temperature", -1), ("top_p", 0), ("top_p", 2), ("top_k", 0), ("top_k", 1.5), ("max_tokens", 0), ("max_tokens", True),
    ("stream", "yes"), ("stream", 1), ("stream_options", []), ("logprobs", "all"), ("top_logprobs", 21),
    ("logit_bias", {"5": 100}), ("metadata", {"a": 1}), ("strict", 1), ("tools", "all"), ("tools", [{"type": "shell"}]),
    ("tools", [{"type": "function", "function": {"name": "../x"}}]), ("tool_choice", "x"),
    ("response_format", {"type": "python"}), ("extra_body", {}), ("__proto__", {}), ("model_config", {}), ("user", 3),
)  # fmt: skip


def wrong_types(n: int, rng: random.Random, good: bytes) -> Attack:
    name, value = WRONG[n % len(WRONG)]
    return Attack("wrong types", (asked(CHAT, dumped(fair(seed=n) | {name: value})),))


def huge_fields(n: int, rng: random.Random, good: bytes) -> Attack:
    many = 2000 + n
    body: Any = (
        lambda: fair(steering="x" * many),
        lambda: fair(model="base+" + "y" * many),
        lambda: fair(stop=["z" * many]),
        lambda: fair(steering=["formal"] * (300 + n)),
        lambda: fair(n=10 ** (3 + n)),
        lambda: fair(max_tokens=10 ** (4 + n)),
        lambda: fair(messages=[{"role": "user", "content": "w1 " * many}]),
        lambda: fair(messages=[{"role": "user", "content": "w1"}] * (513 + n)),
        lambda: fair(seed=10 ** (25 + n)),
        lambda: fair(unsteered=[["a" * (300 + n), "b"]]),
        lambda: fair(user="u" * (BODY + n)),
        lambda: fair(temperature=10.0 ** (9 + n % 250)),
        lambda: fair(steering=[{"name": "formal", "strength": 10.0 ** (200 + n % 100)}]),
        lambda: fair(steering=[{"name": "formal", "positions": "f" + "9" * (20 + n % 40)}]),
    )[n % 14]()
    return Attack("huge fields", (asked(CHAT, dumped(body)),))


# --- names --------------------------------------------------------------------------------------------------------------

PATHS = (
    "../secret", "..%2f..%2fetc%2fpasswd", "%2e%2e%2fkeys.yaml", "....//x", "a%00b", "%00", "a%2f..%2fb", "con%3a",
    "C%3a%5cx", ".hidden", "-rf", "base", "a..b", "%c0%ae%c0%ae%2f", "a%0d%0ax-evil%3a%201", "a%20b", "%e2%80%ae", "x" * 65,
    "formal%2f..%2f..", "~root", "$(id)", "%60id%60", "%7b%7b7*7%7d%7d", "a;b", "a%3fb", "a%23b", "deadbeefdeadbeef",
    "0" * 64, "*", "..", "%252e%252e%252f", "a%5c..%5cb",
)  # fmt: skip


def path_tricks(n: int, rng: random.Random, good: bytes) -> Attack:
    path, turn = PATHS[n % len(PATHS)], n // len(PATHS)
    if turn % 2:
        from urllib.parse import unquote

        name = unquote(path, errors="replace") + "/" * (turn // 2) + "../x"
        return Attack("path tricks", (asked(CHAT, dumped(fair(steering=name[:200], seed=n))),))
    made = (
        asked(f"/v1/steerings/{path}{'%2f' * (turn // 2)}", good, method="PUT"),
        asked(f"/v1/steerings/{path}/file{'%2f' * (turn // 2)}", b"", method="GET"),
        asked(f"/v1/steerings/{path}{'%2f..' * (turn // 2 + 1)}", b"", method="DELETE"),
    )[n % 3]
    return Attack("path tricks", (made,))


# --- uploads ------------------------------------------------------------------------------------------------------------


class Harm:
    """What a pickle would do, were one ever read: make a file."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch pickled-{self.n}",)


def pickles(n: int, rng: random.Random, good: bytes) -> Attack:
    data = pickle.dumps({"steering": Harm(n)}, protocol=n % 6)
    if n % 4 == 1:  # as torch.save writes it
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", "3")
        data = packed.getvalue()
    elif n % 4 == 2:  # under a length as safetensors has one
        data = struct.pack("<Q", len(data)) + data
    elif n % 4 == 3:  # in the header's metadata
        text = dumped({"__metadata__": {"steerlab": data.decode("latin-1"), "format": "pt"}})
        data = struct.pack("<Q", len(text)) + text
    return Attack("pickles", (put(data, f"p{n}"),))


def zip_bombs(n: int, rng: random.Random, good: bytes) -> Attack:
    size = 1_000_000 + 10_000 * n
    if n % 3 == 0:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for k in range(1 + n % 5):
                archive.writestr(f"{k}.safetensors", b"\0" * size)
        return Attack("zip bombs", (put(packed.getvalue(), f"z{n}"),))
    how = ("gzip", "deflate", "x-gzip", "gzip, gzip", "br", "zstd")[n % 6]
    squeezed = gzip.compress(b" " * size) if "gzip" in how else zlib.compress(b" " * size)
    if n % 3 == 1:
        return Attack("zip bombs", (put(squeezed, f"z{n}", f"content-encoding: {how}\r\n"),))
    return Attack("zip bombs", (asked(CHAT, squeezed, f"content-encoding: {how}\r\n"),))


def truncated(n: int, rng: random.Random, good: bytes) -> Attack:
    return Attack("truncated safetensors", (put(good[: rng.randrange(len(good) - 1)], f"t{n}"),))


def packed_again(good: bytes, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """The file with its header changed: its tensors, and what its metadata says of the steering."""
    (length,) = struct.unpack("<Q", good[:8])
    head = json.loads(good[8 : 8 + length])
    told = json.loads(head["__metadata__"]["steerlab"])
    change(head, told)
    if isinstance(head.get("__metadata__"), dict):
        head["__metadata__"]["steerlab"] = json.dumps(told)
    text = dumped(head)
    return struct.pack("<Q", len(text)) + text + good[8 + length :]


def lying(n: int, rng: random.Random, good: bytes) -> Attack:
    k = n // 20

    def tensor(head: dict[str, Any]) -> dict[str, Any]:
        return head[min(head)]

    changes: tuple[Callable[[dict[str, Any], dict[str, Any]], Any], ...] = (
        lambda h, t: tensor(h).update(shape=[2 ** (20 + k)]),
        lambda h, t: tensor(h).update(shape=[-(k + 1)]),
        lambda h, t: tensor(h).update(dtype=f"F{3 + k}"),
        lambda h, t: tensor(h).update(data_offsets=[0, 10 ** (9 + k)]),
        lambda h, t: tensor(h).update(data_offsets=[64 + k, 0]),
        lambda h, t: h.update({f"more.{k}": {**tensor(h)}}),
        lambda h, t: h.update(__metadata__=f"pt{k}"),
        lambda h, t: t.update(format=99 + k),
        lambda h, t: t["interventions"][0].update(site=f"resid@{99 + k}"),
        lambda h, t: t["interventions"][0].update(site=f"../{k}"),
        lambda h, t: t["interventions"][0]["edit"].update(kind=f"os.system{k}"),
        lambda h, t: t["interventions"][0]["control"].update(kind=f"__import__{k}"),
        lambda h, t: t["meta"].update(fingerprint={"shape": "0" * (k + 1), "sketch": {}}),
        lambda h, t: t.update(interventions=t["interventions"] * (600 + k)),
        lambda h, t: t["interventions"][0].update(positions={"prompt": [[0, 10 ** (12 + k), "body"]], "generated": []}),
        lambda h, t: t["interventions"][0]["edit"].update({f"more{k}": 1}),
        lambda h, t: t.update(interventions={"0": k}),
        lambda h, t: t.update(prompt={"text": ["x"] * (k + 1)}),
        lambda h, t: tensor(h).update(shape=[2**31, 2**31, k + 1]),
    )
    if n % 20 < len(changes):
        return Attack("lying safetensors", (put(packed_again(good, changes[n % 20]), f"l{n}"),))
    return Attack("lying safetensors", (put(struct.pack("<Q", 2 ** (30 + k)) + good[8:], f"l{n}"),))


# --- connections --------------------------------------------------------------------------------------------------------


def header_floods(n: int, rng: random.Random, good: bytes) -> Attack:
    body = dumped(fair(seed=n))
    made = (
        lambda: asked(CHAT, body, "".join(f"x-{k}: y\r\n" for k in range(101 + n))),
        lambda: asked(CHAT, body, f"x: {'y' * (33_000 + 100 * n)}\r\n"),
        lambda: asked(CHAT, body, "".join(f"x-{k}: {'z' * 900}\r\n" for k in range(40 + n))),
        lambda: asked("/" + "a" * (9000 + n), body),
        lambda: asked(f"{CHAT}?{'b' * (9000 + n)}", body),
        lambda: asked(CHAT, body, f"cookie: {'c=d; ' * (7000 + n)}\r\n"),
    )[n % 6]()
    return Attack("header floods", (made,))


def slow_clients(n: int, rng: random.Random, good: bytes) -> Attack:
    """Nobody waits for longer than the server's patience; what is sent a byte at a time isn't, either."""
    whole = asked(f"{CHAT}?{n}", dumped(fair(seed=n)))
    head = whole.index(b"\r\n\r\n") + 4
    made = (
        lambda: ((whole[: n // 6],) if n else (), 0.0),
        lambda: ((whole[: 10 + n],), 0.0),
        lambda: ((whole[: head + 5 + n],), 0.0),
        lambda: (tuple(whole[k : k + 1] for k in range(60)), 0.1),
        lambda: ((whole[:head], *(whole[head + k : head + k + 1] for k in range(60))), 0.1),
        lambda: ((put(good, f"s{n}")[:-20],), 0.0),
    )[n % 6]()
    parts, pause = made
    return Attack("slow clients", parts, pause, (408,))


def wrong_keys(n: int, rng: random.Random, good: bytes) -> Attack:
    body = dumped(fair(seed=n))
    wrong = (
        f"Bearer {ADMIN[: n % len(ADMIN)]}", f"Bearer {ADMIN}{n}", f"Basic {ADMIN}", "Bearer", f"bearer  {ADMIN.upper()}", ADMIN,
        f"Bearer {ADMIN} {ADMIN}", f"Token {ADMIN}", f"Bearer %00{n}", "Bearer ' OR 1=1 --", f"Bearer {'x' * (1000 + n)}",
        "Bearer null",
    )  # fmt: skip
    if n % 4 == 3:  # a good key that may not do this
        mine = f"authorization: Bearer {USE}\r\n"
        made = (
            asked(f"/v1/steerings/formal{n}", good, mine, "PUT"),
            asked(f"/v1/steerings/formal?{n}", b"", mine, "DELETE"),
            asked(f"/metrics?{n}", b"", mine, "GET"),
        )[n // 4 % 3]
        return Attack("wrong keys", (made,), statuses=(403,))
    path, method, data = ((CHAT, "POST", body), ("/v1/steerings/x", "PUT", good), ("/v1/steerings", "GET", b""))[n % 3]
    headers = f"authorization: {wrong[n % len(wrong)]}\r\nx-n: {n}\r\n"
    return Attack("wrong keys", (asked(path, data, headers, method),), statuses=(401,))


UNICODE = (
    "\u202egnp.exe", "ｆｏｒｍａｌ", "form\u0430l", "\ufeffformal", "formal\u200b", "\U0001f3f4\u200d\u2620\ufe0f",
    "e\u0301" * 20, "\u0000formal", "ﬀ", "Ω", "formal\u2028", "İ",
)  # fmt: skip


def odd_unicode(n: int, rng: random.Random, good: bytes) -> Attack:
    word = UNICODE[n % len(UNICODE)] + str(n // len(UNICODE))
    whole = dumped(fair(seed=n))
    made = (
        lambda: asked(CHAT, dumped(fair(steering=word, seed=n))),
        lambda: asked(CHAT, json.dumps(fair(model=f"base+{word}", seed=n), ensure_ascii=False).encode("utf-8")),
        lambda: asked(CHAT, whole.replace(b"w1", b"\\ud8%02x" % (n % 256))),
        lambda: asked(CHAT, whole.replace(b"w1", bytes([0xF8 + n % 8, 0x88, 0x80]))),
        lambda: asked(CHAT, whole.decode().encode("utf-16" if n % 2 else "utf-32")),
        lambda: asked(f"/v1/steerings/{''.join(f'%{b:02x}' for b in word.encode())}", good, method="PUT"),
    )[n % 6]()
    return Attack("unicode", (made,))


def broken_http(n: int, rng: random.Random, good: bytes) -> Attack:
    body = dumped(fair(seed=n))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nx-n: {n}\r\n{KEYED}content-type: application/json\r\n".encode()
    made = (
        bytes(rng.randrange(128, 256) for _ in range(20 + n)) + b"\r\n\r\n",
        head + b"content-length: -%d\r\n\r\n" % (n + 1),
        head + b"transfer-encoding: chunked\r\n\r\nz%d\r\n" % n,
        head + b"content-length: 5\r\ncontent-length: %d\r\n\r\n" % (6 + n) + body,
        head + b"host: evil.example\r\ncontent-length: %d\r\n\r\n" % len(body) + body,
        head.replace(b"x-n", b"x n") + b"content-length: %d\r\n\r\n" % len(body) + body,
        head + b"content-length: %d\r\n\r\n" % (10**9 + n) + b" " * (4 * BODY + 10_000),
        asked(CHAT, body, f"content-type: text/plain; n={n}\r\n"),
        asked(f"/v1/nothing/{n}", body),
        asked(CHAT, body + b"\n" * n, method="PATCH"),
    )[n % 10]
    return Attack("broken HTTP", (made,))


KINDS = (
    malformed_json, wrong_types, huge_fields, path_tricks, pickles, zip_bombs, truncated, lying, header_floods, slow_clients,
    wrong_keys, odd_unicode, broken_http,
)  # fmt: skip
