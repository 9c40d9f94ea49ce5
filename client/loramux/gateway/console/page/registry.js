// The registered adapters and the load, kept up to date while the page is visible.

import { CallError, events, get, live, session } from "./api.js";

const RENDER_MS = 100;
const RETRY_MS = [500, 1000, 2000, 5000];
const SETTLED_LOADS = 2;
const TIERS = ["stored", "host", "device"];

/** All versions of one name. */
export class Group {
  constructor(key, versions) {
    this.key = key;
    this.versions = versions.sort((a, b) => b.version - a.version);
    this.newest = this.versions[0];
    /** The name to call it by. */
    this.name = this.newest.reference.slice(0, this.newest.reference.lastIndexOf(":"));
    this.tier = versions.reduce((best, { tier }) => (TIERS.indexOf(tier) > TIERS.indexOf(best) ? tier : best), "stored");
    this.isPinned = versions.some((version) => version.is_pinned);
    this.isLoading = versions.some((version) => version.status.is_loading);
    this.failure = versions.find((version) => version.status.load_failure)?.status.load_failure ?? "";
    this.calls = sum(versions, (status) => status.calls);
    // Versions with equal content share their counts.
    const distinct = [...new Map(versions.map((version) => [version.digest, version])).values()];
    this.requests = sum(distinct, (status) => status.requests);
    this.hits = sum(distinct, (status) => status.hits);
    this.lastUsed = versions.map((version) => version.status.last_used_at ?? "").sort().at(-1);
    this.aliases = aliasesOf(versions);
  }
}

function sum(versions, of) {
  return versions.reduce((total, version) => total + of(version.status), 0);
}

/** Alias -> versions that it points to. */
function aliasesOf(versions) {
  const found = new Map();
  for (const { aliases, version } of versions) {
    for (const alias of aliases) found.set(alias, [...(found.get(alias) ?? []), version]);
  }
  return new Map([...found].sort(([a], [b]) => (a < b ? -1 : 1)));
}

class Registry extends EventTarget {
  state = "connecting";
  error = null;
  info = null;
  servers = 1;
  load = null;
  rates = null;
  refused = null;
  /** Version -> its adapter, and the connection that reported it. */
  #versions = new Map();
  #connection = 0;
  #loads = 0;
  #abort = null;
  #timer = 0;
  #failures = 0;
  #revisions = new Map();
  #weights = new Map();

  start() {
    document.addEventListener("visibilitychange", () => this.#restart());
    for (const other of ["key", "server"]) session.addEventListener(other, () => this.#forget());
    this.#restart();
  }

  /** Starts over, with another key or server. */
  #forget() {
    this.#versions.clear();
    [this.load, this.rates, this.refused] = [null, null, null];
    this.#restart();
  }

  /** Reconnects if the page is visible. */
  #restart() {
    this.#abort?.abort();
    clearTimeout(this.#timer);
    this.#failures = 0;
    if (document.visibilityState === "visible") this.#follow();
  }

  groups() {
    const found = new Map();
    for (const { adapter } of this.#versions.values()) {
      const key = nameOf(adapter);
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(adapter);
    }
    return [...found].map(([key, versions]) => new Group(key, versions));
  }

  group(key) {
    return this.groups().find((group) => group.key === key);
  }

  /** Changes with the aliases of a name, and when an update may have been missed. */
  revision(key) {
    return `${this.#connection}.${this.#revisions.get(key) ?? 0}`;
  }

  /** The targets of the aliases of a name, as far as known; requests them if they may be stale. */
  weights(key, name) {
    const known = this.#weights.get(key);
    const revision = this.revision(key);
    if (known?.revision === revision) return known.weights;
    const asked = { revision, weights: known?.weights ?? {} };
    this.#weights.set(key, asked);
    get("aliases", { name }).then((weights) => {
      asked.weights = weights;
      this.#later();
    }, () => {}); // The adapter may be deleted by now; its details show errors.
    return asked.weights;
  }

  async #follow() {
    const abort = (this.#abort = new AbortController());
    try {
      const { info, servers } = await get("server");
      if (abort.signal.aborted) return;
      [this.info, this.servers] = [info, servers];
      this.dispatchEvent(new Event("server"));
      const response = await live(abort.signal);
      this.#connection += 1;
      this.#loads = 0;
      this.#say("live", null);
      for await (const [name, data] of events(response)) {
        if (abort.signal.aborted) return;
        this.#take(name, JSON.parse(data));
      }
      throw new CallError({ message: "the gateway ended the stream", status: "UNAVAILABLE" }, 0);
    } catch (error) {
      if (abort.signal.aborted) return;
      this.#say(error.http === 401 ? "refused" : "away", error);
      if (error.http === 401) return;
      const wait = RETRY_MS[Math.min(this.#failures, RETRY_MS.length - 1)];
      this.#failures += 1;
      this.#timer = setTimeout(() => this.#follow(), wait);
    }
  }

  #take(name, said) {
    this.#failures = 0;
    if (name === "change") {
      const { kind, adapter } = said;
      const key = nameOf(adapter);
      if (kind === "deleted") this.#versions.delete(`${key}:${adapter.version}`);
      else this.#versions.set(`${key}:${adapter.version}`, { adapter, connection: this.#connection });
      if (kind !== "moved" && kind !== "existing") this.#revisions.set(key, (this.#revisions.get(key) ?? 0) + 1);
      this.#later();
    } else if (name === "load") {
      for (const adapter of said.adapters) {
        const known = this.#versions.get(`${nameOf(adapter)}:${adapter.version}`);
        if (known) known.adapter = adapter;
      }
      this.#loads += 1;
      if (this.#loads === SETTLED_LOADS) this.#dropUntold();
      [this.load, this.rates, this.refused] = [said.load, said.rates, said.refused];
      this.dispatchEvent(new Event("load"));
      this.#later();
    } else if (name === "error") {
      throw new CallError(said, said.status === "UNAUTHENTICATED" ? 401 : 0);
    }
  }

  /** Drops what was deleted while disconnected: all others have been reported by now. */
  #dropUntold() {
    for (const [key, { connection }] of this.#versions) {
      if (connection !== this.#connection) this.#versions.delete(key);
    }
  }

  #say(state, error) {
    [this.state, this.error] = [state, error];
    this.dispatchEvent(new Event("state"));
    this.#later();
  }

  #isWaiting = false;

  #later() {
    if (this.#isWaiting) return;
    this.#isWaiting = true;
    setTimeout(() => {
      this.#isWaiting = false;
      this.dispatchEvent(new Event("adapters"));
    }, RENDER_MS);
  }
}

const nameOf = (adapter) => `${adapter.tenant}/${adapter.name}`;

export const registry = new Registry();
