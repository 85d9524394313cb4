// The images with their boxes: zoom and move; choose a box; add a missed cell; split a joined one.
// Whatever can be drawn with a mouse can be placed with a click or with keys too.

import { button, el, icon, likely, picture, plural, put, say, svg } from "./elements.js";
import { findUsualSide, Placing } from "./placing.js";
import { isDoubtful, place, UNIDENTIFIED } from "./reading.js";

const NEAREST = 12; // times

export function makeFields(review) {
  const { reading } = review;
  const strip = el("ul", { class: "strip", "aria-label": "Fields" });
  const canvas = svg("svg", { class: "canvas", tabindex: 0, role: "group" });
  const whole = svg("image", { x: 0, y: 0 });
  const boxes = svg("g");
  const ghosts = svg("g", { class: "ghosts" });
  canvas.append(whole, boxes, ghosts);
  const caption = el("p", { class: "hint caption" });
  const gone = el("p", {
    class: "hint gone-note",
    text: "The image was deleted after signing; the boxes remain.",
    hidden: true,
  });
  const note = el("p", { class: "mode", role: "status" });
  const adds = button("Add a cell", () => begin("add"), { icon: "box" });
  const splits = button("Split", () => begin("split"), { icon: "split" });
  const turns = button("Turn", () => turn(), { icon: "turn" });
  const places = button("Place", () => commit(), { icon: "check", kind: "strong", key: "Enter" });
  const leaves = button("Leave", () => leave(), { key: "Esc" });
  const tools = el(
    "div",
    { class: "row tools-of-field", role: "toolbar", "aria-label": "Field" },
    button("", () => zoom(1 / 1.4), {
      icon: "minus",
      kind: "icon-only",
      label: "Farther",
      title: "Farther (−)",
    }),
    button("", () => fit(), {
      icon: "fit",
      kind: "icon-only",
      label: "Whole field",
      title: "Whole field (0)",
    }),
    button("", () => zoom(1.4), {
      icon: "add",
      kind: "icon-only",
      label: "Nearer",
      title: "Nearer (+)",
    }),
    adds,
    splits,
    turns,
    places,
    leaves,
  );
  const node = el(
    "section",
    { class: "view fields-view", hidden: true, "aria-label": "Fields" },
    strip,
    el("div", { class: "one-field" }, tools, note, canvas, gone, caption),
  );

  let field = null; // the one that is shown
  let view = null; // what of it: x, y, w, h in px of the image
  let placing = null; // boxes on their way
  let committing = false;

  const fields = () => reading.slide.fields;
  const cellsOf = (id) => [...reading.cells.values()].filter((cell) => cell.field === id);

  // --- the strip -------------------------------------------------------------------------------

  function refill() {
    put(
      strip,
      ...fields().map((one) => {
        if (one.set_aside) {
          return el(
            "li",
            { class: "aside" },
            icon("warn"),
            el("span", { class: "file", text: one.name }),
            el("span", { class: "hint", text: one.set_aside.detail || one.set_aside.reason }),
          );
        }
        const image = picture(reading.image(one.id, 160), {
          loading: "lazy",
          width: 72,
          height: 54,
        });
        const choose = el(
          "button",
          { type: "button", data: { field: one.id }, on: { click: () => open(one.id) } },
          image,
          el("span", { class: "file", text: one.name }),
          el("span", { class: "hint" }),
        );
        return el("li", {}, choose);
      }),
    );
    if (!reading.signed)
      strip.append(
        el(
          "li",
          { class: "more" },
          el(
            "a",
            { class: "button small", href: `#/slides/${reading.slideId}/images/${reading.id}` },
            icon("images"),
            el("span", { text: "Add images" }),
          ),
        ),
      );
    countStrip();
  }

  function countStrip() {
    for (const one of strip.querySelectorAll("button")) {
      const id = Number(one.dataset.field);
      const cells = cellsOf(id).filter((cell) => !cell.deleted);
      const doubtful = cells.filter(isDoubtful).length;
      one.querySelector(".hint").textContent =
        `${plural(cells.length, "cell")}${doubtful ? ` · ${doubtful} doubtful` : ""}`;
      if (id === field?.id) one.setAttribute("aria-current", "true");
      else one.removeAttribute("aria-current");
    }
  }

  // --- the picture -----------------------------------------------------------------------------

  function open(id) {
    const found = fields().find((one) => one.id === id && !one.set_aside);
    if (!found) return;
    const other = field?.id !== found.id;
    field = found;
    if (other) {
      leave();
      const there = reading.image(id);
      gone.hidden = Boolean(there);
      whole.style.display = there ? "" : "none";
      if (there) whole.setAttribute("href", there);
      whole.setAttribute("width", field.width);
      whole.setAttribute("height", field.height);
      fit();
    }
    caption.textContent = `${field.name} · ${field.width} × ${field.height} px`;
    canvas.setAttribute("aria-label", `Field ${field.name}`);
    draw();
    countStrip();
    strip
      .querySelector('[aria-current="true"]')
      ?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  whole.addEventListener("error", () => {
    gone.hidden = false;
    whole.style.display = "none";
  });

  function look() {
    canvas.setAttribute("viewBox", `${view.x} ${view.y} ${view.w} ${view.h}`);
    canvas.style.aspectRatio = `${field.width} / ${field.height}`;
    canvas.classList.toggle("whole", view.w >= field.width); // a finger on it then scrolls the page
  }

  function fit() {
    if (!field) return;
    view = { x: 0, y: 0, w: field.width, h: field.height };
    look();
    scaleTexts();
  }

  function zoom(by, at = { x: view.x + view.w / 2, y: view.y + view.h / 2 }) {
    const times = Math.min(NEAREST, Math.max(1, (field.width / view.w) * by));
    const [w, h] = [field.width / times, field.height / times];
    view = {
      x: at.x - ((at.x - view.x) * w) / view.w,
      y: at.y - ((at.y - view.y) * h) / view.h,
      w,
      h,
    };
    hold();
  }

  function pan(dx, dy) {
    view = { ...view, x: view.x + dx, y: view.y + dy };
    hold();
  }

  /** The picture never leaves its frame. */
  function hold() {
    view.x = Math.min(Math.max(view.x, 0), field.width - view.w);
    view.y = Math.min(Math.max(view.y, 0), field.height - view.h);
    look();
    scaleTexts();
  }

  /** Names stay as large on the screen as they are, however near. */
  function scaleTexts() {
    const unit = view.w / (canvas.clientWidth || 800);
    for (const text of boxes.querySelectorAll("text")) text.setAttribute("font-size", 13 * unit);
  }

  function draw() {
    if (!field) return;
    const held = document.activeElement?.closest?.("g.box")?.dataset.id;
    put(
      boxes,
      ...cellsOf(field.id)
        .filter((cell) => !cell.deleted || cell.id === review.focused)
        .map(drawBox),
    );
    scaleTexts();
    if (held) boxes.querySelector(`[data-id="${held}"]`)?.focus();
    splits.disabled = reading.signed || review.cell()?.field !== field.id || review.cell()?.deleted;
    adds.disabled = reading.signed;
  }

  function drawBox(cell) {
    const [x0, y0, x1, y1] = cell.box;
    const name =
      { deleted: "no leukocyte", [UNIDENTIFIED]: `${cell.label ?? "?"} ?` }[place(cell)] ??
      cell.label ??
      "rejected";
    const state = cell.deleted ? "deleted" : cell.state;
    const group = svg(
      "g",
      {
        class: `box ${state}`,
        tabindex: 0,
        role: "button",
        "aria-pressed": cell.id === review.focused ? "true" : "false",
        "aria-label": `${name}, ${state}, machine ${cell.machine.label ?? "nothing"} ${likely(cell.machine.probability)} percent`,
        data: { id: cell.id },
      },
      svg("rect", { class: "halo", x: x0, y: y0, width: x1 - x0, height: y1 - y0, rx: 3 }),
      svg("rect", { class: "line", x: x0, y: y0, width: x1 - x0, height: y1 - y0, rx: 3 }),
      svg("text", { x: x0 + 2, y: Math.max(y0 - 4, 12), text: name }),
    );
    const choose = () => {
      review.focused = cell.id;
      for (const other of boxes.children)
        other.setAttribute("aria-pressed", other === group ? "true" : "false");
      splits.disabled = reading.signed || cell.deleted;
    };
    group.addEventListener("focus", choose);
    group.addEventListener("click", choose);
    group.addEventListener("dblclick", () => review.go("cell", cell.id));
    return group;
  }

  // --- adding and splitting --------------------------------------------------------------------

  function begin(kind) {
    if (!field || reading.signed) return;
    const cell = review.cell();
    if (kind === "split" && (cell?.field !== field.id || cell.deleted)) return;
    if (kind === "add") {
      const boxes = [...reading.cells.values()].map((one) => one.box);
      const side = findUsualSide(boxes, Math.min(field.width, field.height) / 5);
      placing = Placing.add(view.x + view.w / 2, view.y + view.h / 2, side);
    } else placing = Placing.split(cell.box);
    note.textContent =
      kind === "add"
        ? "Draw a box round the cell, or click where it is; arrows move the box, Shift and arrows change its size, Enter places it."
        : "Two cells instead of one: arrows move the border, Turn lays it the other way, or draw both boxes; Enter places them.";
    say(note.textContent);
    show();
    canvas.focus();
  }

  function show() {
    for (const one of [places, leaves, note]) one.hidden = !placing;
    turns.hidden = placing?.kind !== "split";
    canvas.classList.toggle("placing", Boolean(placing));
    put(
      ghosts,
      (placing?.boxes ?? []).map(([x0, y0, x1, y1]) =>
        svg("rect", {
          x: x0,
          y: y0,
          width: Math.max(x1 - x0, 1),
          height: Math.max(y1 - y0, 1),
          rx: 3,
        }),
      ),
    );
  }

  function leave() {
    placing = null;
    show();
  }

  function turn() {
    placing.turn();
    show();
    canvas.focus();
  }

  async function commit() {
    if (committing) return; // Enter was pressed twice
    committing = true;
    const known = new Set(reading.cells.keys());
    const boxes = placing.clip(field);
    const cells =
      placing.kind === "add"
        ? await review.make("add", [], { field: field.id, box: boxes[0] }, "Cell added")
        : await review.make("split", [review.focused], { boxes }, "Cell split");
    committing = false;
    if (!cells) return;
    leave();
    const made = cells.find((cell) => !known.has(cell.id));
    if (made) review.focus(made.id);
  }

  // --- pointer and wheel -----------------------------------------------------------------------

  const spot = (event) =>
    new DOMPoint(event.clientX, event.clientY).matrixTransform(canvas.getScreenCTM().inverse());

  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!field || (event.deltaY > 0 && view.w >= field.width)) return; // nothing farther: the page scrolls
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 400), spot(event));
    },
    { passive: false },
  );

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !field) return;
    const from = spot(event);
    const screen = [event.clientX, event.clientY];
    const start = { ...view };
    let moved = false;
    const move = (now) => {
      if (!moved && Math.abs(now.clientX - screen[0]) + Math.abs(now.clientY - screen[1]) < 5)
        return;
      moved = true;
      if (placing) {
        placing.draw(from, spot(now));
        show();
      } else {
        const unit = start.w / canvas.clientWidth;
        view = {
          ...start,
          x: start.x - (now.clientX - screen[0]) * unit,
          y: start.y - (now.clientY - screen[1]) * unit,
        };
        hold();
      }
    };
    const up = (now) => {
      canvas.removeEventListener("pointermove", move);
      if (now.type === "pointercancel") return;
      if (!placing) return;
      if (moved) placing.draw(from, spot(now), true);
      else placing.moveTo(from.x, from.y);
      show();
      if (moved && placing.kind === "add") commit();
    };
    if (placing || !event.target.closest("g.box")) {
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
    }
    canvas.addEventListener("pointermove", move);
    canvas.addEventListener("pointerup", up, { once: true });
    canvas.addEventListener("pointercancel", up, { once: true });
  });

  // --- keys ------------------------------------------------------------------------------------

  function press(event) {
    const { key } = event;
    if (!field || event.ctrlKey || event.metaKey) return false;
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[
      key
    ];
    if (placing) {
      const pressing = event.target.closest?.("button");
      if (key === "Escape") return (leave(), true);
      if (key === "Enter" && !pressing) return (commit(), true);
      if (step) {
        const far = view.w / 80;
        placing.shift(step[0] * far, step[1] * far * (event.shiftKey ? -1 : 1), event.shiftKey);
        show();
        return true;
      }
      return false;
    }
    if (step) return (pan((step[0] * view.w) / 10, (step[1] * view.h) / 10), true);
    if (key === "+" || key === "=") return (zoom(1.4), true);
    if (key === "-") return (zoom(1 / 1.4), true);
    if (key === "0") return (fit(), true);
    if (key === "PageDown" || key === "PageUp") {
      const there = fields().filter((one) => !one.set_aside);
      const at = there.findIndex((one) => one.id === field.id) + (key === "PageDown" ? 1 : -1);
      if (there[at]) open(there[at].id);
      return true;
    }
    return false;
  }

  leave();
  refill();
  return {
    node,
    press,
    refill,
    show() {
      const id = review.cell()?.field ?? field?.id ?? fields().find((one) => !one.set_aside)?.id;
      if (id === undefined) {
        caption.textContent = "There is no field on this slide yet.";
        return;
      }
      open(id);
      look();
      scaleTexts();
      const chosen = boxes.querySelector(`[data-id="${review.focused}"]`);
      if (!document.activeElement?.closest?.("#views, dialog"))
        (chosen ?? canvas).focus({ preventScroll: true });
    },
    focus(id) {
      open(reading.cells.get(id).field);
      boxes.querySelector(`[data-id="${id}"]`)?.focus({ preventScroll: true });
    },
    update() {
      countStrip();
      if (!node.hidden) draw();
    },
    close() {},
  };
}
