// What every key does: one table, for the help on the page and for its handlers' readers.

import { el } from "./elements.js";

let classKeys = new Map();

/** Which letter stands for which class on the slide that is open. */
export function setClassKeys(keys) {
  classKeys = keys;
}

const GROUPS = [
  [
    "On cells",
    [
      ["a letter", "move to that class; the next cell comes"],
      ["O", "another class, in your words"],
      ["U", "unidentified"],
      ["Enter", "confirm"],
      ["Delete", "no leukocyte (again: it is one after all)"],
      ["Z  ·  Y", "undo  ·  redo"],
      ["Shift Enter", "confirm the whole class"],
      ["Ctrl Enter", "confirm all that the machine is sure of"],
    ],
  ],
  [
    "Moving about",
    [
      [".  ·  ,", "next  ·  previous cell that waits, the most doubtful first"],
      ["Arrows", "next cell in that direction"],
      ["Home  ·  End", "first  ·  last cell of the group"],
      ["1  2  3  4", "gallery, fields, cell, trail"],
      ["?", "this help"],
    ],
  ],
  [
    "Choosing many",
    [
      ["Space", "choose or leave out"],
      ["Shift arrows", "choose as you go"],
      ["Ctrl A", "choose the group"],
      ["Esc", "choose none"],
      ["Mouse", "Ctrl and Shift click; or draw a frame round them; then drag onto a class"],
      ["Finger", "rest on a cell, then touch others"],
    ],
  ],
  [
    "In a field",
    [
      ["+  ·  −  ·  0", "nearer, farther, whole field"],
      ["Arrows", "move the picture, or the box that you are placing"],
      ["Shift arrows", "make that box larger or smaller"],
      ["Page down  ·  up", "next  ·  previous field"],
      ["Enter  ·  Esc", "place the box  ·  leave it"],
    ],
  ],
];

export function describeKeys() {
  const letters = [...classKeys].map(([name, key]) => [key.toUpperCase(), name]);
  const groups = letters.length ? [["Classes of this slide", letters], ...GROUPS] : GROUPS;
  return el(
    "div",
    { class: "keys" },
    groups.map(([title, rows]) =>
      el(
        "section",
        {},
        el("h3", { text: title }),
        el(
          "dl",
          {},
          rows.map(([keys, what]) =>
            el(
              "div",
              {},
              el(
                "dt",
                {},
                keys.split("  ").map((key) => (key === "·" ? " · " : el("kbd", { text: key }))),
              ),
              el("dd", { text: what }),
            ),
          ),
        ),
      ),
    ),
  );
}
