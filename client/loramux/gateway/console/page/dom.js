// DOM elements. Outside input becomes text; nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** An element of HTML; `onclick` and the like are listeners, children are elements or text. */
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** An element of SVG. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

export const byId = (id) => document.getElementById(id);

/** Sets the text of an element if it differs. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A field with a label above it. */
export function field(label, control, hint = "") {
  return h("label", { class: "field" },
    h("span", { class: "label" }, label),
    control,
    hint ? h("span", { class: "field-hint" }, hint) : null);
}

/** Shows a message for a few seconds. */
export function toast(text, kind = "good") {
  const shown = h("p", { class: `toast ${kind}` }, text);
  const toasts = byId("toasts");
  toasts.append(shown);
  // The top layer is in the order in which its elements were shown: show it again, above dialogs.
  if (toasts.matches(":popover-open")) toasts.hidePopover();
  toasts.showPopover();
  setTimeout(() => shown.remove(), kind === "bad" ? 12000 : 5000);
}

/** An error as a notice: its status and message. */
export function notice(error) {
  return h("p", { class: "notice bad", role: "alert" },
    error.status ? h("span", { class: "status" }, error.status) : null, error.message);
}

/** Opens a dialog that is removed when it closes; returns it. */
export function openDialog(properties, ...children) {
  const dialog = h("dialog", properties, ...children);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => {
    if (dialog.dataset.light !== undefined && event.target === dialog && isBeside(event, dialog)) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

function isBeside({ clientX: x, clientY: y }, element) {
  const { left, right, top, bottom } = element.getBoundingClientRect();
  return x < left || x > right || y < top || y > bottom;
}

/** Asks for confirmation; `typed` has to be typed in, unless it is empty. */
export function confirmed({ title, text, action, typed = "" }, work) {
  const said = h("div");
  const input = typed
    ? h("input", { autocomplete: "off", spellcheck: "false", oninput: () => (button.disabled = input.value !== typed) })
    : null;
  const button = h("button", { class: "danger", disabled: Boolean(typed) }, action);
  const dialog = openDialog({ class: "box", "aria-label": title },
    h("form", {
      onsubmit: async (event) => {
        event.preventDefault();
        button.disabled = true;
        try {
          await work();
          dialog.close();
        } catch (error) {
          said.replaceChildren(notice(error));
          button.disabled = false;
        }
      },
    },
    h("h2", {}, title),
    h("p", {}, text),
    typed ? field(`Type ${typed} to confirm`, input) : null,
    said,
    h("div", { class: "actions" },
      h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Cancel"), button)));
}
