// The result: image by image, with filters by score and label, and counts.
import { h, number } from "./dom.js";
import { unreachable } from "./api.js";
import { failure } from "./failure.js";
import { Viewer, colour } from "./viewer.js";

const AGAIN = 3000;

/** The panel for the images of a job; `facts` says whether there are polygons yet. */
export function look(job, rows, facts) {
  const polygons = facts.state === "succeeded" && rows.some((row) => row.objects !== null);
  const off = new Set(); // labels that are not shown
  const list = h("select", { size: "8", "aria-label": "Images" }, rows.map((row) => h("option", { value: String(row.index), title: row.name }, named(row))));
  const count = h("div", { class: "count", role: "status", "aria-label": "Objects shown" });
  const of = h("span", { class: "soft tiny" });
  const least = h("input", { type: "range", id: "least", min: "0", max: "1", step: "0.01", value: "0", "aria-describedby": "least-value" });
  const shown = h("output", { id: "least-value", for: "least" }, "0.00");
  const scores = h("div", { class: "field", hidden: true }, h("label", { for: "least" }, "Score at least ", shown), least);
  const labels = h("ul", { class: "labels" });
  const legend = h("fieldset", { hidden: true }, h("legend", {}, "Labels"), labels);
  const problem = h("div", { "aria-live": "polite" });
  const which = h("p", { class: "which" });
  const all = rows.reduce((sum, row) => sum + (row.objects || 0), 0);
  let current = 0;

  const passes = (object) => !off.has(object.label) && (object.score === null || object.score >= Number(least.value));
  const apply = () => {
    shown.textContent = Number(least.value).toFixed(2);
    viewer.filter(passes);
    const { length } = viewer.visible;
    count.textContent = polygons ? number(length) : "–";
    of.textContent = !polygons ? (["failed", "cancelled"].includes(facts.state) ? "no result" : facts.state === "succeeded" ? "no polygons" : "no result yet") : length === viewer.objects.length ? (length === 1 ? "object" : "objects") : `of ${number(viewer.objects.length)} objects`;
  };
  const filters = () => {
    const tally = new Map();
    for (const { label } of viewer.objects) tally.set(label, (tally.get(label) || 0) + 1);
    legend.hidden = tally.size < 1;
    labels.replaceChildren(...[...tally].map(([label, times]) => {
      const box = h("input", { type: "checkbox", checked: !off.has(label), onchange: () => { if (box.checked) off.delete(label); else off.add(label); apply(); } });
      const swatch = h("span", { class: "swatch" });
      if (tally.size > 1) swatch.style.background = colour(viewer.labels.indexOf(label));
      return h("li", {}, h("label", {}, box, tally.size > 1 ? swatch : null, h("span", { title: label }, label), h("span", { class: "many" }, number(times))));
    }));
    scores.hidden = !viewer.objects.some((object) => object.score !== null);
  };
  const step = (by) => {
    const next = Math.min(Math.max(current + by, 0), rows.length - 1);
    if (next !== current) show(next);
  };
  const viewer = new Viewer(job, { onStep: step });
  const known = new Set();
  const show = async (index) => {
    current = index;
    list.value = String(index);
    problem.replaceChildren();
    const { name, width, height } = rows[index];
    which.replaceChildren(h("strong", {}, name), h("span", { class: "soft" }, ` · ${rows.length > 1 ? `${number(index + 1)} of ${number(rows.length)} · ` : ""}${number(width)} × ${number(height)} pixels`));
    viewer.element.classList.add("loading"); // what is seen is still the one before
    count.textContent = "…";
    of.textContent = "loading";
    try {
      if (!await viewer.show(rows[index], polygons, [])) return;
      viewer.element.classList.remove("loading");
      viewer.objects.forEach((object) => known.add(object.label));
      viewer.labels = [...known].sort();
      filters();
      apply();
    } catch (error) {
      count.textContent = "–";
      of.textContent = "";
      problem.replaceChildren(failure(error, "This image cannot be shown"));
      if (unreachable(error)) setTimeout(() => { if (panel.isConnected && current === index) show(index); }, AGAIN);
    }
  };
  list.addEventListener("change", () => show(Number(list.value)));
  least.addEventListener("input", apply);
  const panel = h("section", { class: "panel", "aria-label": "Images and objects" }, h("div", { class: "look" }, h("div", {}, which, viewer.element, problem,
    h("p", { class: "soft tiny" }, "← → images · + − zoom · 0 fit · o outlines · drag to move")),
    h("div", { class: "side" }, h("div", {}, count, of, polygons && rows.length > 1 ? h("p", { class: "soft tiny" }, `${number(all)} in all ${number(rows.length)} images`) : null), scores, legend, h("div", { class: "field" }, h("h3", {}, "Images"), list,
      h("div", { class: "row" }, h("button", { type: "button", class: "small", onclick: () => step(-1) }, "← Previous"), h("button", { type: "button", class: "small", onclick: () => step(1) }, "Next →"))))));
  panel.viewer = viewer; // for tests, which look at what is drawn
  if (rows.length) show(0);
  return panel;
}

/** A long name without its middle: what tells names apart stands at their ends, and the count behind it is seen. */
const short = (name) => name.length > 26 ? `${name.slice(0, 11)}…${name.slice(-14)}` : name;

function named(row) {
  const axes = ["t", "z", "c"].filter((axis) => row[axis] !== null).map((axis) => `${axis}${row[axis]}`).join(" ");
  return `${short(row.name)}${axes ? ` ${axes}` : ""}${row.objects === null ? "" : ` · ${number(row.objects)}`}`;
}
