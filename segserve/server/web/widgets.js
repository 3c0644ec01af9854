// A parameter → a field that fits its type. `value()` is null when it is the default: then it is not sent.
import { h } from "./dom.js";

const NUMBERS = ["int", "float"];
let count = 0;

/** A field for one parameter, as GET /executors/{name} describes it. */
export function field(parameter) {
  const id = `p${count += 1}`;
  const made = control(parameter, id);
  const limits = limit(parameter);
  const hint = h("span", { class: "hint", id: `${id}-hint` }, [parameter.description, limits].filter(Boolean).join(" · "));
  const error = h("span", { class: "error", id: `${id}-error`, role: "alert", hidden: true });
  for (const input of made.inputs) {
    input.setAttribute("aria-describedby", `${id}-hint ${id}-error`);
    if (parameter.description) input.title = parameter.description;
  }
  const name = h("label", { for: id, title: parameter.description || null }, parameter.name, parameter.required ? " *" : "");
  const element = made.check
    ? h("div", { class: "field" }, h("div", { class: "check" }, made.element, name), hint, error)
    : h("div", { class: "field" }, name, made.element, hint, error);
  element.dataset.type = parameter.type;
  element.dataset.name = parameter.name;
  return {
    element,
    name: parameter.name,
    value() {
      const text = made.read();
      const untouched = text === (parameter.default ?? "") || (!parameter.required && text === "" && NUMBERS.includes(parameter.kind));
      return untouched ? null : text;
    },
    /** Whether it can be sent; says what is wrong beside the field, and goes there. */
    valid() {
      const wrong = problem(parameter, made.read()) || made.inputs.find((input) => !input.validity.valid)?.validationMessage;
      error.hidden = !wrong;
      error.textContent = wrong || "";
      made.inputs.forEach((input) => input.classList.toggle("wrong", Boolean(wrong)));
      if (wrong) made.inputs.at(-1).focus();
      return !wrong;
    },
  };
}

function control(parameter, id) {
  const initial = parameter.default ?? "";
  if (parameter.many) return text(id, initial, parameter);
  if (parameter.options.length) return choice(id, parameter);
  if (parameter.kind === "bool") return truth(id, initial);
  if (NUMBERS.includes(parameter.kind)) {
    return parameter.min !== null && parameter.max !== null ? slider(id, parameter) : numeric(id, initial, parameter);
  }
  return text(id, initial, parameter);
}

function text(id, initial, { required, many }) {
  const input = h("input", { type: "text", id, value: initial, required, spellcheck: "false", autocomplete: "off",
    placeholder: many ? "1, 2, 3" : null });
  return { element: input, inputs: [input], read: () => input.value.trim() };
}

function choice(id, { options, default: initial, required }) {
  const missing = initial === null || !options.includes(initial);
  const select = h("select", { id, required }, missing ? h("option", { value: initial ?? "" }, initial ?? "choose …") : null,
    options.map((option) => h("option", { value: option, selected: option === initial }, option)));
  return { element: select, inputs: [select], read: () => select.value };
}

function truth(id, initial) {
  const on = ["true", "yes", "on", "1"].includes(initial.toLowerCase());
  const input = h("input", { type: "checkbox", id, checked: on });
  return { element: input, inputs: [input], check: true, read: () => input.checked === on ? initial : String(input.checked) };
}

function numeric(id, initial, { kind, min, max, step, required }) {
  // `any`: the step of a parameter is how far a control moves; other values are fine.
  const input = h("input", { type: "number", id, value: initial, min: min === null ? null : String(min), required,
    max: max === null ? null : String(max), step: kind === "int" ? "1" : "any", inputmode: kind === "int" ? "numeric" : "decimal" });
  if (step !== null && kind === "float") input.dataset.step = String(step);
  return { element: input, inputs: [input], read: () => input.value === "" && input.validity.badInput ? "?" : input.value };
}

function slider(id, parameter) {
  const { min, max, default: initial, kind } = parameter;
  const exact = numeric(id, initial ?? "", parameter);
  const step = parameter.step ?? (kind === "int" ? 1 : (max - min) / 100);
  const range = h("input", { type: "range", min: String(min), max: String(max), step: String(step), value: initial ?? String(min),
    "aria-label": `${parameter.name}, slider` });
  const [input] = exact.inputs;
  range.addEventListener("input", () => { input.value = range.value; });
  input.addEventListener("input", () => { range.value = input.value; });
  return { element: h("div", { class: "pair" }, range, input), inputs: [range, input], read: exact.read };
}

function limit({ kind, many, min, max, options, required, default: initial }) {
  const parts = [];
  if (many) parts.push(`${kind === "string" ? "texts" : kind === "bool" ? "true or false" : "numbers"}, with commas between them`);
  if (min !== null || max !== null) parts.push(min === null ? `at most ${max}` : max === null ? `at least ${min}` : `${min} to ${max}`);
  if (kind === "path" || kind === "uri") parts.push("a place that the server can read, or https://…");
  if (!required && !options.length && kind !== "bool" && initial !== "") parts.push(`default ${initial}`);
  return parts.join(" · ");
}

/** What the server would refuse, said at once; it checks everything itself, too. */
function problem({ kind, many, required, min, max }, value) {
  if (value === "") return required ? "A value is needed." : "";
  if (!many) return NUMBERS.includes(kind) && Number.isNaN(Number(value)) ? `'${value}' is no number.` : "";
  const items = listed(value);
  if (items === null) return "This is no list. Write 1, 2, 3.";
  for (const item of items) {
    const single = Number(item);
    if (NUMBERS.includes(kind) && (String(item).trim() === "" || Number.isNaN(single))) return `'${item}' is no number.`;
    if (kind === "int" && !Number.isInteger(single)) return `'${item}' is no whole number.`;
    if (kind === "bool" && !/^(true|false|yes|no|on|off|1|0)$/i.test(String(item).trim())) return `'${item}' is neither true nor false.`;
    if (NUMBERS.includes(kind) && ((min !== null && single < min) || (max !== null && single > max))) return `'${item}' is not within ${min} to ${max}.`;
  }
  return "";
}

function listed(value) {
  if (!value.startsWith("[")) return value.split(",");
  try {
    return JSON.parse(value);
  } catch {
    return null;
  }
}
