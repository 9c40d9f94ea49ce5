// Calls to the gateway. The key is kept in this tab's storage and sent only in a header.

const KEY = "loramux.key";
const CONSOLE = new URL("api/", import.meta.url);
const OPENAI = new URL("../v1/", import.meta.url);

/** An error of a call, with the server's message. */
export class CallError extends Error {
  constructor(said, http) {
    super(said.message || `HTTP status ${http}`);
    this.status = said.status || (said.code ?? "").toUpperCase();
    this.reason = said.reason ?? "";
    this.http = http;
  }
}

/** Dispatches `key` and `server` when they change, and `refused` when a key is required. */
export const session = new EventTarget();
let server = 0;

export const key = () => sessionStorage.getItem(KEY) ?? "";

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
  session.dispatchEvent(new Event("key"));
}

/** Selects one of several servers. */
export function setServer(number) {
  server = number;
  session.dispatchEvent(new Event("server"));
}

export function address(path, query = {}) {
  const url = new URL(path, CONSOLE);
  const all = server ? { ...query, server } : query;
  for (const [name, value] of Object.entries(all)) url.searchParams.set(name, value);
  return url;
}

export function headers(more = {}) {
  return key() ? { ...more, authorization: `Bearer ${key()}` } : more;
}

export function errorOf(text, http) {
  let said = {};
  try {
    said = JSON.parse(text).error ?? {};
  } catch {
    // Something in front of the gateway answered.
  }
  const error = new CallError(said, http);
  if (http === 401) session.dispatchEvent(new CustomEvent("refused", { detail: error }));
  return error;
}

async function request(url, options) {
  let response;
  try {
    response = await fetch(url, { ...options, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError({ message: "the gateway cannot be reached", status: "UNAVAILABLE" }, 0);
  }
  if (!response.ok) throw errorOf(await response.text(), response.status);
  return response;
}

export async function get(path, query) {
  return (await request(address(path, query), { headers: headers() })).json();
}

export async function post(path, body) {
  const json = { "content-type": "application/json" };
  const options = { method: "POST", headers: headers(json), body: JSON.stringify(body) };
  return (await request(address(path), options)).json();
}

/** Starts a streamed generation; returns the response, whose `body` is for `events`. */
export function ask(path, body, signal) {
  const json = { "content-type": "application/json" };
  const options = { method: "POST", headers: headers(json), body: JSON.stringify(body), signal };
  return request(new URL(path, OPENAI), options);
}

/** Starts the stream of live updates. */
export function live(signal) {
  return request(address("live"), { headers: headers(), signal });
}

/** Yields [name, data] of each event of a response, as it arrives. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      held += value;
      for (let end = held.indexOf("\n\n"); end >= 0; end = held.indexOf("\n\n")) {
        yield parsed(held.slice(0, end));
        held = held.slice(end + 2);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(event) {
  let [name, data] = ["", ""];
  for (const line of event.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  return [name, data];
}
