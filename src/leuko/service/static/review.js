// The workplace of one reading: views of the same cells, one choice of cells, one set of commands,
// and the differential beside them.

import { ask, button, dismiss, el, entry, icon, notify, plural, put, say } from "./elements.js";
import { makeBar } from "./bar.js";
import { makeCellView } from "./cell.js";
import { makePanel } from "./differential.js";
import { makeFields } from "./fields.js";
import { makeGallery } from "./gallery.js";
import { setClassKeys } from "./keys.js";
import { askReader, getReader, hasShortcuts } from "./reader.js";
import {
  assignKeys,
  byDoubt,
  isDoubtful,
  isOpen,
  orderClasses,
  place,
  Reading,
  UNIDENTIFIED,
} from "./reading.js";
import { describeSigned, sign, amend } from "./signing.js";
import { makeTrail } from "./trail.js";

const VIEWS = [
  ["gallery", "Gallery", makeGallery],
  ["fields", "Fields", makeFields],
  ["cell", "Cell", makeCellView],
  ["trail", "Trail", makeTrail],
];

export async function openReview(work, sid, rid) {
  const review = new Review(work, sid, rid);
  await review.open();
  return () => review.close();
}

/** The cells of a conflict that the refused change was about, as they are now. */
function findWanted({ cells, wanted, error }) {
  const about = error.body.error.concerned ?? wanted.cells; // of undo: what it would have changed
  return cells.filter((cell) => about.includes(cell.id));
}

function describeConflict(detail) {
  const wanted = findWanted(detail);
  const now = wanted.map((cell) => (cell.deleted ? "no leukocyte" : (cell.label ?? UNIDENTIFIED)));
  const who = detail.by || "Somebody else";
  if (wanted.length === 0 || !detail.wanted.cells.length) return detail.error.message;
  if (wanted.length === 1)
    return `${who} changed this cell a moment ago: it is ${now[0]} now. Your change was not made; look again and decide.`;
  return `${who} changed some of these ${wanted.length} cells a moment ago: they are ${[...new Set(now)].join(", ")} now. Your change was not made; look again and decide.`;
}

/** Changes that wait when their page is left: they are still sent, and what isn't made is told. */
async function seeOff(reading) {
  const { name } = reading.slide;
  const id = `left-${reading.path}`;
  const refuse = (text) => notify(`${name}: ${text}`, { kind: "warn" });
  const hold = (event) => event.preventDefault();
  const wait = () =>
    notify(
      `${name}: ${plural(reading.waiting, "change")} still to be saved. Leave this window open until this line is gone.`,
      { kind: "warn", id },
    );
  wait();
  window.addEventListener("beforeunload", hold);
  reading.addEventListener("trouble", ({ detail }) => detail.waiting && wait());
  reading.addEventListener("conflict", ({ detail }) => refuse(describeConflict(detail)));
  reading.addEventListener("refused", ({ detail }) => refuse(detail.error.message));
  while (reading.waiting) await reading.queue;
  window.removeEventListener("beforeunload", hold);
  dismiss(id);
}

class Review {
  constructor(work, sid, rid) {
    this.work = work;
    this.reading = new Reading(sid, rid);
    this.chosen = new Set();
    this.focused = null;
    this.leaving = new Set(); // cells whose change is on its way
    this.views = new Map();
    this.heard = [];
  }

  async open() {
    const { reading, work } = this;
    await reading.load();
    if (!work.isConnected) return; // somebody has gone on to another page
    this.name();
    work.className = "room bench";
    this.stage = el("div", { class: "stage" });
    this.panel = makePanel(this);
    work.append(this.stage, this.panel.node);
    for (const [name, , make] of VIEWS) this.views.set(name, make(this));
    this.stage.append(...[...this.views.values()].map((view) => view.node));
    this.bar = makeBar(this);
    this.stage.append(this.bar.node);
    this.focused = this.first();
    this.listen();
    this.refresh();
    this.follow();
    reading.watch();
  }

  /** The classes: the model's, and what persons wrote beside them. */
  name() {
    const own = new Set(this.reading.slide.classes);
    for (const cell of this.reading.cells.values()) if (cell.label) own.add(cell.label);
    if (this.classes?.length === own.size) return false;
    this.classes = orderClasses([...own]);
    this.keys = assignKeys(this.classes);
    setClassKeys(
      new Map(
        this.classes
          .filter((name) => this.keys.has(name))
          .map((name) => [name, this.keys.get(name)]),
      ),
    );
    return true;
  }

  close() {
    this.reading.stop();
    setClassKeys(new Map());
    for (const [target, name, heard] of this.heard) target.removeEventListener(name, heard);
    for (const view of this.views.values()) view.close?.();
    if (this.reading.waiting) seeOff(this.reading);
  }

  hear(target, name, heard) {
    target.addEventListener(name, heard);
    this.heard.push([target, name, heard]);
  }

  listen() {
    const { reading } = this;
    this.hear(window, "hashchange", () => this.follow());
    this.hear(window, "beforeunload", (event) => {
      if (reading.waiting) event.preventDefault(); // a change is still on its way
    });
    this.hear(document, "keydown", (event) => this.press(event));
    this.hear(reading, "cells", ({ detail }) => {
      for (const id of this.chosen) if (!reading.cells.has(id)) this.chosen.delete(id);
      if (!reading.cells.has(this.focused)) this.focused = this.first();
      if (this.name()) {
        const bar = makeBar(this);
        this.bar.node.replaceWith(bar.node);
        this.bar = bar;
      }
      for (const view of this.views.values()) view.update(detail.ids);
      if (!detail.mine && detail.ids.length < 50) {
        this.views.get("gallery").flash(detail.ids);
        say(`${detail.by || "Another page"} changed ${plural(detail.ids.length, "cell")}.`);
      }
    });
    this.hear(reading, "fields", () => this.views.get("fields").refill());
    this.hear(reading, "state", () => this.refresh());
    this.hear(reading, "differential", () => this.panel.update());
    this.hear(reading, "refused", ({ detail }) =>
      notify(detail.error.message, { kind: "bad", id: "refused" }),
    );
    this.hear(reading, "trouble", ({ detail }) => {
      if (detail.waiting)
        notify("The service doesn't answer. What isn't saved yet waits and is tried again.", {
          kind: "warn",
          id: "trouble",
        });
      else dismiss("trouble");
    });
    this.hear(reading, "conflict", ({ detail }) => {
      const wanted = findWanted(detail);
      notify(describeConflict(detail), { kind: "warn", id: "conflict" });
      this.choose(wanted.length > 1 ? wanted.map((cell) => cell.id) : []);
      if (wanted[0]) this.focus(wanted[0].id);
    });
  }

  /** Shows the view that the address names. */
  follow() {
    const found = location.hash.match(/^#\/slides\/[^/]+\/[^/]+\/(\w+)(?:\/([^/]+))?$/);
    if (!found) return;
    const [, name, id] = found;
    if (id && this.reading.cells.has(Number(id))) this.focused = Number(id);
    this.view = name;
    for (const [other, view] of this.views) view.node.hidden = other !== name;
    this.refresh();
    this.views.get(name).show();
  }

  go(name, id = "") {
    const base = `#/slides/${this.reading.slideId}/${this.reading.id}/${name}`;
    location.hash = id ? `${base}/${id}` : base;
  }

  refresh() {
    const { reading } = this;
    document.title = `${reading.slide.name} · ${VIEWS.find(([name]) => name === this.view)?.[1] ?? "Slide"} · Leuko`;
    const where = document.getElementById("where");
    put(
      where,
      el(
        "a",
        { href: "#/", class: "up", "aria-label": "All slides", title: "All slides" },
        icon("back"),
      ),
      el("h1", { class: "name", text: reading.slide.name }),
      el(
        "span",
        { class: `state ${reading.state}` },
        icon(reading.signed ? "lock" : "pen"),
        el("span", { class: "who", text: reading.reader || "first reading" }),
        reading.version > 1
          ? el("span", { class: "version", text: `· version ${reading.version}` })
          : null,
      ),
    );
    const views = document.getElementById("views");
    views.hidden = false;
    if (!views.children.length) {
      const icons = { gallery: "gallery", fields: "field", cell: "cell", trail: "trail" };
      views.append(
        ...VIEWS.map(([name, title], at) =>
          el(
            "a",
            {
              href: `#/slides/${reading.slideId}/${reading.id}/${name}`,
              data: { view: name },
              title: `${title} (${at + 1})`,
            },
            icon(icons[name]),
            el("span", { text: title }),
          ),
        ),
      );
    }
    for (const link of views.children) {
      if (link.dataset.view === this.view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    this.bar.update();
    this.panel.update();
  }

  // --- which cells -----------------------------------------------------------------------------

  cell(id = this.focused) {
    return this.reading.cells.get(id);
  }

  /** All cells that wait for a person, the most doubtful first. */
  list() {
    return [...this.reading.cells.values()]
      .filter(isOpen)
      .sort((a, b) => isDoubtful(b) - isDoubtful(a) || byDoubt(a, b));
  }

  /** Where the keyboard begins; when no cell waits any more, at one of the others. */
  first() {
    return (this.list()[0] ?? [...this.reading.cells.values()][0])?.id ?? null;
  }

  targets() {
    if (this.chosen.size) return [...this.chosen];
    return this.focused === null ? [] : [this.focused];
  }

  choose(ids) {
    this.chosen = new Set(ids);
    for (const view of this.views.values()) view.mark?.();
  }

  focus(id, { quiet = false } = {}) {
    if (id === null || id === undefined || !this.reading.cells.has(id)) return;
    this.focused = id;
    this.views.get(this.view)?.focus?.(id, quiet);
    if (this.view === "cell")
      history.replaceState(
        null,
        "",
        `#/slides/${this.reading.slideId}/${this.reading.id}/cell/${id}`,
      );
  }

  step(by) {
    const waiting = this.list();
    if (!waiting.length) {
      say("No cell waits any more.");
      return;
    }
    const at = waiting.findIndex((cell) => cell.id === this.focused);
    let next = at + by;
    if (at < 0) {
      // A reviewed cell has the focus: go on where it would stand.
      const here = this.cell();
      next = here ? waiting.findIndex((cell) => byDoubt(cell, here) > 0) : 0;
      if (next < 0) next = 0;
    }
    this.choose([]);
    this.focus(waiting[(next + waiting.length) % waiting.length].id);
  }

  /** The cell that comes when these have gone: the next of the same group, else the next that waits. */
  after(ids) {
    const gone = new Set([...ids, ...this.leaving]);
    const here = this.cell(ids[0]);
    const waiting = this.list().filter((cell) => !gone.has(cell.id));
    if (this.view === "fields")
      return waiting.find((cell) => cell.field === here?.field)?.id ?? ids[0];
    if (this.view === "cell") return waiting[0]?.id ?? ids[0];
    const group = here ? this.views.get("gallery").order(place(here)) : [];
    const at = group.indexOf(ids[ids.length - 1]);
    const behind = group.slice(at + 1).find((id) => !gone.has(id));
    const before = group.slice(0, at).find((id) => !gone.has(id) && isOpen(this.cell(id)));
    return behind ?? before ?? waiting[0]?.id ?? ids[0];
  }

  // --- commands --------------------------------------------------------------------------------

  async make(kind, ids, facts = {}, text = "") {
    if (this.reading.signed) {
      notify("This reading is signed. To change something, begin a new version.", {
        kind: "warn",
        id: "signed",
        actions: [button("New version", () => amend(this))],
      });
      return null;
    }
    if (!ids.length && kind !== "add") return null;
    const next =
      ids.length && ["label", "confirm", "delete"].includes(kind) ? this.after(ids) : null;
    // The next cell comes at once: who types fast mustn't hit the same one twice.
    dismiss("conflict");
    dismiss("refused");
    this.choose([]);
    for (const id of ids) this.leaving.add(id);
    if (next !== null) this.focus(next);
    const cells = await this.reading.change(
      kind,
      { cells: ids, ...facts },
      getReader() || askReader(),
    );
    for (const id of ids) this.leaving.delete(id);
    if (!cells) return null;
    say(text);
    return cells;
  }

  relabel(label, ids = this.targets()) {
    const gone = ids.filter((id) => this.cell(id)?.deleted);
    if (gone.length) this.make("restore", gone, {}, `${plural(gone.length, "cell")} brought back`);
    return this.make(
      "label",
      ids,
      { label },
      `${plural(ids.length, "cell")}: ${label ?? UNIDENTIFIED}`,
    );
  }

  /** A class that the model doesn't know: blasts, smudge cells. */
  async other() {
    const ids = this.targets();
    if (!ids.length || this.reading.signed) return;
    const { whole, input } = entry(
      "What is it?",
      { maxlength: 100, required: true, autocomplete: "off" },
      "A class that the model doesn't know. It is counted as you write it.",
    );
    const done = await ask(`Another class for ${plural(ids.length, "cell")}`, whole, {
      yes: "Move there",
      check: async () => (input.value.trim() ? "" : "A class needs a name."),
    });
    if (done) await this.relabel(input.value.trim(), ids);
  }

  confirm(ids = this.targets()) {
    const open = ids.filter((id) => !this.cell(id)?.deleted && this.cell(id)?.label);
    if (ids.length && !open.length) say("It has no class yet: press a letter.");
    return this.make("confirm", open, {}, `${plural(open.length, "cell")} confirmed`);
  }

  remove(ids = this.targets()) {
    const back = ids.every((id) => this.cell(id)?.deleted);
    return this.make(
      back ? "restore" : "delete",
      ids,
      {},
      back
        ? `${plural(ids.length, "cell")} brought back`
        : `${plural(ids.length, "cell")}: no leukocyte`,
    );
  }

  move(ids, where) {
    if (where === "deleted") return this.remove(ids.filter((id) => !this.cell(id)?.deleted));
    if (where === UNIDENTIFIED) return this.relabel(null, ids);
    if (this.classes.includes(where)) return this.relabel(where, ids);
    return null;
  }

  sure() {
    return [...this.reading.cells.values()]
      .filter((cell) => isOpen(cell) && !isDoubtful(cell))
      .map((cell) => cell.id);
  }

  confirmSure() {
    return this.confirm(this.sure());
  }

  confirmGroup() {
    const here = this.cell();
    if (!here) return null;
    if (isDoubtful(here)) {
      say("Doubtful cells are confirmed one by one, or chosen first.");
      return null;
    }
    return this.confirm(
      this.views
        .get("gallery")
        .order(place(here))
        .filter((id) => isOpen(this.cell(id))),
    );
  }

  async turn(kind) {
    await this.reading.queue; // the change that is on its way is the one to be undone
    const change = this.reading[kind];
    if (!change || this.reading.signed) return;
    const cells = await this.reading.change(kind, { change }, getReader() || askReader());
    if (!cells) return;
    say(kind === "undo" ? "Undone" : "Done again");
    this.choose([]);
    const shown = cells.find((cell) => this.reading.cells.has(cell.id));
    if (shown) this.focus(shown.id);
  }

  undo() {
    return this.turn("undo");
  }

  redo() {
    return this.turn("redo");
  }

  // --- keys ------------------------------------------------------------------------------------

  /** Keys count while the cells (or nothing) have the focus, never while a person types. */
  press(event) {
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const at = event.target;
    if (at.closest?.("input, textarea, select, dialog")) return;
    const free = at === document.body || this.stage.contains(at) || at.id === "work";
    const { key } = event;
    const many = event.ctrlKey || event.metaKey;
    if (!free || event.altKey) return;
    const done = () => event.preventDefault();
    if (this.views.get(this.view)?.press?.(event)) return done();
    const pressing = at.closest?.("button, a, summary");
    const view = many || !hasShortcuts() ? undefined : VIEWS[Number(key) - 1];
    if (view) return (done(), this.go(view[0], view[0] === "cell" ? this.focused : ""));
    if (this.view === "trail") return undefined;
    if (many) {
      if (key === "Enter") return (done(), this.confirmSure());
      if (key === "z" && !event.shiftKey) return (done(), this.undo());
      if (key === "y" || (key.toLowerCase() === "z" && event.shiftKey))
        return (done(), this.redo());
      return undefined;
    }
    if (key === "Enter" && !pressing)
      return (done(), event.shiftKey ? this.confirmGroup() : this.confirm());
    if (key === "Delete" || key === "Backspace") return (done(), this.remove());
    if (key === "Escape" && this.chosen.size) return (done(), this.choose([]));
    if (key.length !== 1 || !hasShortcuts()) return undefined;
    if (key === ".") return (done(), this.step(1));
    if (key === ",") return (done(), this.step(-1));
    const letter = key.toLowerCase();
    if (letter === "u") return (done(), this.relabel(null));
    if (letter === "o") return (done(), this.other());
    if (letter === "z") return (done(), this.undo());
    if (letter === "y") return (done(), this.redo());
    for (const [name, own] of this.keys) if (own === letter) return (done(), this.relabel(name));
    return undefined;
  }

  sign() {
    return sign(this);
  }

  amend() {
    return amend(this);
  }

  signedText() {
    return describeSigned(this.reading);
  }
}
