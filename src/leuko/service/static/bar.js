// Classes and commands as buttons: for the mouse, for touch, and to drop cells onto.

import { button, el } from "./elements.js";
import { UNIDENTIFIED } from "./reading.js";

const CELLS = "text/x-leuko-cells";

export function makeBar(review) {
  const { reading } = review;
  const target = (name, key, press, facts = {}) =>
    button(name, press, { key, kind: "target", "aria-keyshortcuts": key || null, ...facts });
  const undo = button("", () => review.undo(), {
    icon: "undo",
    kind: "icon-only",
    label: "Undo",
    title: "Undo (Z)",
  });
  const redo = button("", () => review.redo(), {
    icon: "redo",
    kind: "icon-only",
    label: "Redo",
    title: "Redo (Y)",
  });
  const classes = review.classes.map((name) =>
    target(name, (review.keys.get(name) ?? "").toUpperCase(), () => review.relabel(name), {
      "data-place": name,
    }),
  );
  const node = el(
    "div",
    { class: "bar", role: "toolbar", "aria-label": "What the chosen cells are" },
    el("div", { class: "group" }, classes),
    el(
      "div",
      { class: "group" },
      target("other …", "O", () => review.other()),
      target("unidentified", "U", () => review.relabel(null), { "data-place": UNIDENTIFIED }),
      target("no leukocyte", "Del", () => review.remove(), {
        "data-place": "deleted",
        "aria-keyshortcuts": "Delete",
      }),
      target("confirm", "Enter", () => review.confirm(), { icon: "check" }),
    ),
    el("div", { class: "group" }, undo, redo),
  );
  for (const one of node.querySelectorAll("[data-place]")) receive(review, one, one.dataset.place);
  const update = () => {
    node.hidden = review.view === "trail" || reading.signed;
    undo.disabled = !reading.undo;
    redo.disabled = !reading.redo;
  };
  update();
  return { node, update };
}

/** Says which cells a mouse carries. */
export function carry(event, ids) {
  event.dataTransfer.setData(CELLS, JSON.stringify(ids));
  event.dataTransfer.effectAllowed = "move";
}

/** Lets cells be dropped on a node: they then belong to that class. */
export function receive(review, node, place) {
  node.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes(CELLS) || review.reading.signed) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "move";
    node.classList.add("over");
  });
  node.addEventListener("dragleave", (event) => {
    if (!node.contains(event.relatedTarget)) node.classList.remove("over");
  });
  node.addEventListener("drop", (event) => {
    node.classList.remove("over");
    if (!event.dataTransfer.types.includes(CELLS)) return;
    event.preventDefault();
    review.move(JSON.parse(event.dataTransfer.getData(CELLS)), place);
  });
}
