"""What a report gains where scripts run: sorting, and one table at a time. Without it, all of it is there."""

from __future__ import annotations

SCRIPT = """"use strict";
(() => {
  const all = (root, what) => [...root.querySelectorAll(what)];
  const made = (name, text) => { const e = document.createElement(name); e.textContent = text; return e; };

  // sort the methods of a table by a column; the references stay below
  const value = (row, at) => {
    const cell = row.cells[at], given = cell.dataset.sort;
    return given !== undefined ? Number(given) : cell.classList.contains("num") ? null : cell.textContent;
  };
  const compare = (a, b, way) =>
    a === null || b === null ? (a === null) - (b === null) :
    way * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  for (const table of all(document, ".panel table")) {
    const heads = all(table, "thead th");
    heads.forEach((head, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.classList.contains("num") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const now = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach(h => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", now);
        const body = table.querySelector("tbody.methods");
        if (!body) return;
        const way = now === "ascending" ? 1 : -1;
        body.append(...[...body.rows].sort((a, b) => compare(value(a, at), value(b, at), way)));
      });
    });
  }

  // one table at a time, and unit rows, tuned rows or both
  for (const box of all(document, ".tabbed")) {
    const panels = all(box, ".panel");
    if (panels.length > 1) {
      const bar = made("div", "");
      bar.className = "tabs";
      bar.setAttribute("role", "tablist");
      const show = n => panels.forEach((panel, k) => {
        panel.hidden = k !== n;
        const tab = bar.children[k];
        tab.setAttribute("aria-selected", k === n);
        tab.tabIndex = k === n ? 0 : -1;
      });
      panels.forEach((panel, k) => {
        const tab = made("button", panel.dataset.name);
        tab.type = "button";
        tab.setAttribute("role", "tab");
        tab.setAttribute("aria-controls", panel.id);
        panel.setAttribute("role", "tabpanel");
        panel.setAttribute("aria-label", panel.dataset.name);
        tab.addEventListener("click", () => show(k));
        tab.addEventListener("keydown", event => {
          const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
          if (!by) return;
          const next = (k + by + panels.length) % panels.length;
          show(next);
          bar.children[next].focus();
        });
        bar.append(tab);
      });
      box.prepend(bar);
      box.classList.add("on");
      show(0);
    }
    const settings = new Set(all(box, "tr[data-setting]").map(row => row.dataset.setting));
    if (settings.size > 1) {
      const picks = made("div", "");
      picks.className = "picks";
      for (const pick of ["unit and tuned", ...settings]) {
        const button = made("button", pick);
        button.type = "button";
        button.setAttribute("aria-pressed", pick === "unit and tuned");
        button.addEventListener("click", () => {
          for (const row of all(box, "tbody.methods tr[data-setting]"))
            row.hidden = pick !== "unit and tuned" && row.dataset.setting !== pick;
          for (const other of picks.children) other.setAttribute("aria-pressed", other === button);
        });
        picks.append(button);
      }
      box.before(picks);
    }
  }
})();
"""
