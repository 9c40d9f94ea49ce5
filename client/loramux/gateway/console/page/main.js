// The frame: which view is seen, how the connection is, and the key.

import { key, session, setKey, setServer } from "./api.js";
import { startAdapters } from "./adapters.js";
import { byId, field, h, notice, openDialog, setText } from "./dom.js";
import { startPlayground } from "./playground.js";
import { registry } from "./registry.js";
import { startServer } from "./server.js";
import { startUploads } from "./upload.js";

const VIEWS = ["adapters", "playground", "server"];
const STATES = { connecting: "Connecting", live: "Live", away: "Away, trying again", refused: "A key is needed" };

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
  keyDialog = openDialog({ class: "box", "aria-label": "Key" },
    h("form", {
      onsubmit: (event) => {
        event.preventDefault();
        keyDialog.close();
        setKey(input.value.trim());
      },
    },
    h("h2", {}, "Key"),
    h("p", {}, "It stays in this tab until that is closed, and is sent to this gateway only, which hands it on to the server."),
    error ? notice(error) : null,
    field("Key of the server", input),
    h("div", { class: "actions" },
      key() ? h("button", { type: "button", class: "quiet", onclick: () => { keyDialog.close(); setKey(""); } }, "Forget it") : null,
      h("button", { type: "button", class: "quiet", onclick: () => keyDialog.close() }, "Cancel"),
      h("button", { class: "primary" }, "Use it"))));
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
