// What went wrong, as the server says it: what happened, what to do, and the deciding lines of a log.
import { h } from "./dom.js";

/** A panel for a Problem, or for the error of a job. */
export function failure(error, title) {
  const findings = (error.findings || []).slice(0, 20).map((one) => h("li", {}, [one.message, one.fix].filter(Boolean).join(" ")));
  return h("section", { class: "panel failure", tabindex: "-1", "aria-label": title }, h("h2", {}, title), h("p", {}, error.message || String(error)),
    error.hint ? h("p", { class: "hint" }, h("strong", {}, "What to do: "), error.hint) : null,
    error.quote ? h("pre", {}, error.quote) : null, findings.length ? h("ul", {}, findings) : null);
}
