// Elements from plain words. Text is always text: nothing that a repository says becomes markup.

/** An element: `h("a", {href: "#/", class: "button"}, "New job")`. Names with `on` are listeners, `null` is left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const numbers = new Intl.NumberFormat("en");

/** `1,234 objects`, `1 object`. */
export function many(count, noun) {
  return `${numbers.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

export const number = (value) => numbers.format(value);

/** `3.2 MB`. */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) { bytes /= 1000; unit += 1; }
  return `${bytes >= 100 || unit === 0 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

/** When, in the reader's own time zone. */
export function moment(text) {
  const when = new Date(text);
  return Number.isNaN(when.getTime()) ? text : when.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** Where a link may lead: the web, or a place below the service (`mlflow/…`, `base` is its root). Nothing else is one. */
export function address(text, base) {
  if (/^https?:\/\//.test(text)) return text;
  return /^mlflow\//.test(text) ? base + text : null;
}
