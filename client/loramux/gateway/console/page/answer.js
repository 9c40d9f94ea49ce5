// One column of the playground: a conversation with one model, or a text that it continues.

import { ask, CallError, events } from "./api.js";
import { h, notice, setText } from "./dom.js";
import { decimal, seconds, shortDigest } from "./format.js";

const AT_ONCE_MS = 5;
const ENDS = { stop: "completed", length: "max tokens reached", tool_calls: "tool call" };

export class Answer {
  element = h("article", { class: "panel answer" });
  /** The conversation so far. */
  messages = [];
  #title = h("h2");
  #identity = h("p", { class: "identity" });
  #turns = h("div", { class: "turns" });
  #numbers = h("dl", { class: "numbers" });
  #said = h("div");

  constructor() {
    this.element.append(h("header", {}, this.#title, this.#identity), this.#turns, this.#said, this.#numbers);
    this.clear();
  }

  get model() {
    return this.#title.textContent;
  }

  set model(name) {
    if (name === this.model) return;
    setText(this.#title, name);
    this.element.setAttribute("aria-label", `Answer from ${name}`);
    this.clear();
  }

  clear() {
    this.messages = [];
    this.#turns.replaceChildren(h("p", { class: "none" }, "The answer appears here."));
    this.#identity.replaceChildren();
    this.#said.replaceChildren();
    this.#numbers.replaceChildren();
  }

  /** Sends a request and shows the answer as it streams, until it ends or `signal` aborts it. */
  async run({ isChat, text, system, options }, signal) {
    if (!isChat) this.clear();
    if (!this.messages.length) this.#turns.replaceChildren();
    const turn = new Turn(isChat ? text : "", isChat ? "" : text);
    this.#turns.append(turn.element);
    this.#said.replaceChildren();
    this.element.setAttribute("aria-busy", "true");
    const messages = [...this.messages, { role: "user", content: text }];
    const asked = isChat
      ? { messages: system ? [{ role: "system", content: system }, ...messages] : messages }
      : { prompt: text };
    const body = { model: this.model, ...asked, ...options, stream: true, return_token_ids: true };
    const clock = new Clock();
    try {
      await this.#read(isChat ? "chat/completions" : "completions", body, turn, clock, signal);
    } catch (error) {
      clock.end = error.name === "AbortError" ? "stopped" : "failed";
      if (clock.end === "failed") this.#said.replaceChildren(notice(error));
    }
    if (turn.text && isChat) this.messages = [...messages, { role: "assistant", content: turn.text }];
    this.#show(clock);
    this.element.removeAttribute("aria-busy");
  }

  async #read(path, body, turn, clock, signal) {
    const response = await ask(path, body, signal);
    this.#identify(response.headers.get("x-loramux-adapter"));
    for await (const [, data] of events(response)) {
      if (data === "[DONE]") return;
      const said = JSON.parse(data);
      if (said.error) throw new CallError(said.error, 0);
      for (const choice of said.choices) {
        clock.count(choice.token_ids?.length ?? 0);
        turn.add(choice.delta?.content ?? choice.text ?? "", choice.delta?.reasoning ?? "");
        if (choice.finish_reason) clock.end = ENDS[choice.finish_reason] ?? choice.finish_reason;
      }
      this.#show(clock);
    }
  }

  #identify(header) {
    if (!header) {
      this.#identity.replaceChildren("base model, no adapter");
      return;
    }
    const [reference, digest] = header.split("@");
    this.#identity.replaceChildren(reference, " ", h("span", { class: "digest", title: digest }, shortDigest(digest)));
  }

  #show(clock) {
    const numbers = [
      ["First token", seconds(clock.first)],
      ["Tokens/s", decimal(clock.rate)],
      ["Tokens", String(clock.tokens)],
      ["Finish reason", clock.end || "…"],
    ];
    const isNothing = clock.end === "failed" && !clock.tokens;
    this.#numbers.replaceChildren(...(isNothing ? [] : numbers).flatMap(([name, value]) => [h("div", {}, h("dt", {}, name), h("dd", {}, value))]));
  }
}

/** A prompt and its answer, as text. */
class Turn {
  element = h("div", { class: "turn" });
  #answer = document.createTextNode("");
  #thought = h("span", { class: "thought" });

  constructor(question, prompt) {
    if (question) this.element.append(h("p", { class: "question" }, question));
    this.element.append(h("div", { class: "text" }, prompt ? h("span", { class: "prompt" }, prompt) : null, this.#thought, this.#answer));
  }

  get text() {
    return this.#answer.data;
  }

  add(text, thought) {
    this.#answer.appendData(text);
    if (thought) this.#thought.append(thought);
  }
}

/** The arrival times of tokens, by the browser's clock. */
class Clock {
  tokens = 0;
  end = "";
  #begin = performance.now();
  #first = null;
  #last = 0;

  count(tokens) {
    if (!tokens) return;
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.tokens += tokens;
  }

  get first() {
    return this.#first === null ? null : (this.#first - this.#begin) / 1000;
  }

  /** Tokens per second after the first token; of the whole time if all arrived at once. */
  get rate() {
    if (this.#first === null) return null;
    const between = this.#last - this.#first;
    if (this.tokens > 1 && between >= AT_ONCE_MS) return (1000 * (this.tokens - 1)) / between;
    return (1000 * this.tokens) / (this.#last - this.#begin);
  }
}
