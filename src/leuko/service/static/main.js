// Which view is shown. The address holds the whole state, so that a reload comes back to it.

import { ask, button, el, entry, notify } from "./elements.js";
import { begin, call, end, isGuarded, setLogIn } from "./service.js";
import { askReader, getReader, hasShortcuts, setShortcuts } from "./reader.js";
import { openStart } from "./start.js";
import { openUpload } from "./upload.js";
import { openReview } from "./review.js";
import { openComparison } from "./comparison.js";
import { openAdaptation } from "./adaptation.js";
import { describeKeys } from "./keys.js";

const ROUTES = [
  [/^#\/slides\/([^/]+)\/images\/([^/]+)$/, openUpload],
  [/^#\/slides\/([^/]+)\/([^/]+)\/adaptation$/, openAdaptation],
  [/^#\/slides\/([^/]+)\/compare\/([^/]+)\/([^/]+)$/, openComparison],
  [/^#\/slides\/([^/]+)\/([^/]+)\/(gallery|fields|cell|trail)(?:\/([^/]+))?$/, openReview],
];

let close = () => {};
let shown = "";

async function route() {
  const hash = location.hash || "#/";
  const [open, parts] = match(hash);
  // A review holds its reading while its views change; only another page closes it.
  const page = open === openReview ? `review/${parts[0]}/${parts[1]}` : hash;
  if (page === shown) return;
  shown = page;
  document.getElementById("notices").replaceChildren();
  close(); // what it has still to say stands there
  close = () => {};
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close("");
  // A room of its own for each page: what a slower one brings later lands in none that is shown.
  const work = el("div", { class: "room" });
  document.getElementById("work").replaceChildren(work);
  document.getElementById("where").replaceChildren();
  document.getElementById("views").replaceChildren();
  document.getElementById("views").hidden = true;
  try {
    const closing = await open(work, ...parts);
    if (shown === page) close = closing ?? (() => {});
    else closing?.();
  } catch (error) {
    if (shown !== page) return;
    work.className = "room";
    work.replaceChildren(
      el(
        "section",
        { class: "sheet narrow" },
        el("h1", { text: error.status === 404 ? "There is no such slide" : "This can't be shown" }),
        el("p", { text: error.message }),
        el("p", {}, el("a", { href: "#/", text: "All slides" })),
      ),
    );
    if (!error.status && error.status !== 0) throw error;
  }
}

function match(hash) {
  for (const [pattern, open] of ROUTES) {
    const found = hash.match(pattern);
    if (found) return [open, found.slice(1).map((part) => part && decodeURIComponent(part))];
  }
  return [openStart, []];
}

/** A small form, when the service wants a token. */
async function logIn() {
  const { whole, input } = entry(
    "Token",
    { type: "password", autocomplete: "current-password", required: true },
    "It was given to whoever started the service.",
  );
  const done = await ask("Log in", whole, {
    yes: "Log in",
    no: "",
    check: async () => {
      await begin(input.value);
    },
  });
  if (!done) return logIn();
  return showModel();
}

async function showModel() {
  const model = await call("GET", "model");
  document.getElementById("model").textContent =
    `Model ${model.architecture ?? ""} ${String(model.id ?? "").slice(0, 12)} · Leuko ${model.leuko ?? ""}`;
}

function showKeys() {
  const box = el("input", { type: "checkbox", id: "shortcuts" });
  box.checked = hasShortcuts();
  box.addEventListener("change", () => setShortcuts(box.checked));
  return ask(
    "Keys",
    el(
      "div",
      {},
      describeKeys(),
      el(
        "div",
        { class: "check" },
        box,
        el("label", {
          for: "shortcuts",
          text: "Single letters are commands while the cells have the focus",
        }),
      ),
    ),
    { yes: "Close", no: "", wide: true },
  );
}

function showReader() {
  const text = `You: ${getReader() || "no name yet"}`;
  const place = document.getElementById("reader");
  place.lastElementChild.textContent = text;
  place.setAttribute("aria-label", `${text}. Change the name`); // narrow windows show the icon alone
}

document.getElementById("reader").addEventListener("click", askReader);
window.addEventListener("reader", showReader);
showReader();
document.getElementById("keys").addEventListener("click", showKeys);
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, dialog");
  if (event.key === "?" && !typing && hasShortcuts()) {
    event.preventDefault();
    showKeys();
  }
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  const first = document.querySelector('#work [tabindex="0"]') ?? document.getElementById("work");
  first.focus();
});
/** Only where a token is needed there is something to leave. */
async function showLogOut() {
  if (!(await isGuarded())) return;
  const leave = button(
    "Log out",
    async () => {
      await end();
      location.reload();
    },
    { kind: "plain small" },
  );
  document.querySelector(".tools").append(leave);
}

window.addEventListener("hashchange", route);
setLogIn(logIn);
showModel().catch((error) => notify(error.message, { kind: "bad", id: "model" }));
showLogOut();
route();
