// Who sits before the page. Kept in the browser, so that a name is typed once.

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
