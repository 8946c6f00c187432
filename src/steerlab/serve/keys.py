"""Who may do what, and how often: bearer keys with scopes, and a bucket of requests for each."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from .. import config
from ..errors import ConfigError, nearest
from .problems import Problem
from .settings import LOOPBACK

SCOPES = ("use", "upload", "admin")
REMEMBERED = 10_000  # buckets


@dataclass(frozen=True, slots=True)
class Key:
    """A key by its name for logs, the SHA-256 of its secret, and what it may do (admin may do all)."""

    name: str
    digest: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether it has a scope."""
        return scope in self.scopes or "admin" in self.scopes


ANYBODY = Key("anybody", "", frozenset(SCOPES))


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a server; without any, whoever reaches it may do everything, so it must be reached from here alone."""

    keys: tuple[Key, ...] = ()

    @classmethod
    def read(cls, path: Path | None, secret: str | None = None) -> Keys:
        """Keys from a YAML file `keys: [{name, key or sha256, scopes}]`, and one admin key. Raises `ConfigError`."""
        found = [] if not secret else [Key("environment", sha256(secret), frozenset(SCOPES))]
        rows: object = [] if path is None else config.read_yaml(path).get("keys")
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise ConfigError(f"{path} has no list 'keys'; expected keys: [{{name: ..., key: ..., scopes: [use]}}].")
        for n, row in enumerate(cast("Sequence[object]", rows)):
            found.append(_key(row, n, path))
        if path is not None and not found:
            raise ConfigError(f"{path} holds no key; give at least one, or leave the file out.")
        if len({key.digest for key in found}) < len(found) or len({key.name for key in found}) < len(found):
            raise ConfigError(f"{path} has two keys of one name, or one key twice.")
        return cls(tuple(found))

    def known(self, header: str | None, host: str | None) -> Key:
        """Whose request it is. Raises `Problem` 401 for no key or a wrong one."""
        if not self.keys:
            if not _here(host):
                raise Problem(403, "this server has no keys, so it answers only to its own machine's names.", "no_keys")
            return ANYBODY
        kind, _, secret = (header or "").partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise Problem(401, "there is no key; send the header 'Authorization: Bearer KEY'.", "no_key")
        given, found = sha256(secret.strip()), None
        for key in self.keys:  # all of them, so that the time taken tells nothing
            if hmac.compare_digest(given, key.digest):
                found = key
        if found is None:
            raise Problem(401, "this key isn't known here.", "wrong_key")
        return found


@dataclass(slots=True)
class Buckets:
    """For each key as many requests a minute as `rate` says, which may come at once; 0 is no limit."""

    rate: float
    _left: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def take(self, who: str) -> None:
        """Count a request. Raises `Problem` 429, which says when to try again."""
        if self.rate <= 0:
            return
        now, most = time.monotonic(), max(1.0, self.rate)
        left, then = self._left.get(who, (most, now))
        left = min(most, left + (now - then) * self.rate / 60)
        if left < 1:
            wait = (1 - left) * 60 / self.rate
            raise Problem(
                429, f"more than {self.rate:g} requests a minute; try again in {wait:.0f} s.", "rate_limit", after=wait
            )
        if len(self._left) >= REMEMBERED:
            self._left.clear()
        self._left[who] = (left - 1, now)


def sha256(secret: str) -> str:
    """The digest that is kept and compared."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _key(row: object, n: int, path: Path | None) -> Key:
    if not isinstance(row, Mapping):
        raise ConfigError(f"key {n} of {path} is {type(row).__name__}; expected name, key (or sha256) and scopes.")
    given = cast("Mapping[str, Any]", row)
    known = ("name", "key", "sha256", "scopes")
    for word in given:
        if word not in known:
            raise ConfigError(f"key {n} of {path} has the field {word!r}. {nearest(str(word), known)}")
    name, secret, digest = given.get("name"), given.get("key"), given.get("sha256")
    if not isinstance(name, str) or not name or (secret is None) == (digest is None):
        raise ConfigError(f"key {n} of {path} needs a name, and either its key or the key's sha256.")
    if secret is not None and (not isinstance(secret, str) or len(secret) < 16):
        raise ConfigError(f"the key {name!r} of {path} is shorter than 16 characters; draw it at random.")
    scopes = given.get("scopes", ["use"])
    if not isinstance(scopes, list) or not scopes:
        raise ConfigError(f"the key {name!r} of {path} has no scopes; expected some of {', '.join(SCOPES)}.")
    for scope in cast("list[object]", scopes):
        if scope not in SCOPES:
            raise ConfigError(f"the key {name!r} of {path} has the scope {scope!r}. {nearest(str(scope), SCOPES)}")
    made = sha256(secret) if isinstance(secret, str) else str(digest).lower()
    return Key(name, made, frozenset(cast("list[str]", scopes)))


def _here(host: str | None) -> bool:
    """Whether a Host header names this machine as it names itself: a page elsewhere that points its own name here doesn't."""
    bare = (host or "").strip().lower()
    bare = bare[1 : bare.index("]")] if bare.startswith("[") and "]" in bare else bare.rsplit(":", 1)[0]
    return bare in LOOPBACK
