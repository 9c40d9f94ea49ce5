// The server's load, as in `loramux top`.

import { session } from "./api.js";
import { Chart } from "./chart.js";
import { byId, h, notice, setText } from "./dom.js";
import { openDetail } from "./detail.js";
import { ago, bytes, count, decimal, duration, seconds, tierName } from "./format.js";
import { registry } from "./registry.js";

const BUSIEST = 8;
const TILES = [
  { label: "Tokens/s", of: ({ rates }) => rates?.tokens_per_second ?? null, text: decimal, least: 10 },
  { label: "Running", of: ({ load }) => load.running_requests, text: count, more: ({ info }) => `of ${count(info.max_running_requests)}` },
  { label: "Waiting", of: ({ load }) => load.waiting_requests, text: count },
  { label: "Batch", of: ({ rates }) => rates?.mean_batch ?? null, text: decimal, more: ({ rates }) => (rates?.mean_adapters ? `${decimal(rates.mean_adapters)} adapters` : "") },
  { label: "First token", of: ({ rates }) => rates?.first_token_seconds ?? null, text: seconds, least: 0.01 },
  { label: "Between tokens", of: ({ rates }) => rates?.inter_token_seconds ?? null, text: seconds, least: 0.001 },
  { label: "Prompt tokens/s", of: ({ rates }) => rates?.prompt_tokens_per_second ?? null, text: decimal, least: 10 },
  { label: "KV blocks", of: ({ load }) => load.kv_blocks_used, text: count, more: ({ load }) => `of ${count(load.kv_blocks)}` },
];

let tiles = [];
const live = h("div");
const said = h("div");
const memory = h("div", { class: "panel" });
const busiest = h("div", { class: "panel" });
const facts = h("dl", { class: "facts" });

export function startServer() {
  tiles = TILES.map((spec) => new Tile(spec));
  live.append(
    h("div", { class: "tiles" }, tiles.map((tile) => tile.element)),
    h("h2", {}, "Adapter memory"), memory);
  byId("server-body").append(said, live,
    h("h2", {}, "Adapters in memory, busiest first"), busiest,
    h("h2", {}, "Model"), h("div", { class: "panel" }, facts));
  registry.addEventListener("server", showModel);
  registry.addEventListener("load", showLoad);
  for (const other of ["key", "server"]) session.addEventListener(other, () => tiles.forEach((tile) => tile.chart.clear()));
  registry.addEventListener("state", () => registry.error && said.replaceChildren(notice(registry.error)));
}

class Tile {
  constructor(spec) {
    this.spec = spec;
    this.chart = new Chart(`${spec.label}, the last two minutes`, spec.least ?? 1);
    this.value = h("strong");
    this.more = h("span", { class: "tile-more" });
    this.peak = h("span", { class: "tile-peak" });
    this.element = h("div", { class: "panel tile" },
      h("div", { class: "tile-head" }, h("span", { class: "label" }, spec.label), this.peak),
      h("p", { class: "tile-value" }, this.value, this.more), this.chart.element);
  }

  show(state) {
    const value = this.spec.of(state);
    this.chart.add(value);
    setText(this.value, this.spec.text(this.chart.last));
    this.value.dataset.stale = value === null ? "yes" : "no";
    setText(this.more, this.spec.more?.(state) ?? "");
    setText(this.peak, this.chart.peak ? `peak ${this.spec.text(this.chart.peak)}` : "");
  }
}

function showLoad() {
  const { load, refused } = registry;
  said.replaceChildren(...(refused ? [notice(refused)] : []));
  live.hidden = !load;
  showBusiest();
  if (!load) return;
  tiles.forEach((tile) => tile.show(registry));
  setText(byId("uptime"), `up ${duration(load.uptime_seconds)}, ${count(load.requests)} requests, ${count(load.generated_tokens)} tokens`);
  memory.replaceChildren(...[["device", load.device], ["host", load.host]].map(([name, tier]) => tierRow(name, tier)));
}

function tierRow(name, tier) {
  const part = tier.capacity_bytes ? tier.bytes / tier.capacity_bytes : 0;
  const fill = h("span", { class: "meter-fill", "data-tier": name });
  fill.style.width = `${(100 * part).toFixed(1)}%`;
  const counts = [["hits", tier.hits], ["misses", tier.misses], ["evictions", tier.evictions], ["reloads", tier.reloads]];
  return h("div", { class: "tier-row" },
    h("div", { class: "tier-head" },
      h("span", { class: "tier", "data-tier": name }, tierName(name)),
      h("span", {}, `${count(tier.adapters)} adapters, ${bytes(tier.bytes)} of ${bytes(tier.capacity_bytes)}`)),
    h("div", { class: "meter", role: "meter", "aria-label": `${name} memory`, "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(100 * part)) }, fill),
    h("p", { class: "tier-counts" }, counts.map(([label, number]) => h("span", {}, `${count(number)} `, h("small", {}, label)))));
}

function showBusiest() {
  const groups = registry.groups()
    .filter((group) => group.tier !== "stored")
    .sort((a, b) => b.calls - a.calls || (a.lastUsed < b.lastUsed ? 1 : -1))
    .slice(0, BUSIEST);
  if (!groups.length) {
    busiest.replaceChildren(h("p", { class: "none" }, "No adapters in memory."));
    return;
  }
  if (busiest.contains(document.activeElement)) return;
  busiest.replaceChildren(h("ul", { class: "busiest" }, groups.map((group) => h("li", {},
    h("button", { type: "button", class: "name", onclick: () => openDetail(group.key) }, group.name),
    h("span", { class: "tier", "data-tier": group.tier }, tierName(group.tier)),
    h("span", { class: "number" }, `${count(group.calls)} in flight`),
    h("span", { class: "number" }, `${count(group.requests)} calls`),
    h("span", { class: "number" }, ago(group.lastUsed))))));
}

function showModel() {
  const { info } = registry;
  const rows = [
    ["Base model", info.base_model],
    ["Architecture", info.architecture],
    ["Parameters", count(info.num_parameters)],
    ["Weights", `${info.dtype} on ${info.device}`],
    ["Context", `${count(info.context_length)} tokens`],
    ["Vocabulary", count(info.vocab_size)],
    ["Chat template", info.has_chat_template ? "yes" : "none; adapters may have their own"],
    ["Fingerprint", info.fingerprint],
    ["Largest upload", bytes(info.max_upload_bytes)],
    ["Version", `loramux ${info.version}`],
  ];
  facts.replaceChildren(...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
