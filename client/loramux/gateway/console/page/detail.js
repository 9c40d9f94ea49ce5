// The details of one adapter: its properties, versions and aliases.

import { post } from "./api.js";
import { AliasList } from "./aliases.js";
import { confirmed, h, notice, openDialog, toast } from "./dom.js";
import { ago, bytes, count, taskName, tierName, when } from "./format.js";
import { tryOut } from "./playground.js";
import { registry } from "./registry.js";

/** Opens the details of the adapter with the key `tenant/name`. */
export function openDetail(key) {
  const group = registry.group(key);
  if (group) new Detail(key, group);
}

class Detail {
  #facts = h("dl", { class: "facts" });
  #versions = h("ul", { class: "version-list" });
  #said = h("div");
  #shown = "";

  constructor(key, group) {
    this.key = key;
    this.name = group.name;
    this.aliases = new AliasList(group.name, key);
    this.dialog = openDialog({ class: "drawer", "aria-label": `Adapter ${group.name}`, "data-light": true },
      h("header", {},
        h("div", {}, h("h2", {}, group.name), h("p", { class: "kind" }, [group.newest.method, taskName(group.newest.task)].filter(Boolean).join(" · "))),
        h("button", { type: "button", class: "quiet", onclick: () => this.dialog.close(), "aria-label": "Close" }, "Close")),
      this.#said,
      this.#facts,
      h("h3", {}, "Versions"), this.#versions,
      h("h3", {}, "Aliases"), this.aliases.element,
      h("footer", {},
        h("button", { type: "button", class: "danger quiet", onclick: () => this.#deleteAll() }, "Delete adapter")));
    this.#update();
    const update = () => this.#update();
    registry.addEventListener("adapters", update);
    this.dialog.addEventListener("close", () => registry.removeEventListener("adapters", update));
  }

  #update() {
    const group = registry.group(this.key);
    if (!group) {
      if (registry.state === "live") this.dialog.close();
      return;
    }
    this.aliases.update(group);
    const signature = JSON.stringify([group.versions, ago(group.lastUsed)]);
    if (signature === this.#shown) return;
    this.#shown = signature;
    this.#showFacts(group);
    this.#showVersions(group.versions);
  }

  #showFacts({ newest, requests, hits, lastUsed }) {
    const facts = [
      ["Rank", newest.rank ? String(newest.rank) : "none"],
      ["Target modules", newest.target_modules.join(" ") || "–"],
      ["Base model", newest.base_model || "–"],
      ["Source", newest.origin || newest.source],
      ["Virtual tokens", newest.virtual_tokens ? String(newest.virtual_tokens) : ""],
      ["In memory", newest.status.memory_bytes ? bytes(newest.status.memory_bytes) : ""],
      ["Calls", `${count(requests)}, ${count(hits)} of them device cache hits`],
      ["Last used", ago(lastUsed)],
    ];
    this.#facts.replaceChildren(...facts.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }

  #showVersions(versions) {
    const focused = this.#versions.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
    this.#versions.replaceChildren(...versions.map((version) => this.#version(version)));
    if (focused) this.#versions.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  }

  #version(version) {
    const { reference, status } = version;
    const button = (label, work, more = {}) =>
      h("button", { type: "button", class: "small quiet", onclick: work, "aria-label": `${label} version ${version.version}`, "data-focus": `${label}${version.version}`, ...more }, label);
    return h("li", {},
      h("div", { class: "version-head" },
        h("strong", {}, `v${version.version}`),
        h("span", { class: "tier", "data-tier": version.tier }, tierName(version.tier)),
        version.is_pinned ? h("span", { class: "tag", "data-kind": "pinned" }, "pinned") : null,
        status.is_loading ? h("span", { class: "tag", "data-kind": "loading" }, "loading") : null,
        status.calls ? h("span", { class: "tag" }, `${count(status.calls)} in flight`) : null),
      h("p", { class: "digest", title: version.digest }, version.digest),
      h("p", { class: "version-note" }, `${bytes(version.size_bytes)}, created ${when(version.created_at)}${version.expires_at ? `, expires ${when(version.expires_at)}` : ""}`),
      status.load_failure ? h("p", { class: "notice bad" }, status.load_failure) : null,
      h("div", { class: "version-tools" },
        version.task ? null : button("Try", () => { this.dialog.close(); tryOut(reference); }),
        version.is_pinned
          ? button("Unpin", (event) => this.#call(event, "adapters/unpin", { name: reference }, `${reference} was unpinned`))
          : button("Pin", (event) => this.#call(event, "adapters/pin", { name: reference }, `${reference} was pinned to the device`)),
        button("Delete", () => this.#deleteVersion(reference), { class: "small quiet danger" })));
  }

  async #call(event, path, body, done) {
    const button = event.currentTarget;
    button.disabled = true;
    try {
      await post(path, body);
      this.#said.replaceChildren();
      toast(done);
    } catch (error) {
      this.#said.replaceChildren(notice(error));
    }
    button.disabled = false;
  }

  #deleteVersion(reference) {
    confirmed(
      { title: `Delete ${reference}?`, text: "Requests that already use it can finish. Its version number is not reused.", action: "Delete" },
      async () => { await post("adapters/delete", { name: reference }); toast(`${reference} was deleted`); });
  }

  #deleteAll() {
    confirmed(
      { title: `Delete ${this.name}?`, text: "All of its versions and aliases are deleted. Requests that already use it can finish.", action: "Delete all", typed: this.name },
      async () => { await post("adapters/delete", { name: this.name }); toast(`${this.name} was deleted`); });
  }
}
