// Which view is shown: `#/` a new job, `#/jobs/ID` one job.
import { newJob } from "./submit.js";
import { jobView } from "./job.js";
import { refresh, rest } from "./jobs.js";
import { account, login } from "./login.js";

const main = document.getElementById("main");
let leaving = new AbortController();

function route(event) {
  const found = location.hash.match(/^#\/jobs\/([\w-]{1,40})$/);
  if (!found && event && !["", "#/"].includes(location.hash)) return; // a place on this page
  leaving.abort();
  leaving = new AbortController();
  document.title = "segserve";
  main.replaceChildren(found ? jobView(found[1], leaving.signal) : newJob((job) => { location.hash = `#/jobs/${job}`; }));
  refresh();
  if (event) main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

/** Whoever is unknown signs in first. */
function signin() {
  leaving.abort();
  rest();
  document.body.classList.add("outside");
  main.replaceChildren(login(begin));
  main.querySelector("input").focus();
}

async function begin() {
  const me = await account(document.getElementById("account"), signin).catch(() => ({ user: "?" })); // the banner says why
  if (!me.user) { signin(); return; }
  document.body.classList.remove("outside");
  route();
}

window.addEventListener("hashchange", route);
window.addEventListener("signin", signin);
begin();
