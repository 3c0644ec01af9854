// Signing in with a token: it becomes a cookie that scripts cannot read.
import { h } from "./dom.js";
import { get, send } from "./api.js";
import { failure } from "./failure.js";

/** The form. `done()` is called when the server knows who it is. */
export function login(done) {
  const token = h("input", { type: "password", id: "token", autocomplete: "current-password", required: true });
  const problem = h("div", { "aria-live": "assertive" });
  return h("form", { class: "panel stack login", "aria-label": "Sign in", onsubmit: async (event) => {
    event.preventDefault();
    try {
      await send("/login", { token: token.value.trim() });
      done();
    } catch (error) {
      problem.replaceChildren(failure(error, "This did not work"));
      token.select();
    }
  } }, h("h1", {}, "Sign in"), h("p", {}, "This server knows people by tokens. Whoever runs it makes one: ", h("code", {}, "segserve tokens add NAME")),
    h("div", { class: "field" }, h("label", { for: "token" }, "Token"), token), problem, h("div", {}, h("button", { class: "main" }, "Sign in")));
}

/** Who it is, beside the name of the service. */
export async function account(place, left) {
  const me = await get("/me");
  const out = h("button", { type: "button", class: "small", onclick: async () => { await send("/logout", {}); left(); } }, "Sign out");
  place.replaceChildren(...(me.user && !me.local ? [h("span", { class: "soft" }, me.user), out] : []));
  return me;
}
