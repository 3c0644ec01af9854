// One job: how it goes, then its result, or why there is none.
import { address, h, many, moment } from "./dom.js";
import { connection, follow, get, patiently, url } from "./api.js";
import { failure } from "./failure.js";
import { look } from "./look.js";
import { refresh, title } from "./jobs.js";
import { EXTRA } from "./submit.js";

const MOST_LINES = 500;
const EXPORTS = { qupath: "QuPath", imagej: "ImageJ / Fiji", coco: "COCO", labels: "label images", cvat: "CVAT", "label-studio": "Label Studio", omero: "OMERO", napari: "napari" };

/** The view of a job; ends with `signal`. `again`: the form that it came from still has its images. */
export function jobView(id, signal, again) {
  const head = h("div", { class: "row spread" }, h("h1", {}, id));
  const body = h("div", { class: "stack" });
  const progress = going(id);
  const view = h("div", { class: "stack" }, h("section", { class: "panel" }, head, progress.element), body);
  let gallery = null;
  const pictures = async (facts) => {
    if (signal.aborted || gallery?.dataset.state === "succeeded" || (gallery && facts.state !== "succeeded")) return;
    try {
      const rows = await get(`/jobs/${id}/images`, { signal });
      if (signal.aborted || gallery?.dataset.state === "succeeded") return;
      gallery?.remove();
      gallery = look(id, rows, facts);
      gallery.dataset.state = facts.state;
      body.prepend(gallery);
    } catch (error) {
      if (error.name !== "AbortError" && error.status !== 404) throw error; // 404: there are none, or none yet
    }
  };
  const renew = async () => {
    const facts = await get(`/jobs/${id}`, { signal });
    heading(head, facts, renew, again);
    progress.state(facts);
    await pictures(facts);
    return facts;
  };
  const connected = (fine) => connection(id, fine);
  const surely = () => patiently(renew, connected, signal);
  const end = async () => {
    const facts = await surely();
    refresh();
    if (facts.state === "succeeded") body.append(await taken(id, gallery !== null));
    if (facts.error) body.prepend(failure({ message: facts.error, hint: here(facts.hint), quote: facts.quote }, facts.state === "cancelled" ? "Cancelled" : "The job has failed"));
    body.append(details(facts));
  };
  const wrong = (error) => { if (!signal.aborted) body.replaceChildren(failure(error, "This job cannot be shown")); };
  surely().then(() => follow(id, (kind, data) => {
    progress.tell(kind, data);
    if (kind === "state" && !signal.aborted) renew().catch(() => {});
  }, connected, signal)).then(() => signal.aborted || end()).catch(wrong);
  signal.addEventListener("abort", () => connection(id, true));
  return view;
}

function heading(head, facts, renew, again) {
  const open = !["succeeded", "failed", "cancelled"].includes(facts.state);
  const cancel = h("button", { type: "button", class: "small", onclick: async () => {
    cancel.disabled = true;
    await get(`/jobs/${facts.job}`, { method: "DELETE" }).catch((error) => { cancel.after(h("span", {}, error.message)); });
    renew();
  } }, "Cancel");
  const run = address(facts.mlflow || "", url("/"));
  document.title = `${facts.state} · ${title(facts)} · segserve`;
  head.replaceChildren(h("div", {}, h("h1", {}, title(facts)), h("span", { class: "soft tiny" }, `${facts.job} · ${moment(facts.created)}`)),
    h("div", { class: "row" }, h("span", { class: `state ${facts.state}`, role: "status" }, facts.state), open ? cancel : null,
      again && !open ? h("a", { class: "button small", href: "#/" }, "Same images again …") : null,
      run ? h("a", { class: "button small", href: run, target: "_blank", rel: "noopener" }, "MLflow run ↗") : null));
}

/** A hint in the words of the page, where it names flags of the command line. */
function here(hint) {
  const named = EXTRA.filter(([name]) => new RegExp(`--${name}\\b`).test(hint || "")).map(([, label]) => `“${label}”`);
  return named.length ? `${hint} (On this page: ${named.join(", ")}, below the parameters of a new job.)` : hint;
}

/** Phases, images done, the end of the log. */
function going(id) {
  const bar = h("progress", { max: 1, hidden: true, "aria-label": "Progress" });
  const said = h("span", { class: "soft tiny", role: "status" });
  const phases = h("ol", { class: "phases" });
  const log = h("pre", { class: "log", tabindex: "0", role: "log", "aria-label": `Log of ${id}` });
  const box = h("details", {}, h("summary", {}, "Log"), log);
  const all = h("details", { open: true }, h("summary", {}, "What happened"), phases);
  const lines = [];
  return {
    element: h("div", { class: "stack" }, bar, said, all, box),
    state(facts) {
      const final = ["succeeded", "failed", "cancelled"].includes(facts.state);
      if (facts.state === "queued") said.textContent = "It waits for its turn.";
      if (facts.state === "running" && !bar.hidden && bar.value === 1) bar.removeAttribute("value");
      if (final) { bar.hidden = true; said.textContent = ""; all.open = facts.state !== "succeeded"; }
      else if (facts.state !== "queued") { if (bar.hidden) bar.removeAttribute("value"); bar.hidden = false; }
    },
    tell(kind, data) {
      if (kind === "log") {
        lines.push(...data.lines);
        lines.splice(0, Math.max(lines.length - MOST_LINES, 0));
        const bottom = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
        log.textContent = lines.join("\n");
        if (bottom) log.scrollTop = log.scrollHeight;
      } else if (kind === "progress" && data.kind === "progress") {
        bar.value = data.total ? data.done / data.total : 0;
        said.textContent = `${data.done} of ${data.total} ${data.what}`;
      } else if (kind === "progress") {
        phases.append(h("li", { class: data.kind }, data.text));
        if (data.kind === "phase") { bar.removeAttribute("value"); said.textContent = ""; }
      }
    },
  };
}

/** What can be taken away: exports, files. */
async function taken(id, polygons) {
  const files = await get(`/jobs/${id}/files`).catch(() => []);
  const link = (name, text) => files.some((file) => file.name === name)
    ? h("a", { class: "button small", href: url(`/jobs/${id}/files/${name}`), download: `${id}-${name.split("/").pop()}` }, text) : null;
  const formats = polygons ? await get(`/jobs/${id}/exports`).catch(() => []) : [];
  return h("section", { class: "panel", "aria-label": "Take away" }, h("div", { class: "stack" }, h("h2", {}, "Take away"),
    h("div", { class: "row" }, h("a", { class: "button small", href: url(`/jobs/${id}/result`), download: `${id}-output.json` }, "output.json"),
      link("objects.csv", "objects.csv"), formats.map((name) => h("a", { class: "button small", href: url(`/jobs/${id}/exports/${name}`), download: "" }, EXPORTS[name] || name))),
    h("details", {}, h("summary", {}, many(files.length, "file")), h("ul", { class: "files" }, files.slice(0, 500).map((file) =>
      h("li", {}, h("a", { href: url(`/jobs/${id}/files/${file.name.split("/").map(encodeURIComponent).join("/")}`) }, file.name)))))));
}

function details(facts) {
  const rows = { Repository: facts.repository, Commit: facts.commit, Environment: facts.environment, Attempt: facts.attempt > 1 ? facts.attempt : null,
    ...Object.fromEntries(Object.entries(facts.parameters || {}).map(([name, value]) => [`–P ${name}`, value])),
    ...Object.fromEntries(Object.entries(facts.seconds || {}).map(([name, value]) => [`${name}`, `${value.toFixed(1)} s`])),
    Warnings: (facts.warnings || []).join("\n") };
  return h("section", { class: "panel" }, h("details", {}, h("summary", {}, "How it was made"), h("dl", { class: "facts" },
    Object.entries(rows).filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]))));
}
