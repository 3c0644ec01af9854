// Which view is shown: `#/` a new job, `#/jobs/ID` one job.
import { newJob } from "./submit.js";
import { jobView } from "./job.js";
import { refresh, rest } from "./jobs.js";
import { account, login } from "./login.js";

const main = document.getElementById("main");
let leaving = new AbortController();
let form = null; // stays as it is while somebody looks at jobs: the same images, with other parameters

function route(event) {
  const found = location.hash.match(/^#\/jobs\/([\w-]{1,40})$/);
  if (!found && event && !["", "#/"].includes(location.hash)) return; // a place on this page
  leaving.abort();
  leaving = new AbortController();
  document.title = "segserve";
  if (!found) form ??= newJob((job) => { location.hash = `#/jobs/${job}`; });
  main.replaceChildren(found ? jobView(found[1], leaving.signal, form?.job === found[1]) : form);
  if (!found) form.renew();
  refresh();
  if (event) main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

/** Whoever is unknown signs in first. */
function signin() {
  leaving.abort();
  form = null;
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
