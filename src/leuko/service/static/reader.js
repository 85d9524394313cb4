// Who sits before the page. Kept in the browser, so that a name is typed once.

import { ask, entry } from "./elements.js";

const KEY = "leuko.reader";
let name = "";
try {
  name = localStorage.getItem(KEY) ?? "";
} catch {
  // storage may be forbidden; the name then lasts as long as the page
}

export function getReader() {
  return name;
}

export function setReader(text) {
  name = text.trim();
  try {
    localStorage.setItem(KEY, name);
  } catch {
    // as above
  }
  window.dispatchEvent(new Event("reader"));
}

let asking = null;

/** Asks who sits here; resolves to the name, empty if none was given. Asked once, however many wait for it. */
export function askReader() {
  asking ??= askName().finally(() => {
    asking = null;
  });
  return asking;
}

async function askName() {
  const { whole, input } = entry(
    "Your name",
    { maxlength: 100, required: true, autocomplete: "name", value: name },
    "The trail names who made each change.",
  );
  const done = await ask("Who are you?", whole, {
    yes: "Go on",
    check: async () => (input.value.trim() ? "" : "A change needs the name of who makes it."),
  });
  if (!done) return "";
  setReader(input.value);
  return name;
}

let shortcuts = true;
try {
  shortcuts = localStorage.getItem("leuko.shortcuts") !== "off";
} catch {
  // as above
}

/** Single letters as commands can be switched off: who dictates would trigger them. */
export function hasShortcuts() {
  return shortcuts;
}

export function setShortcuts(on) {
  shortcuts = on;
  try {
    localStorage.setItem("leuko.shortcuts", on ? "on" : "off");
  } catch {
    // as above
  }
}
