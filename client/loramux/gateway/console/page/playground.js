// The playground: one prompt to one or two models, side by side.

import { Answer } from "./answer.js";
import { byId, field, h } from "./dom.js";
import { registry } from "./registry.js";

const MAX_NAMED = 1000;

const models = [picker("First model", "model-a"), picker("Second model", "model-b")];
const answers = [new Answer(), new Answer()];
const modes = ["completion", "chat"].map((mode, place) =>
  h("input", { type: "radio", name: "mode", value: mode, id: `mode-${mode}`, checked: place === 0, onchange: showMode }));
const system = h("textarea", { id: "system", rows: "2", spellcheck: "false" });
const systemField = field("System message", system);
const prompt = h("textarea", { id: "prompt", rows: "4", required: true, spellcheck: "false" });
const temperature = number("temperature", { step: "any" });
const maxTokens = number("max-tokens", { step: "1" });
const seed = number("seed", { step: "1" });
const run = h("button", { class: "primary", id: "run" }, "Run");
const stop = h("button", { type: "button", class: "danger", id: "stop", hidden: true, onclick: () => abort?.abort() }, "Stop");
const anew = h("button", { type: "button", class: "quiet", id: "anew", onclick: () => answers.forEach((answer) => answer.clear()) }, "Clear");

let abort = null;
let isChosen = false;
let isModeChosen = false;

function picker(label, id) {
  const input = h("input", { id, list: "models", autocomplete: "off", spellcheck: "false", oninput: () => { isChosen = true; showModels(); } });
  return { input, label };
}

function number(id, limits) {
  return h("input", { type: "number", id, placeholder: "default", ...limits });
}

export function startPlayground() {
  byId("ask").append(
    h("div", { class: "pickers" },
      field(models[0].label, models[0].input),
      field(models[1].label, models[1].input, "Leave empty to use one model only.")),
    h("fieldset", { class: "segments" }, h("legend", { class: "unseen" }, "Kind of request"),
      modes.map((mode) => h("label", {}, mode, h("span", {}, mode.value === "chat" ? "Chat" : "Completion")))),
    systemField,
    field("Prompt", prompt),
    h("div", { class: "ask-end" },
      h("div", { class: "options" }, field("Temperature", temperature), field("Max tokens", maxTokens), field("Seed", seed)),
      h("div", { class: "actions" }, h("span", { class: "keys" }, h("kbd", {}, "Ctrl"), " ", h("kbd", {}, "Enter")), anew, stop, run)));
  byId("ask").addEventListener("submit", submit);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      byId("ask").requestSubmit();
    } else if (event.key === "Escape") {
      abort?.abort();
    }
  });
  byId("answers").append(...answers.map((answer) => answer.element));
  registry.addEventListener("server", propose);
  registry.addEventListener("adapters", () => { propose(); listModels(); });
  showMode();
  isModeChosen = false;
  showModels();
}

/** Shows the playground with one model chosen, beside the base. */
export function tryOut(reference) {
  isChosen = true;
  models[0].input.value = reference;
  models[1].input.value = registry.info?.base_model ?? "";
  showModels();
  location.hash = "#playground";
  prompt.focus();
}

/** Proposes the base and an adapter until the user chooses. */
function propose() {
  if (isChosen || !registry.info) return;
  const writers = registry.groups().filter((group) => !group.newest.task).map((group) => group.name).sort();
  models[0].input.value = registry.info.base_model;
  models[1].input.value = writers[0] ?? "";
  if (registry.info.has_chat_template && !isModeChosen) {
    modes[1].checked = true;
    showMode();
  }
  showModels();
}

function listModels() {
  const names = [registry.info?.base_model ?? ""];
  for (const group of registry.groups()) {
    if (group.newest.task) continue;
    names.push(group.name, ...[...group.aliases.keys()].map((alias) => `${group.name}:${alias}`));
    if (group.versions.length > 1) names.push(...group.versions.map((version) => version.reference));
  }
  const shown = names.filter(Boolean).slice(0, MAX_NAMED);
  const list = byId("models");
  if (list.dataset.names === shown.join("\n")) return;
  list.dataset.names = shown.join("\n");
  list.replaceChildren(...shown.map((name) => h("option", { value: name })));
}

function showMode() {
  isModeChosen = true;
  systemField.hidden = !modes[1].checked;
  answers.forEach((answer) => answer.clear());
}

function showModels() {
  answers.forEach((answer, place) => {
    const name = models[place].input.value.trim();
    answer.model = name || (place ? "" : registry.info?.base_model ?? "");
    answer.element.hidden = !answer.model;
  });
}

function options() {
  const found = {};
  for (const [name, input] of [["temperature", temperature], ["max_tokens", maxTokens], ["seed", seed]]) {
    if (input.value !== "") found[name] = Number(input.value);
  }
  return found;
}

async function submit(event) {
  event.preventDefault();
  if (abort) return;
  abort = new AbortController();
  isChosen = true;
  showRunning(true);
  const asked = { isChat: modes[1].checked, text: prompt.value, system: system.value.trim(), options: options() };
  const asking = answers.filter((answer) => answer.model);
  await Promise.all(asking.map((answer) => answer.run(asked, abort.signal)));
  abort = null;
  showRunning(false);
  if (asked.isChat && asking.every((answer) => answer.messages.length)) prompt.value = "";
}

function showRunning(isRunning) {
  const [shown, gone] = isRunning ? [stop, run] : [run, stop];
  const isFocused = document.activeElement === gone;
  shown.hidden = false;
  gone.hidden = true;
  if (isFocused) shown.focus();
  for (const control of [anew, ...modes, ...models.map(({ input }) => input)]) control.disabled = isRunning;
}
