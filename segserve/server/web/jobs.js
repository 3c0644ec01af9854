// The list of jobs: looked at every few seconds while somebody sees it.
import { h, many, moment } from "./dom.js";
import { connection, get } from "./api.js";

const EVERY = 4000;
const list = document.getElementById("job-list");
let timer = 0, asked = 0;

/** Ask now, and again and again. */
export async function refresh() {
  clearTimeout(timer);
  const turn = asked += 1;
  try {
    show(await get("/jobs?limit=60"));
    connection("jobs", true);
  } catch (error) {
    connection("jobs", error.status > 0);
    if (error.status > 0) list.replaceChildren(h("li", { class: "soft" }, [error.message, error.hint].filter(Boolean).join(" ")));
  }
  if (turn === asked) timer = setTimeout(() => (document.hidden ? sleep() : refresh()), EVERY);
}

/** Ask no more. */
export function rest() {
  asked += 1;
  clearTimeout(timer);
  list.replaceChildren();
}

function sleep() {
  document.addEventListener("visibilitychange", refresh, { once: true });
}

function show(rows) {
  const focused = list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  const here = location.hash;
  list.replaceChildren(...rows.map((row) => {
    const href = `#/jobs/${row.job}`;
    const images = row.images === null ? "" : many(row.images, "image");
    return h("li", {}, h("a", { href, "aria-current": here.startsWith(href) ? "page" : null },
      h("span", { class: "row spread" }, h("span", { class: "name" }, title(row)), h("span", { class: `state ${row.state}` }, row.state)),
      h("span", { class: "soft tiny" }, [moment(row.created), images].filter(Boolean).join(" · "))));
  }));
  if (!rows.length) list.append(h("li", { class: "soft" }, "None yet."));
  if (focused) list.querySelector(`a[href="${CSS.escape(focused)}"], a[href="${focused}"]`)?.focus();
}

/** `executor`, and the entry point when it is not main. */
export const title = (row) => row.entry === "main" ? row.executor : `${row.executor} #${row.entry}`;
