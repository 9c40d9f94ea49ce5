// Formats of numbers and times.

const whole = new Intl.NumberFormat("en");
const moment = new Intl.DateTimeFormat("en-GB", {
  day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit",
});

export const count = (number) => whole.format(number);
export const when = (text) => moment.format(new Date(text));
export const shortDigest = (digest) => digest.slice(0, 19);

export function bytes(size) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit === 0 || size >= 100 ? Math.round(size) : size.toFixed(1)} ${units[unit]}`;
}

export function percent(part, whole_) {
  return whole_ ? `${Math.round((100 * part) / whole_)} %` : "–";
}

export function ago(text, now = Date.now()) {
  if (!text) return "never";
  const seconds = Math.max(0, Math.round((now - new Date(text)) / 1000));
  if (seconds < 5) return "now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${(1000 * value).toFixed(value < 0.1 ? 1 : 0)} ms` : `${value.toFixed(2)} s`;
}

export function decimal(value) {
  if (value === null || value === undefined) return "–";
  return value >= 100 ? count(Math.round(value)) : value.toFixed(1);
}

export function duration(value) {
  const [days, rest] = [Math.floor(value / 86400), Math.floor(value % 86400)];
  const [hours, minutes] = [Math.floor(rest / 3600), Math.floor((rest % 3600) / 60)];
  if (days) return `${days} d ${hours} h`;
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${rest % 60} s`;
}

const TIERS = { stored: "disk", host: "host", device: "device" };
export const tierName = (tier) => TIERS[tier] ?? tier;

/** Formats a split: `v3`, or `v2 90 %, v3 10 %`. */
export function splitText(weights) {
  const parts = Object.entries(weights);
  if (!parts.length) return "none";
  if (parts.length === 1) return `v${parts[0][0]}`;
  const sum = parts.reduce((total, [, weight]) => total + weight, 0);
  return parts.map(([version, weight]) => `v${version} ${percent(weight, sum)}`).join(", ");
}

const TASKS = {
  SEQ_CLS: "text classification", TOKEN_CLS: "token classification", QUESTION_ANS: "question answering",
  FEATURE_EXTRACTION: "embedding",
};
/** The task of an adapter with a head; empty for one that generates text. */
export const taskName = (task) => TASKS[task] ?? task;
