// Uploads of packages: the digest of the file, its bytes, and the server's reply.

import { address, CallError, errorOf, headers, post } from "./api.js";
import { byId, field, h, notice, openDialog, toast } from "./dom.js";
import { bytes } from "./format.js";
import { digestOf } from "./sha256.js";

const ATTEMPTS = 5;
const WAIT_MS = 1000;

export function startUploads() {
  byId("upload-button").addEventListener("click", () => openUpload());
  const drop = byId("drop");
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const end = () => { depth = 0; drop.hidden = true; };
  window.addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth += 1;
    drop.hidden = false;
  });
  window.addEventListener("dragleave", (event) => hasFiles(event) && (depth -= 1) <= 0 && end());
  window.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    end();
    if (event.dataTransfer.files.length) openUpload(event.dataTransfer.files[0]);
  });
}

/** `Support FR.safetensors` -> `support-fr`, only a proposal: the server validates names. */
function proposed(file) {
  return file.name.replace(/\.safetensors$/i, "").toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[._-]+|[._-]+$/g, "");
}

let current = null;

function openUpload(file = null) {
  if (current?.isConnected) {
    if (file) current.take(file);
    return;
  }
  let abort = null;
  let chosen = null;
  const name = h("input", { id: "upload-name", required: true, autocomplete: "off", spellcheck: "false", placeholder: "support-fr" });
  const picker = h("input", { type: "file", id: "upload-file", accept: ".safetensors", onchange: () => picker.files.length && take(picker.files[0]) });
  const isNew = h("input", { type: "checkbox", id: "upload-new" });
  const status = h("p", { class: "field-hint", role: "status" });
  const bar = h("progress", { max: "1", value: "0", hidden: true, "aria-label": "Progress of the upload" });
  const said = h("div");
  const button = h("button", { class: "primary", disabled: true }, "Upload");
  const fileText = h("span", { class: "file-text" }, "Choose a package, or drop it here");

  function take(given) {
    if (abort) return;
    chosen = given;
    fileText.textContent = `${given.name}, ${bytes(given.size)}`;
    if (!name.value) name.value = proposed(given);
    button.disabled = false;
    said.replaceChildren();
  }

  function progress(text, part) {
    status.textContent = text;
    bar.hidden = false;
    if (part === null) bar.removeAttribute("value");
    else bar.value = part;
  }

  async function submit(event) {
    event.preventDefault();
    abort = new AbortController();
    button.disabled = true;
    said.replaceChildren();
    try {
      const { adapter, already_existed: isOld } = await upload(chosen, name.value.trim(), isNew.checked, progress, abort.signal);
      toast(isOld ? `${adapter.reference} already has this content` : `${adapter.reference} was registered`);
      dialog.close();
    } catch (error) {
      if (error.name !== "AbortError") said.replaceChildren(notice(error));
      bar.hidden = true;
      status.textContent = "";
    }
    abort = null;
    button.disabled = false;
  }

  const dialog = openDialog({ class: "box", "aria-label": "Upload an adapter" },
    h("form", { onsubmit: submit },
      h("h2", {}, "Upload an adapter"),
      h("p", {}, "A package, made by ", h("code", {}, "loramux pack"), " from a PEFT folder."),
      h("label", { class: "file" }, picker, fileText),
      field("Name", name, "Different content under an existing name becomes its next version."),
      h("label", { class: "check" }, isNew, "Fail if the name has different content"),
      bar, status, said,
      h("div", { class: "actions" },
        h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Cancel"), button)));
  dialog.take = take;
  dialog.addEventListener("close", () => abort?.abort());
  current = dialog;
  if (file) take(file);
}

async function upload(file, name, mustNotExist, progress, signal) {
  const sha256 = await digestOf(file, (done) => progress("Computing the digest", done / file.size), signal);
  const header = { name, size_bytes: file.size, sha256, must_not_exist: mustNotExist };
  let failures = 0;
  for (let last = -1; ;) {
    try {
      const started = await post("uploads/start", header);
      if (started.adapter) return started;
      if (started.committed_bytes > last) failures = 0;
      last = started.committed_bytes;
      if (last < file.size) await send(file, started, progress, signal);
      progress("Checking and registering", null);
      return await post("uploads/finish", { upload_id: started.upload_id });
    } catch (error) {
      failures += 1;
      const isLost = error.status === "UNAVAILABLE" || error.reason === "UPLOAD_NOT_FOUND";
      if (signal.aborted || !isLost || failures > ATTEMPTS) throw error;
      progress("Connection lost; resuming", null);
      await new Promise((resolve) => setTimeout(resolve, WAIT_MS * failures));
      signal.throwIfAborted();
    }
  }
}

/** Sends the bytes that the server lacks; `fetch` does not report the progress of uploads. */
function send(file, { upload_id: uploadId, committed_bytes: offset }, progress, signal) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest();
    call.open("PUT", address("uploads/chunks", { upload_id: uploadId, offset }));
    for (const [name, value] of Object.entries(headers({ "content-type": "application/octet-stream" }))) call.setRequestHeader(name, value);
    call.upload.onprogress = ({ loaded }) => {
      const done = Math.min(offset + loaded, file.size);
      progress(`Sending ${bytes(done)} of ${bytes(file.size)}`, done / file.size);
    };
    call.onload = () => (call.status === 200 ? resolve() : reject(errorOf(call.responseText, call.status)));
    call.onerror = () => reject(new CallError({ message: "the connection to the gateway was lost", status: "UNAVAILABLE" }, 0));
    call.onabort = () => reject(signal.reason);
    signal.addEventListener("abort", () => call.abort(), { once: true });
    call.send(file.slice(offset));
  });
}
