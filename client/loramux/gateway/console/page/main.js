// The page frame: the current view, the connection state and the API key.

import { key, session, setKey, setServer } from "./api.js";
import { startAdapters } from "./adapters.js";
import { byId, field, h, notice, openDialog, setText } from "./dom.js";
import { startPlayground } from "./playground.js";
import { registry } from "./registry.js";
import { startServer } from "./server.js";
import { startUploads } from "./upload.js";

const VIEWS = ["adapters", "playground", "server"];
const STATES = { connecting: "Connecting", live: "Live", away: "Disconnected, retrying", refused: "API key required" };

function show() {
  const named = location.hash.slice(1).split("?")[0];
  const shown = VIEWS.includes(named) ? named : VIEWS[0];
  for (const view of VIEWS) {
    byId(`view-${view}`).hidden = view !== shown;
    for (const link of document.querySelectorAll(`nav a[href="#${view}"]`)) {
      if (view === shown) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }
  document.title = `${shown[0].toUpperCase()}${shown.slice(1)} · loramux`;
}

let keyDialog = null;

function askForKey(error = null) {
  if (keyDialog?.isConnected) return;
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", id: "key-input", placeholder: "lmx_…" });
  keyDialog = openDialog({ class: "box", "aria-label": "API key" },
    h("form", {
      onsubmit: (event) => {
        event.preventDefault();
        keyDialog.close();
        setKey(input.value.trim());
      },
    },
    h("h2", {}, "API key"),
    h("p", {}, "It is kept until this tab is closed, and sent only to this gateway, which passes it on to the server."),
    error ? notice(error) : null,
    field("API key of the server", input),
    h("div", { class: "actions" },
      key() ? h("button", { type: "button", class: "quiet", onclick: () => { keyDialog.close(); setKey(""); } }, "Forget") : null,
      h("button", { type: "button", class: "quiet", onclick: () => keyDialog.close() }, "Cancel"),
      h("button", { class: "primary" }, "Use"))));
  input.focus();
}

function showState() {
  const state = byId("link-state");
  state.dataset.state = registry.state;
  const name = registry.info?.base_model ?? "";
  setText(byId("link-text"), registry.state === "live" ? name : STATES[registry.state]);
  state.title = registry.error ? registry.error.message : STATES[registry.state];
  byId("key-button").dataset.set = key() ? "yes" : "no";
  setText(byId("key-button"), key() ? "Key set" : "Key");
}

function showServers() {
  const select = byId("server-number");
  byId("server-choice").hidden = registry.servers < 2;
  if (select.options.length !== registry.servers) {
    select.replaceChildren(...Array.from({ length: registry.servers }, (_, number) =>
      h("option", { value: String(number) }, `Server ${number + 1} of ${registry.servers}`)));
  }
}

byId("server-number").addEventListener("change", (event) => {
  setServer(Number(event.target.value));
});
byId("key-button").addEventListener("click", () => askForKey());
session.addEventListener("refused", (event) => askForKey(event.detail));
session.addEventListener("key", showState);
registry.addEventListener("state", showState);
registry.addEventListener("server", () => { showState(); showServers(); });
window.addEventListener("hashchange", show);

startAdapters();
startPlayground();
startServer();
startUploads();
show();
registry.start();
