"""Faults that are planted on purpose, into the engine or into a server, to see that receipts catch them.

Each takes pytest's `monkeypatch`.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

import steerlab as sl
from steerlab.engines import hf_cache, hf_generate, hf_hooks, hf_sites
from steerlab.serve import begin, resolve, scheduler

EDITED, READY = hf_hooks.Hooks._edited, hf_hooks.Group.ready


def off_by_one(monkeypatch):
    """The block before the one that was meant."""
    point = hf_sites.Anatomy.point

    def wrong(self, site):
        return point(self, sl.Site(site.layer - 1) if site.part == "resid" else site)

    monkeypatch.setattr(hf_sites.Anatomy, "point", wrong)


def half_stream(monkeypatch):
    """The edit sees one of two halves that make up the stream."""
    monkeypatch.setattr(hf_hooks.Hooks, "_edited", lambda self, g, h: h / 2 + EDITED(self, g, h / 2))


def strength(change):
    def planted(monkeypatch):
        def ready(self, device):
            rows, given = READY(self, device)
            return rows, change(given)

        monkeypatch.setattr(hf_hooks.Group, "ready", ready)

    return planted


def template_steered(monkeypatch):
    """The template's head isn't left out."""
    mask = sl.Positions.mask
    monkeypatch.setattr(sl.Positions, "mask", lambda self, p, n, head: mask(self, p, n, head * 0))


def padding_counts(monkeypatch):
    """Positions are counted from the row's first column, padding included."""

    def edited(self, group, h):
        tokens = self.tokens
        shifted = (
            torch.arange(tokens.position.shape[1])[None].expand_as(tokens.position)
            + tokens.position.max(dim=1).values[:, None] * 0
        )
        kept = tokens.position
        if tokens.position.shape[1] > 1:
            self.tokens = tokens._replace(position=shifted)
        try:
            return EDITED(self, group, h)
        finally:
            self.tokens = tokens._replace(position=kept)

    monkeypatch.setattr(hf_hooks.Hooks, "_edited", edited)


def leaks_to_neighbours(monkeypatch):
    """Every row of the batch gets the edit of some."""

    def edited(self, group, h):
        out = EDITED(self, group, h)
        return h + (out - h).mean(dim=0, keepdim=True)

    monkeypatch.setattr(hf_hooks.Hooks, "_edited", edited)


def forgotten_with_a_cache(monkeypatch):
    """Steered while the prompt is read, not while tokens are decoded one by one."""
    monkeypatch.setattr(hf_hooks.Hooks, "_edited", lambda self, g, h: h if h.shape[1] == 1 else EDITED(self, g, h))


def wrong_dtype(monkeypatch):
    """The edit is computed in the 16 bits of a model that isn't in 16 bits."""

    def edited(self, group, h):
        return EDITED(self, group, h.bfloat16()).to(h.dtype)

    monkeypatch.setattr(hf_hooks.Hooks, "_edited", edited)


def rows_mixed_up(monkeypatch):
    """Rows that leave the batch take the wrong steering with them."""
    monkeypatch.setattr(hf_generate.Plan, "keep", lambda self, rows: None)


def always_on(monkeypatch):
    """Strength 0 runs the edit instead of leaving the activation alone."""

    def edited(self, group, h):
        return EDITED(self, group, h) + 0 * h + 1e-7

    init = hf_hooks.Plan.__init__

    def wrong(self, steerings):
        init(
            self, [s.scaled(1) if s is not None and s.interventions[0].control.value else _least(s) for s in steerings]
        )

    monkeypatch.setattr(hf_hooks.Plan, "__init__", wrong)
    monkeypatch.setattr(hf_hooks.Hooks, "_edited", edited)


def _least(steering):
    if steering is None:
        return None
    return sl.Steering(tuple(replace(i, control=sl.Constant(1e-3)) for i in steering.interventions))


# --- of a server alone ---------------------------------------------------------------------------------------------------


def unsalted(monkeypatch):
    """What a prompt left in the cache is there for all who have the same prompt, whatever their steering."""
    begins, seen = hf_generate.Decoder.begin, {}

    def wrong(self):
        own, hooks = self._plan, self._hooks
        self._plan = hf_hooks.Plan([seen.setdefault(tuple(row.prompt.ids), row.steering) for row in self.rows])
        self._hooks = self._hooked()
        begins(self)
        self._plan, self._hooks = own, hooks

    monkeypatch.setattr(hf_generate.Decoder, "begin", wrong)


def stale(monkeypatch):
    """What was worked out for a steering's first request is taken for the next ones, at whatever strength."""
    part, made = resolve._part, {}
    monkeypatch.setattr(resolve, "_part", lambda term, store: made.setdefault(term.name, part(term, store)))


def asked_without(monkeypatch):
    """The steering is resolved, named in the answer, and not handed to the model."""
    ask = begin.Ask
    monkeypatch.setattr(begin, "Ask", lambda prompt, steering, *rest: ask(prompt, None, *rest))


def asked_at(change):
    """The strength that is applied isn't the one in the answer."""

    def planted(monkeypatch):
        ask = begin.Ask
        monkeypatch.setattr(
            begin,
            "Ask",
            lambda prompt, steering, *rest: ask(prompt, None if steering is None else change(steering), *rest),
        )

    return planted


def wrongly_joined(monkeypatch):
    """Caches are padded behind what they hold, while masks are padded before it."""
    wider = hf_cache.wider

    def wrong(t, width, dim):
        spare = width - t.shape[dim]
        behind = torch.cat([t, t.new_zeros((*t.shape[:dim], spare, *t.shape[dim + 1 :]))], dim)
        return behind if dim == 2 else wider(t, width, dim)

    monkeypatch.setattr(hf_cache, "wider", wrong)


def padding_counts_at_once(monkeypatch):
    """As above, where a server admits what comes within a moment at once, so that prompts are padded."""
    taken = scheduler.Scheduler._taken

    def patient(self):
        if self._waiting and not self._jobs:
            time.sleep(0.03)
        return taken(self)

    monkeypatch.setattr(scheduler.Scheduler, "_taken", patient)
    padding_counts(monkeypatch)
