// A new job: images, executor, entry point, parameters.
import { h, size } from "./dom.js";
import { get, newKey, submit } from "./api.js";
import { field } from "./widgets.js";
import { failure } from "./failure.js";
import { images } from "./files.js";

const OTHER = " other";
const SOON = 3000, LATER = 30000; // when it is asked again how far the environments are
export const EXTRA = [
  ["channel", "Channel", "name or number, from 0; for images with several"],
  ["z", "Z planes", "max, mean, a number, or each"],
  ["frames", "Time points", "A:B, from 0"],
  ["first", "Only so many images", "spread over all of them"],
  ["gpus", "GPUs", "a number, or auto"],
  ["timeout", "Time limit", "seconds"],
];
const ENVIRONMENT = {
  ready: "its environment is ready",
  building: "its environment is being built",
  waiting: "its environment will be built soon",
  failed: "its environment could not be built",
  "on demand": "its environment is built when it is first used, which takes some minutes",
};
const MEANWHILE = {
  building: "Its environment is being built now, which may take some minutes. You can submit already: the job waits for it.",
  waiting: "Its environment is built when those before it are ready. You can submit already: the job does not wait for the others.",
};

/** The form. `done(job)` is called when a job stands in the queue. */
export function newJob(done) {
  const chosen = { key: newKey(), fields: [], entry: null, about: null, rows: [] };
  const changed = () => { chosen.key = newKey(); };
  const given = images(changed);
  const executor = h("select", { id: "executor", required: true });
  const reference = h("input", { type: "text", id: "reference", spellcheck: "false", autocomplete: "off",
    placeholder: "https://github.com/group/executor@v1.0", "aria-describedby": "reference-hint" });
  const other = h("div", { class: "field broad", hidden: true }, h("label", { for: "reference" }, "Repository"), reference,
    h("span", { class: "hint", id: "reference-hint" }, "URL, with @revision and #entry point if you like. Press Enter to look at it."));
  const about = h("div", { class: "stack", "aria-live": "polite" });
  const entry = h("select", { id: "entry" });
  const entries = h("div", { class: "field", hidden: true }, h("label", { for: "entry" }, "Entry point"), entry);
  const parameters = h("div", { class: "fields" });
  const extra = EXTRA.map(([name, label, hint]) => {
    const box = h("input", { type: name === "first" || name === "timeout" ? "number" : "text", id: `x-${name}`, min: "1", name, "aria-describedby": `x-${name}-hint` });
    return h("div", { class: "field" }, h("label", { for: `x-${name}` }, label), box, h("span", { class: "hint", id: `x-${name}-hint` }, hint));
  });
  const problem = h("div", { "aria-live": "assertive" });
  const send = h("button", { class: "main", type: "submit" }, "Segment");
  const bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Upload" });
  const said = h("span", { class: "soft", role: "status" });

  const choose = (name) => {
    chosen.entry = chosen.about.entry_points.find((one) => one.name === name) || chosen.about.entry_points[0];
    chosen.fields = chosen.entry ? chosen.entry.parameters.filter((one) => one.adjustable).map(field) : [];
    parameters.replaceChildren(...chosen.fields.map((one) => one.element));
    if (chosen.entry && !chosen.fields.length) parameters.append(h("p", { class: "soft" }, "This entry point has no parameters to set."));
    given.element.hidden = Boolean(chosen.entry) && !chosen.entry.takes_images;
  };
  const look = async (ref) => {
    about.replaceChildren(h("p", { class: "soft" }, `Looking at ${ref} …`));
    parameters.replaceChildren();
    entries.hidden = true;
    chosen.about = chosen.entry = null;
    const turn = chosen.turn = Symbol(ref);
    try {
      const found = await get(`/executor?ref=${encodeURIComponent(ref)}`);
      if (chosen.turn !== turn) return;
      chosen.about = found;
      tell();
      const usable = found.entry_points.filter((one) => !one.problems.length);
      entry.replaceChildren(...usable.map((one) => h("option", { value: one.name }, one.description ? `${one.name}: ${one.description}` : one.name)));
      entries.hidden = usable.length < 2;
      const best = usable.find((one) => one.name === "main" && one.takes_images) || usable.find((one) => one.takes_images) || usable[0];
      entry.value = best?.name ?? "";
      choose(best?.name);
    } catch (error) {
      if (chosen.turn === turn) about.replaceChildren(failure(error, "This executor cannot be used"));
    }
  };
  const row = () => chosen.rows.find((one) => one.name === current());
  const tell = () => { if (chosen.about) about.replaceChildren(summary(chosen.about, row())); };
  const current = () => executor.value === OTHER ? reference.value.trim() : executor.value;
  executor.addEventListener("change", () => {
    other.hidden = executor.value !== OTHER;
    changed();
    if (executor.value === OTHER) reference.focus();
    if (current()) look(current()); else about.replaceChildren();
  });
  reference.addEventListener("change", () => { changed(); if (current()) look(current()); });
  reference.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); look(current()); } });
  entry.addEventListener("change", () => { changed(); choose(entry.value); });

  const form = h("form", { class: "stack", "aria-label": "New job", novalidate: true, oninput: changed, onsubmit: async (event) => {
    event.preventDefault();
    problem.replaceChildren();
    const missing = !current() ? "Choose an executor first." : !chosen.entry ? "The executor has to be found first."
      : chosen.entry.takes_images && !given.files().length ? "Choose images first." : "";
    if (missing) {
      problem.replaceChildren(h("p", { class: "panel failure" }, missing));
      (!current() ? executor : !chosen.entry ? reference : given).focus();
      return;
    }
    if (!chosen.fields.every((one) => one.valid())) return;
    send.disabled = true;
    bar.hidden = false;
    try {
      const accepted = await submit(body(chosen, current(), form, given.files()), chosen.key, (sent, all) => {
        bar.value = sent / all;
        said.textContent = sent < all ? `${size(sent)} of ${size(all)}` : "Sent. The server writes it down …";
      });
      changed(); // the same again is another job
      form.job = accepted.job;
      done(accepted.job);
    } catch (error) {
      problem.replaceChildren(failure(error, "The job was not taken"));
      problem.firstChild.focus();
    } finally {
      send.disabled = false;
      bar.hidden = true;
      said.textContent = "";
    }
  } },
    h("h1", {}, "New job"),
    h("section", { class: "panel", "aria-label": "What runs" }, h("div", { class: "stack" },
      h("div", { class: "fields" }, h("div", { class: "field broad" }, h("label", { for: "executor" }, "Executor"), executor), other, entries), about)),
    given.element,
    h("section", { class: "panel", "aria-label": "Settings" }, h("div", { class: "stack" }, h("h2", {}, "Parameters"), parameters,
      h("details", {}, h("summary", {}, "Which planes, and where it runs"), h("div", { class: "fields" }, extra)))),
    problem, h("div", { class: "row" }, send, said), bar);

  const listed = (rows) => {
    const before = JSON.stringify(row()?.environment);
    const same = chosen.rows.length === rows.length && rows.every((one, index) => one.name === chosen.rows[index].name);
    chosen.rows = rows;
    if (same) { // only what they are called: whoever chooses just now is left alone
      for (const one of rows) [...executor.options].find((option) => option.value === one.name).textContent = named(one);
    } else {
      const { value } = executor;
      executor.replaceChildren(h("option", { value: "" }, "choose …"), ...rows.map((one) => h("option", { value: one.name }, named(one))),
        h("option", { value: OTHER }, "another repository …"));
      executor.value = [...executor.options].some((option) => option.value === value) ? value : "";
    }
    if (!current()) about.replaceChildren(); // what could not be listed before
    else if (JSON.stringify(row()?.environment) !== before) tell();
  };
  let timer = 0;
  /** Ask how far the environments are, and again while somebody sees this. */
  form.renew = async () => {
    clearTimeout(timer);
    try {
      listed(await get("/executors"));
    } catch (error) {
      if (!chosen.rows.length) about.replaceChildren(failure(error, "The executors cannot be listed"));
    }
    const soon = !chosen.rows.length || chosen.rows.some((one) => one.environment?.state in MEANWHILE);
    timer = setTimeout(() => { if (form.isConnected) form.renew(); }, soon ? SOON : LATER);
  };
  return form;
}

function named(row) {
  const state = row.environment?.state;
  const what = row.title || row.description;
  return `${row.name}${what ? ` – ${what}` : ""}${state === "building" ? " (being built)" : state === "failed" ? " (build failed)" : ""}`;
}

/** What an executor says of itself. */
function summary(about, row) {
  const environment = row?.environment;
  const facts = [
    about.algorithm_type && `${about.algorithm_type}${about.tags.length ? ` · ${about.tags.join(", ")}` : ""}`,
    about.commit && `commit ${about.commit.slice(0, 10)}`,
    about.licence,
    environment && ENVIRONMENT[environment.state],
  ].filter(Boolean).join(" · ");
  const doi = about.doi && `https://doi.org/${about.doi}`;
  return h("div", { class: "about" }, h("strong", {}, about.title || about.name), h("p", {}, about.description),
    h("p", { class: "soft tiny" }, facts),
    about.citation || doi ? h("p", { class: "soft tiny" }, "Cite: ", about.citation, doi ? h("a", { href: doi, rel: "noreferrer" }, ` ${doi}`) : null) : null,
    environment?.state in MEANWHILE ? h("p", { class: "note" }, MEANWHILE[environment.state]) : null,
    environment?.state === "failed" ? failure({ ...environment, hint: [environment.hint, "A new job tries to build it again."].filter(Boolean).join(" ") }, "The environment could not be built") : null);
}

function body(chosen, ref, form, files) {
  const data = new FormData();
  data.append("executor", ref);
  if (chosen.entry.name !== "main") data.append("entry", chosen.entry.name);
  const values = chosen.fields.map((one) => [one.name, one.value()]).filter(([, value]) => value !== null);
  data.append("parameters", JSON.stringify(Object.fromEntries(values)));
  for (const [name] of EXTRA) {
    const { value } = form.querySelector(`#x-${name}`);
    if (value.trim()) data.append(name, value.trim());
  }
  if (chosen.entry.takes_images) for (const file of files) data.append("images", file, file.name);
  return data;
}
