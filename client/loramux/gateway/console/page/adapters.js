// The table of adapters: a row for each name, updated as adapters change.

import { byId, h, notice, setText } from "./dom.js";
import { openDetail } from "./detail.js";
import { ago, bytes, count, percent, splitText, taskName, tierName } from "./format.js";
import { registry } from "./registry.js";

const PAGE = 200;
const COLUMNS = [
  { id: "name", label: "Adapter", by: (group) => group.name },
  { id: "versions", label: "Versions", by: (group) => group.versions.length, number: true },
  { id: "aliases", label: "Aliases", by: (group) => [...group.aliases.keys()].join() },
  { id: "rank", label: "Rank", by: (group) => group.newest.rank, number: true },
  { id: "size", label: "Size", by: (group) => group.newest.size_bytes, number: true },
  { id: "tier", label: "Where", by: (group) => ["stored", "host", "device"].indexOf(group.tier) },
  { id: "flight", label: "In flight", by: (group) => group.calls, number: true },
  { id: "calls", label: "Calls", by: (group) => group.requests, number: true },
  { id: "hits", label: "Hit rate", by: (group) => (group.requests ? group.hits / group.requests : -1), number: true },
  { id: "used", label: "Last used", by: (group) => group.lastUsed, number: true },
];

let sorted = { id: "name", falls: false };
let limit = PAGE;
const rows = new Map();

export function startAdapters() {
  byId("adapters").tHead.rows[0].append(...COLUMNS.map(heading));
  byId("filter").addEventListener("input", () => { limit = PAGE; render(); });
  byId("more-button").addEventListener("click", () => { limit += PAGE; render(); });
  registry.addEventListener("adapters", render);
  setInterval(render, 10_000); // refresh relative times
}

function heading(column) {
  const button = h("button", { type: "button", onclick: () => sortBy(column) }, column.label);
  const cell = h("th", { scope: "col", class: column.number ? "number" : null, "data-column": column.id }, button);
  if (column.id === sorted.id) cell.setAttribute("aria-sort", "ascending");
  return cell;
}

function sortBy(column) {
  const falls = sorted.id === column.id ? !sorted.falls : Boolean(column.number);
  sorted = { id: column.id, falls };
  for (const cell of byId("adapters").tHead.rows[0].cells) {
    cell.removeAttribute("aria-sort");
    if (cell.dataset.column === column.id) cell.setAttribute("aria-sort", falls ? "descending" : "ascending");
  }
  render();
}

function wanted(groups) {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const by = COLUMNS.find(({ id }) => id === sorted.id).by;
  const sign = sorted.falls ? -1 : 1;
  return groups
    .filter((group) => words.every((word) => searched(group).includes(word)))
    .sort((a, b) => {
      const [x, y] = [by(a), by(b)];
      return x === y ? (a.key < b.key ? -1 : 1) : x < y ? -sign : sign;
    });
}

function searched(group) {
  const parts = group.versions.flatMap((version) => [version.digest, version.method, version.task || "generate"]);
  return [group.key, ...group.aliases.keys(), tierName(group.tier), group.isPinned ? "pinned" : "", ...parts].join(" ").toLowerCase();
}

function render() {
  const groups = registry.groups();
  const found = wanted(groups);
  const filter = byId("filter").value;
  setText(byId("tally"), groups.length ? (filter ? `${count(found.length)} of ${count(groups.length)}` : count(groups.length)) : "");
  const shown = found.slice(0, limit);
  const keys = new Set(shown.map((group) => group.key));
  for (const [key, row] of rows) {
    if (!keys.has(key)) {
      row.element.remove();
      rows.delete(key);
    }
  }
  const body = byId("adapters").tBodies[0];
  shown.forEach((group, place) => {
    if (!rows.has(group.key)) rows.set(group.key, new Row(group.key));
    const row = rows.get(group.key);
    row.update(group);
    if (body.children[place] !== row.element) body.insertBefore(row.element, body.children[place] ?? null);
  });
  byId("more").hidden = found.length <= limit;
  showEmpty(groups.length, found.length);
}

function showEmpty(numGroups, numFound) {
  const empty = byId("no-adapters");
  empty.hidden = numFound > 0;
  byId("adapters").hidden = numFound === 0;
  if (numFound > 0) return;
  if (registry.error && !numGroups) empty.replaceChildren(notice(registry.error));
  else if (numGroups) empty.replaceChildren("No adapter matches the filter.");
  else empty.replaceChildren(registry.state === "live" ? "No adapters yet. Upload one, or start the server with --adapters." : "Connecting to the server.");
}

class Row {
  #cells = {};
  #aliases = "";

  constructor(key) {
    this.button = h("button", { type: "button", class: "name", onclick: (event) => { event.stopPropagation(); openDetail(key); } });
    this.kind = h("span", { class: "kind" });
    this.dot = h("span", { class: "tier" });
    this.note = h("span", { class: "tag" });
    for (const { id, label, number } of COLUMNS) {
      this.#cells[id] = h("td", { "data-label": label, class: `${id}${number ? " number" : ""}` });
    }
    this.#cells.name.append(this.button, this.kind);
    this.#cells.tier.append(this.dot, this.note);
    this.element = h("tr", { onclick: () => openDetail(key) }, ...Object.values(this.#cells));
  }

  update(group) {
    const { newest } = group;
    setText(this.button, group.name);
    setText(this.kind, [newest.method, taskName(newest.task)].filter(Boolean).join(" · "));
    setText(this.#cells.versions, group.versions.length > 1 ? `v${newest.version} of ${group.versions.length}` : `v${newest.version}`);
    setText(this.#cells.rank, newest.rank ? String(newest.rank) : "–");
    setText(this.#cells.size, bytes(newest.size_bytes));
    setText(this.dot, tierName(group.tier));
    this.dot.dataset.tier = group.tier;
    const note = group.failure ? "failed" : group.isLoading ? "loading" : group.isPinned ? "pinned" : "";
    setText(this.note, note);
    this.note.hidden = !note;
    this.note.dataset.kind = note;
    this.note.title = group.failure;
    setText(this.#cells.flight, count(group.calls));
    this.#cells.flight.dataset.busy = group.calls > 0 ? "yes" : "no";
    for (const [cell, value] of [["flight", group.calls], ["calls", group.requests], ["hits", group.requests], ["used", group.lastUsed]]) {
      this.#cells[cell].dataset.zero = value ? "no" : "yes";
    }
    setText(this.#cells.calls, count(group.requests));
    setText(this.#cells.hits, percent(group.hits, group.requests));
    setText(this.#cells.used, ago(group.lastUsed));
    this.#showAliases(group);
  }

  #showAliases({ aliases, key, name }) {
    const splits = [...aliases].map(([alias, versions]) => {
      const alone = { [versions[0]]: 1 };
      // The list of adapters has the versions of an alias, but not the weights.
      return [alias, versions.length === 1 ? alone : registry.weights(key, name)[alias] ?? alone];
    });
    const signature = JSON.stringify(splits);
    if (signature === this.#aliases) return;
    this.#aliases = signature;
    this.#cells.aliases.replaceChildren(...splits.map(([alias, weights]) =>
      h("span", { class: "chip" }, alias, h("span", { class: "chip-to" }, splitText(weights)))));
  }
}
