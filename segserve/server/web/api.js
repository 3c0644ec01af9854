// What the server is asked. Errors are its problem details; a connection that is lost is tried again.

const root = document.documentElement.dataset.root;
export const url = (path) => root + path;

/** What went wrong, as the server says it: message, hint, the deciding lines of a log. */
export class Problem extends Error {
  constructor({ message, detail, hint = "", quote = "", findings = [], status = 0 }) {
    super(message || detail || "The server gave no reason.");
    Object.assign(this, { hint, quote, findings, status });
  }
}

/** The problem in an answer that is none of ours, too (a proxy's, for example). */
export function problemOf(status, text) {
  try {
    return new Problem({ ...JSON.parse(text), status });
  } catch {
    return new Problem({ message: `The server answered ${status}.`, hint: text.slice(0, 200), status });
  }
}

/** JSON from the server. */
export async function get(path, options = {}) {
  let answer;
  try {
    answer = await fetch(url(path), { ...options, headers: { Accept: "application/json", ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ message: "The server cannot be reached.", hint: "Is it still running? Jobs, images and lists come back by themselves; what you have just done, do again." });
  }
  if (!answer.ok) throw told(problemOf(answer.status, await answer.text()), path);
  return answer.status === 204 ? null : answer.json();
}

/** Send JSON. */
export const send = (path, value) => get(path, { method: "POST", body: JSON.stringify(value), headers: { "Content-Type": "application/json" } });

/** Whoever is not known any more is asked to sign in. */
function told(problem, path = "") {
  if (problem.status === 401 && path !== "/login") window.dispatchEvent(new Event("signin"));
  return problem;
}

/** Send a form and say how much of it has gone. The key makes a second try the same job. */
export function submit(form, key, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url("/jobs"));
    request.setRequestHeader("Idempotency-Key", key);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded, event.total);
    request.onerror = () => reject(new Problem({
      message: "The connection was lost while the images were sent.", hint: "Submit again: it becomes the same job." }));
    request.onload = () => request.status === 202
      ? resolve(JSON.parse(request.responseText)) : reject(told(problemOf(request.status, request.responseText)));
    request.send(form);
  });
}

const pause = (seconds, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, seconds * 1000);
  signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
});

/** Whether nobody was there, or a proxy says so. */
export const unreachable = (error) => [0, 502, 503, 504].includes(error.status);

/** What `ask` gives, as soon as the server can be reached. `connected(true | false)`. */
export async function patiently(ask, connected, signal) {
  for (let wait = 0.5; ; wait = Math.min(wait * 1.6, 10)) {
    try {
      const found = await ask();
      connected(true);
      return found;
    } catch (error) {
      if (signal.aborted || !unreachable(error)) throw error;
      connected(false);
      await pause(wait, signal);
    }
  }
}

/**
 * Follow the events of a job until it has ended. Each is told once, also across lost connections.
 * `tell(kind, data)`; `connected(true | false)`.
 */
export async function follow(job, tell, connected, signal) {
  let last = "", ended = false, wait = 0.5;
  while (!ended && !signal.aborted) {
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const answer = await fetch(url(`/jobs/${job}/events`), { headers, signal });
      if ([401, 403, 404].includes(answer.status)) throw told(problemOf(answer.status, await answer.text()));
      if (!answer.ok) throw new Error(String(answer.status));
      connected(true);
      wait = 0.5;
      for await (const event of events(answer.body)) {
        last = event.id || last;
        tell(event.kind, event.data);
        ended ||= event.kind === "end";
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem) throw error;
    }
    if (!ended) {
      connected(false);
      await pause(wait, signal);
      wait = Math.min(wait * 1.6, 10);
    }
  }
}

/** The events in a stream of bytes. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const found = Object.fromEntries(block.split("\n").filter((line) => !line.startsWith(":"))
        .map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
      if (found.data) yield { kind: found.event, id: found.id, data: JSON.parse(found.data) };
    }
  }
}

/** A key that no other submission has. */
export function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const lost = new Set();

/** Say in one place whether the server answers; `who` are the parts of the page that ask it. */
export function connection(who, fine) {
  if (fine) lost.delete(who); else lost.add(who);
  const banner = document.getElementById("connection");
  banner.hidden = lost.size === 0;
  banner.textContent = lost.size ? "The connection to the server is lost. Trying again …" : "";
}
