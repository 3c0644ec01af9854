// The images of a new job: files and folders, dropped or chosen. What is no image stays here, and is named.
import { h, many, number, size } from "./dom.js";

const KNOWN = new Set(document.documentElement.dataset.suffixes.split(" "));
const SHOWN = 200; // of the list; all are sent
const NAMED = 3; // of what stays here
const KINDS = "PNG, TIFF, JPEG, OME-TIFF, CZI, ND2, LIF …";
const natural = new Intl.Collator(undefined, { numeric: true });

/** Drop zone, buttons and list. `files()` are those that are to be sent; `changed()` is called when they are others. */
export function images(changed) {
  let chosen = [], aside = []; // {file, path}: where it lay in what was dropped
  const list = h("ul", { class: "files", "aria-label": "Chosen images" });
  const total = h("span", { class: "soft tiny", role: "status" }, KINDS);
  const note = h("div", { class: "note", role: "status" });
  const input = h("input", { type: "file", multiple: true, id: "images", "aria-label": "Choose images" });
  const folder = h("input", { type: "file", webkitdirectory: true, hidden: true, id: "folder" });
  const drop = h("div", { class: "drop" }, h("strong", {}, "Drop images or folders here, or choose them"), total, input);
  const clear = h("button", { type: "button", class: "small", hidden: true, onclick: () => { chosen = []; aside = []; renew(); input.focus(); } }, "Remove all");
  const pick = h("button", { type: "button", class: "small", onclick: () => folder.click() }, "Choose a folder");

  const remove = (one) => {
    const at = chosen.indexOf(one);
    chosen.splice(at, 1);
    renew();
    (list.querySelectorAll("button")[Math.min(at, chosen.length - 1)] || input).focus();
  };
  const row = (one) => h("li", {}, h("span", { title: one.path }, one.path), h("span", { class: "soft amount" }, size(one.file.size),
    h("button", { type: "button", class: "link small", "aria-label": `Remove ${one.path}`, onclick: () => remove(one) }, "✕")));
  const renew = () => {
    chosen.sort((a, b) => natural.compare(a.path, b.path));
    list.replaceChildren(...chosen.slice(0, SHOWN).map(row));
    if (chosen.length > SHOWN) list.append(h("li", { class: "soft" }, `… and ${number(chosen.length - SHOWN)} more`));
    total.textContent = chosen.length ? `${many(chosen.length, "image")}, ${size(chosen.reduce((sum, one) => sum + one.file.size, 0))}` : KINDS;
    clear.hidden = !chosen.length;
    drop.classList.toggle("filled", chosen.length > 0);
    note.replaceChildren(...leftOut());
    changed();
  };
  const leftOut = () => {
    if (!aside.length) return [];
    const names = aside.slice(0, NAMED).map((one) => one.path).join(", ");
    const all = aside.length > NAMED ? `${names} and ${number(aside.length - NAMED)} more` : names;
    return [h("span", {}, `${many(aside.length, "file")} left out, because ${aside.length === 1 ? "its name is not that of an image" : "their names are not those of images"}: ${all} `),
      h("button", { type: "button", class: "small", onclick: () => { chosen.push(...aside); aside = []; renew(); input.focus(); } }, "Send anyway")];
  };
  const add = (found) => {
    const key = ({ file, path }) => `${path} ${file.size} ${file.lastModified}`;
    const known = new Set(chosen.map(key));
    const fresh = found.filter((one) => !known.has(key(one)) && known.add(key(one)));
    chosen.push(...fresh.filter((one) => KNOWN.has(suffix(one.file.name))));
    aside = fresh.filter((one) => !KNOWN.has(suffix(one.file.name)));
    renew();
    if (!found.length) note.replaceChildren("There was no file in what was dropped.");
  };
  for (const one of [input, folder]) {
    one.addEventListener("change", () => {
      add([...one.files].map((file) => ({ file, path: file.webkitRelativePath || file.name })));
      one.value = "";
    });
  }
  const element = h("section", { class: "panel", "aria-label": "Input" }, drop, folder,
    h("div", { class: "row choices" }, pick, clear), note, list);
  anywhere(element, drop, async (transfer) => {
    try {
      add(await dropped(transfer));
    } catch (error) {
      note.replaceChildren(`This could not be read: ${error.message || error.name}.`);
    }
  });
  return { element, files: () => chosen.map((one) => one.file), focus: () => input.focus() };
}

/** A drop beside the zone counts, too: the browser would leave the page, and open the file instead. */
function anywhere(element, zone, take) {
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      const wanted = element.isConnected && !element.hidden;
      event.dataTransfer.dropEffect = wanted ? "copy" : "none";
      zone.classList.toggle("over", wanted && kind === "dragover");
      if (wanted && kind === "drop") take(event.dataTransfer);
    });
  }
}

const suffix = (name) => (name.match(/\.[^.]+$/)?.[0] ?? "").toLowerCase();

/** All files of what was dropped, also those in folders. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, path: file.name }));
  return (await Promise.all(entries.map(within))).flat();
}

async function within(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => { entry.file(resolve, reject); });
    return [{ file, path: entry.fullPath.replace(/^\//, "") }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) { // it hands out a hundred at a time
    const some = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
    if (!some.length) break;
    found.push(...some.filter((one) => !one.name.startsWith(".")));
  }
  return (await Promise.all(found.map(within))).flat();
}
