"""What a server allows, and how long it waits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

ORIGIN = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?", re.ASCII)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of a server; times in seconds, sizes in bytes."""

    name: str | None = None  # the model's, as requests have it; its own where there is none
    store: Path = Path("steerings")  # where uploaded steerings are kept
    rows: int = 64  # replies that are decoded at once
    waiting: int = 256  # replies that may wait beyond these; more get 429
    prefill: int = 4096  # prompt tokens (padding included) that are read between two steps
    most_tokens: int = 1024  # longest reply that may be asked for
    default_tokens: int = 256  # of a chat that doesn't say
    choices: int = 8  # replies to one request (n)
    prompts: int = 16  # prompts of one request of /v1/completions
    terms: int = 16  # steerings in one request
    connections: int = 2048
    peer: int = 512  # connections of one client (address); 0: as many as there are
    body: int = 1 << 20
    upload: int = 16 << 20
    stored: int = 1000  # steerings that are kept
    rate: float = 0.0  # requests a minute and key; 0: as many as come
    timeout: float = 120.0  # a request, waiting included
    patience: float = 10.0  # for a client to send its headers, and its body
    drain: float = 60.0  # for running requests once the server is told to end
    cors: tuple[str, ...] = ()  # origins whose pages may call
    monitors: tuple[str, ...] = ()  # steerings that are read on every request, for /metrics
    log_prompts: bool = False
    shared: bool = False  # other servers keep steerings in the same folder
    adopt: bool = False  # steerings of other models and templates are taken over as they are, without their ranges
    strict: bool = False  # strengths beyond a calibrated range, and steerings without one, are refused

    def __post_init__(self) -> None:
        for name in (
            "rows",
            "prefill",
            "most_tokens",
            "default_tokens",
            "choices",
            "prompts",
            "terms",
            "connections",
            "body",
            "upload",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("timeout", "patience", "drain"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected some seconds.")
        if self.waiting < 0 or self.rate < 0 or self.stored < 0 or self.peer < 0:
            raise ConfigError(
                f"waiting is {self.waiting}, rate {self.rate}, stored {self.stored} and peer {self.peer}; expected 0 or more."
            )
        if self.name is not None:
            check_model_name(self.name)
        for origin in self.cors:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"the origin {origin!r} is none; expected one like https://example.org or http://localhost:3000 (scheme,"
                    " host, perhaps a port; no path, no slash at the end), or '*'."
                )


def check_model_name(name: str) -> None:
    """Raise `ConfigError` for what can't be a served model's name: it stands in requests, and '+' begins a steering there."""
    if not 0 < len(name) <= 256 or not name.isprintable() or "+" in name or name != name.strip():
        raise ConfigError(
            f"the served model can't be called {name[:80]!r}; expected 1 to 256 printable characters without '+', such as"
            " my-model."
        )


def model_name(loaded: str) -> str:
    """What a model is called where nobody says: its name, or the last part of the path that it was loaded from."""
    path = Path(loaded)
    if path.is_absolute() or loaded.startswith((".", "~")) or loaded.count("/") > 1 or path.is_dir():
        last = "".join(c for c in path.resolve().name if c.isprintable() and c != "+").strip()
        return last[:256] or "model"
    return loaded
