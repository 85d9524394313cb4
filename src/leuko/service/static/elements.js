// Makes elements. Every text goes through textContent: what a server sends is never markup.

/** Knows a tag, its facts and its children; `on` holds listeners, `data` holds data-*. */
export function el(tag, facts = {}, ...children) {
  return fill(document.createElement(tag), facts, children);
}

/** The same for SVG. */
export function svg(tag, facts = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), facts, children);
}

function fill(node, { on = {}, data = {}, text, ...facts }, children) {
  for (const [name, value] of Object.entries(facts)) {
    if (value === false || value === null || value === undefined) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const [name, value] of Object.entries(data)) node.dataset[name] = value;
  for (const [name, heard] of Object.entries(on)) node.addEventListener(name, heard);
  if (text !== undefined) node.textContent = text;
  return append(node, children);
}

function append(node, children) {
  node.append(
    ...children
      .flat(Infinity)
      .filter((child) => child !== null && child !== undefined && child !== false),
  );
  return node;
}

/** Puts children in the place of those there were; null is none. */
export function put(node, ...children) {
  node.replaceChildren();
  return append(node, children);
}

export function icon(name) {
  return el("span", { class: `icon i-${name}`, "aria-hidden": "true" });
}

/** A button with an icon, a text, or both; `key` is shown as a cap. */
export function button(text, press, { icon: name, key, kind = "", label, ...facts } = {}) {
  return el(
    "button",
    { type: "button", class: kind, "aria-label": label, on: { click: press }, ...facts },
    name ? icon(name) : null,
    text ? el("span", { text }) : null,
    key ? el("kbd", { text: key, "aria-hidden": "true" }) : null,
  );
}

/** What a person types, with its label. */
export function entry(label, facts = {}, hint = "") {
  const id = facts.id ?? `entry-${(entry.count = (entry.count ?? 0) + 1)}`;
  const input = el(facts.rows ? "textarea" : "input", {
    id,
    ...facts,
    "aria-describedby": hint ? `${id}-hint` : null,
  });
  const whole = el(
    "div",
    { class: "entry" },
    el("label", { for: id, text: label }),
    input,
    hint ? el("p", { class: "hint", id: `${id}-hint`, text: hint }) : null,
  );
  return { whole, input };
}

const said = () => document.getElementById("said");
let turn = 0;

/** Tells a screen reader; the same sentence twice is said twice. */
export function say(text) {
  said().textContent = text + (turn++ % 2 ? "\u00a0" : "");
}

/** A quiet line at the top of the page: `note`, `warn` or `bad`. It stays until it is closed or replaced. */
export function notify(text, { kind = "note", id = "", actions = [], seconds = 0 } = {}) {
  const place = document.getElementById("notices");
  if (id) place.querySelector(`[data-id="${CSS.escape(id)}"]`)?.remove();
  const line = el(
    "div",
    { class: `notice ${kind}`, data: { id } },
    icon(kind === "note" ? "check" : "warn"),
    el("p", { text }),
    actions,
    button("", () => line.remove(), {
      icon: "close",
      kind: "plain icon-only",
      label: "Close this notice",
    }),
  );
  place.append(line);
  say(text);
  if (seconds) setTimeout(() => line.remove(), seconds * 1000);
  return line;
}

export function dismiss(id) {
  document.querySelector(`#notices [data-id="${CSS.escape(id)}"]`)?.remove();
}

/**
 * A modal dialog with a form. Resolves to the button's value, or "" when it was closed.
 * `check` may refuse: it returns a sentence, or nothing.
 */
export function ask(
  title,
  body,
  { yes = "OK", no = "Cancel", check = async () => "", wide = false, kind = "strong" } = {},
) {
  return new Promise((resolve) => {
    const wrong = el("p", { class: "wrong", role: "alert" });
    const before = document.activeElement;
    const form = el(
      "form",
      { method: "dialog", novalidate: true },
      el("h2", { id: "dialog-title", text: title, tabindex: wide ? -1 : null, autofocus: wide }), // a long text is read from its beginning
      body,
      wrong,
      el(
        "div",
        { class: "row end" },
        no ? button(no, () => dialog.close(""), {}) : null,
        yes ? el("button", { class: kind, type: "submit", text: yes }) : null,
      ),
    );
    const dialog = el(
      "dialog",
      { "aria-labelledby": "dialog-title", class: wide ? "wide" : "" },
      form,
    );
    let busy = false;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (busy) return;
      busy = true;
      const refusal = await check().catch((error) => error.message);
      busy = false;
      if (refusal) wrong.textContent = refusal;
      else dialog.close("yes");
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      before?.focus?.();
      resolve(dialog.returnValue);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A picture of the service; where there is none any more, a plain field in its place. */
export function picture(address, facts = {}) {
  const none = () => el("span", { class: "gone", text: "no image" });
  if (!address) return none();
  const image = el("img", { src: address, alt: "", ...facts });
  image.addEventListener("error", () => image.replaceWith(none()));
  return image;
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

export function percent(value, digits = 1) {
  return value === null || value === undefined ? "–" : `${Number(value).toFixed(digits)}`;
}

/** How likely something is, in whole percent: never certain, never impossible. */
export function likely(value) {
  const whole = Math.round(100 * (value ?? 0));
  if (whole >= 100) return ">\u00a099";
  return whole || !value ? String(whole) : "<\u00a01";
}

export function moment(iso) {
  const when = new Date(iso);
  return Number.isNaN(when.valueOf())
    ? iso
    : when.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}
