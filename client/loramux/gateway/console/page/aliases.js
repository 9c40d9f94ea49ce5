// The aliases of one adapter: their targets, their history, and moving them.

import { get, post } from "./api.js";
import { field, h, notice, toast } from "./dom.js";
import { percent, splitText, when } from "./format.js";
import { registry } from "./registry.js";

export class AliasList {
  element = h("div", { class: "aliases" });
  #list = h("div", { class: "alias-list" });
  #said = h("div");
  #revision = "";
  #versions = [];
  #editors = new Map();

  constructor(name, key) {
    this.name = name;
    this.key = key;
    this.element.append(this.#said, this.#list, this.#adding());
  }

  /** Reloads the aliases if they may have changed. */
  update(group) {
    this.#versions = group.versions.map(({ version }) => version);
    const revision = registry.revision(this.key);
    if (revision === this.#revision) return;
    this.#revision = revision;
    this.load();
  }

  async load() {
    try {
      const aliases = await get("aliases", { name: this.name });
      this.#said.replaceChildren();
      this.#show(aliases);
    } catch (error) {
      this.#said.replaceChildren(notice(error));
    }
  }

  #show(aliases) {
    for (const alias of this.#editors.keys()) if (!(alias in aliases)) this.#editors.delete(alias);
    const items = Object.entries(aliases).map(([alias, weights]) => {
      // Keep unsaved input across updates.
      if (!this.#editors.has(alias)) this.#editors.set(alias, new AliasItem(this, alias));
      const item = this.#editors.get(alias);
      item.show(weights);
      return item.element;
    });
    const held = document.activeElement;
    if (items.length !== this.#list.children.length || items.some((item, place) => this.#list.children[place] !== item)) {
      this.#list.replaceChildren(...(items.length ? items : [h("p", { class: "none" }, "No aliases point to this adapter.")]));
      if (held?.isConnected) held.focus();
    }
  }

  #adding() {
    const place = h("div");
    const button = h("button", {
      type: "button",
      class: "small quiet",
      onclick: () => {
        const input = h("input", { required: true, autocomplete: "off", spellcheck: "false", placeholder: "stable" });
        button.hidden = true;
        place.replaceChildren(this.editor({
          before: {}, first: field("Alias", input), alias: () => input.value.trim(),
          close: () => { place.replaceChildren(); button.hidden = false; button.focus(); },
        }));
        input.focus();
      },
    }, "New alias");
    return h("div", { class: "alias-new" }, place, button);
  }

  /** A form to point an alias to versions; `before` is its current target. */
  editor({ before, first = null, alias, close }) {
    let expected = before;
    const said = h("div");
    const lines = h("div", { class: "split-lines" });
    const shown = h("p", { class: "field-hint" });
    const explain = () => (shown.textContent = Object.keys(expected).length
      ? `Points to ${splitText(expected)}; it is moved only if this has not changed.`
      : "It is created only if no alias of this name exists.");
    const add = (version, weight) => lines.append(this.#line(version, weight));
    explain();
    if (Object.keys(before).length) for (const [version, weight] of Object.entries(before)) add(Number(version), weight);
    else add(this.#versions[0], 1);
    const save = async (event) => {
      event.preventDefault();
      const weights = {};
      for (const line of lines.children) {
        const [version, weight] = [line.querySelector("select").value, line.querySelector("input").value];
        weights[version] = Number(weight);
      }
      try {
        await post("aliases/set", { name: this.name, alias: alias(), weights, expected });
        toast(`${this.name}:${alias()} points to ${splitText(weights)}`);
        close();
        await this.load();
      } catch (error) {
        said.replaceChildren(notice(error), error.status === "ABORTED" ? again : "");
      }
    };
    const again = h("button", {
      type: "button",
      class: "small quiet",
      onclick: async () => {
        try {
          expected = (await get("aliases", { name: this.name }))[alias()] ?? {};
          explain();
          said.replaceChildren();
        } catch (error) {
          said.replaceChildren(notice(error));
        }
      },
    }, "Show current target");
    return h("form", { class: "alias-form", onsubmit: save },
      first, lines,
      h("button", { type: "button", class: "small quiet", onclick: () => add(this.#unused(lines), 1) }, "Split with another version"),
      shown, said,
      h("div", { class: "actions" },
        h("button", { type: "button", class: "quiet", onclick: close }, "Cancel"),
        h("button", { class: "primary" }, "Move")));
  }

  #unused(lines) {
    const used = new Set(Array.from(lines.querySelectorAll("select"), (select) => Number(select.value)));
    return this.#versions.find((version) => !used.has(version)) ?? this.#versions[0];
  }

  #line(version, weight) {
    const select = h("select", {}, this.#versions.map((each) => h("option", { value: String(each) }, `v${each}`)));
    select.value = String(version);
    const line = h("div", { class: "split-line" },
      field("Version", select),
      field("Weight", h("input", { type: "number", min: "1", max: "10000", step: "1", required: true, value: String(weight) })),
      h("button", { type: "button", class: "small quiet", "aria-label": "Remove this version", onclick: () => line.parentElement.children.length > 1 && line.remove() }, "Remove"));
    return line;
  }
}

class AliasItem {
  element = h("article", { class: "alias" });
  #weights = {};
  #split = h("div", { class: "split" });
  #place = h("div");
  #log = h("div");

  constructor(list, alias) {
    this.list = list;
    this.alias = alias;
    const button = (label, work, more = "") => h("button", { type: "button", class: `small quiet ${more}`, "aria-label": `${label} ${alias}`, onclick: work }, label);
    this.element.append(
      h("div", { class: "alias-head" }, h("strong", {}, alias),
        h("div", { class: "alias-tools" },
          button("Move", () => this.#edit()),
          button("Log", () => this.#showLog()),
          button("Roll back", () => this.#do("aliases/roll-back", {}, "was rolled back")),
          button("Remove", () => this.#do("aliases/delete", { expected: this.#weights }, "was removed"), "danger"))),
      this.#split, this.#place, this.#log);
  }

  show(weights) {
    if (JSON.stringify(weights) === JSON.stringify(this.#weights)) return;
    this.#weights = weights;
    const sum = Object.values(weights).reduce((total, weight) => total + weight, 0);
    this.#split.replaceChildren(...Object.entries(weights).map(([version, weight], place) => {
      const part = h("span", { class: "split-part", "data-place": String(place % 4) }, `v${version}`, sum === weight ? null : h("small", {}, percent(weight, sum)));
      part.style.flexGrow = String(weight);
      return part;
    }));
    if (this.#log.childElementCount) this.#loadLog();
  }

  #edit() {
    this.#place.replaceChildren(this.list.editor({
      before: this.#weights, alias: () => this.alias, close: () => this.#place.replaceChildren(),
    }));
    this.#place.querySelector("select").focus();
  }

  #showLog() {
    if (this.#log.childElementCount) this.#log.replaceChildren();
    else this.#loadLog();
  }

  async #loadLog() {
    try {
      const moves = await get("aliases/moves", { name: this.list.name, alias: this.alias });
      this.#log.replaceChildren(h("ol", { class: "moves" }, moves.map((move) => h("li", {},
        h("span", {}, `${splitText(move.before)} → ${splitText(move.after)}`),
        h("span", { class: "move-by" }, `${when(move.moved_at)}, ${move.moved_by}`)))));
    } catch (error) {
      this.#log.replaceChildren(notice(error));
    }
  }

  async #do(path, more, done) {
    try {
      await post(path, { name: this.list.name, alias: this.alias, ...more });
      toast(`${this.list.name}:${this.alias} ${done}`);
      await this.list.load();
    } catch (error) {
      this.#place.replaceChildren(notice(error));
    }
  }
}
