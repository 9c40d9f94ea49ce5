// A sparkline of recent values.

import { svg } from "./dom.js";

export const POINTS = 60;
const WIDTH = 200;
const HEIGHT = 44;

export class Chart {
  #values = [];
  #area = svg("path", { class: "chart-area" });
  #line = svg("path", { class: "chart-line" });

  /** `least` is the smallest value that the top of the chart represents. */
  constructor(label, least = 1) {
    this.label = label;
    this.least = least;
    this.element = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, this.#area, this.#line);
  }

  clear() {
    this.#values = [];
  }

  get last() {
    return this.#values.at(-1) ?? null;
  }

  get peak() {
    return Math.max(0, ...this.#values.filter((value) => value !== null));
  }

  /** Adds a value; null repeats the last one. */
  add(value) {
    this.#values = [...this.#values, value ?? this.last].slice(-POINTS);
    const top = Math.max(this.least, this.peak) * 1.1;
    const step = WIDTH / (POINTS - 1);
    const start = POINTS - this.#values.length;
    const points = this.#values.map((each, place) => [(start + place) * step, each === null ? null : HEIGHT - 1 - (each / top) * (HEIGHT - 3)]);
    this.#line.setAttribute("d", runs(points).map((run) => `M${run.map(at).join("L")}`).join(""));
    this.#area.setAttribute("d", runs(points).map((run) => `M${run[0][0].toFixed(1)},${HEIGHT}L${run.map(at).join("L")}L${run.at(-1)[0].toFixed(1)},${HEIGHT}Z`).join(""));
  }
}

const at = ([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`;

/** Splits a line at its gaps. */
function runs(points) {
  const found = [];
  let run = [];
  for (const point of [...points, [0, null]]) {
    if (point[1] !== null) run.push(point);
    else if (run.length) {
      found.push(run.length > 1 ? run : [run[0], [run[0][0] + 0.1, run[0][1]]]);
      run = [];
    }
  }
  return found;
}
