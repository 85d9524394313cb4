// Cells by class, the most doubtful first; many can be chosen and moved at once.

import { carry, receive } from "./bar.js";
import { button, el, likely, picture, plural } from "./elements.js";
import { byDoubt, certainty, isOpen, place, REJECTED, REVIEWED, UNIDENTIFIED } from "./reading.js";

const SIZE = 168; // px asked for; shown at half on screens of two pixels per point

export function makeGallery(review) {
  const { reading } = review;
  const node = el("div", { class: "gallery view" });
  const tiles = new Map();
  const groups = new Map();

  const titles = new Map([
    [
      UNIDENTIFIED,
      ["Unidentified", "The machine doubts. Enter takes its suggestion, a letter another class."],
    ],
    [REJECTED, ["Rejected by the machine", "Unlike anything it knows; a person decides."]],
    ["deleted", ["No leukocyte", "Taken out of the count; a letter or Delete brings one back."]],
  ]);

  const addGroup = (name, before = null) => {
    const [title, hint] = titles.get(name) ?? [name, ""];
    const note = el("p", { class: "hint", text: hint });
    const id = `group-${groups.size}`;
    const count = el("span", { class: "count" });
    const waits = el("span", { class: "waits" });
    const all = button(
      "Confirm",
      () => review.confirm(order(name).filter((one) => isOpen(review.cell(one)))),
      { icon: "check", kind: "small quiet-button", title: "Shift Enter" },
    );
    const list = el("div", {
      class: "tiles",
      role: "listbox",
      "aria-multiselectable": "true",
      "aria-labelledby": id,
    });
    const key = review.keys.get(name);
    const section = el(
      "section",
      { class: `group ${titles.has(name) ? name : "class"}`, data: { place: name } },
      el(
        "div",
        { class: "head" },
        el(
          "h2",
          { id },
          el("span", { text: title }),
          key ? el("kbd", { text: key.toUpperCase(), "aria-hidden": "true" }) : null,
        ),
        count,
        waits,
        hint ? note : null,
        all,
      ),
      list,
    );
    receive(review, section, name);
    node.insertBefore(section, before);
    groups.set(name, { section, list, count, waits, all, note, hint });
  };
  for (const name of [UNIDENTIFIED, REJECTED, ...review.classes, "deleted"]) addGroup(name);

  /** Ids of one group in the order in which they are shown. */
  function order(name) {
    return [...reading.cells.values()]
      .filter((cell) => place(cell) === name)
      .sort(byDoubt)
      .map((cell) => cell.id);
  }

  /** All ids from top to bottom. */
  const everything = () =>
    [...node.querySelectorAll(".tile")].map((tile) => Number(tile.dataset.id));

  function drawTile(cell) {
    let tile = tiles.get(cell.id);
    if (!tile) {
      const image = picture(reading.portrait(cell.id, SIZE), {
        loading: "lazy",
        decoding: "async",
        draggable: "false",
        width: 84,
        height: 84,
      });
      tile = el(
        "div",
        {
          class: "tile",
          role: "option",
          id: `tile-${cell.id}`,
          tabindex: -1,
          draggable: "true",
          data: { id: cell.id },
        },
        image,
        el("span", { class: "mark" }),
        el("span", { class: "caption" }),
      );
      tiles.set(cell.id, tile);
    }
    const state = cell.deleted ? "deleted" : cell.state;
    tile.dataset.state = state;
    const moved = cell.machine?.label && cell.label && cell.label !== cell.machine.label;
    tile.classList.toggle("moved", Boolean(moved));
    const mark = tile.querySelector(".mark");
    mark.className = `mark ${state === REVIEWED ? "is-done" : state === UNIDENTIFIED || state === REJECTED ? "is-doubt" : ""}`;
    const sure = likely(certainty(cell));
    const named = cell.label ?? UNIDENTIFIED;
    const opinions = reading.arbitrates?.length && isOpen(cell) && cell.reason ? [cell.reason] : []; // who said what
    tile.querySelector(".caption").textContent = opinions.length
      ? opinions[0]
      : `${cell.machine?.label ?? named} ${likely(cell.machine?.probability)}\u00a0%`;
    const parts = [named, `${sure} percent`, state];
    if (moved) parts.push(`the machine said ${cell.machine.label}`);
    if (cell.machine?.reason && isOpen(cell)) parts.push(cell.machine.reason);
    tile.setAttribute("aria-label", [...parts, ...opinions].join(", "));
    tile.title = [
      `${named}, machine: ${cell.machine?.label ?? "none"} ${likely(cell.machine?.probability)} %`,
      cell.machine?.reason,
      ...opinions,
    ]
      .filter(Boolean)
      .join("\n");
    return tile;
  }

  function arrange() {
    for (const name of review.classes)
      if (!groups.has(name)) addGroup(name, groups.get("deleted").section);
    const held = document.activeElement?.closest?.(".tile")?.dataset.id;
    for (const [name, group] of groups) {
      const ids = order(name);
      ids.forEach((id, at) => {
        const tile = tiles.get(id) ?? drawTile(reading.cells.get(id));
        if (group.list.children[at] !== tile)
          group.list.insertBefore(tile, group.list.children[at] ?? null);
      });
      while (group.list.children.length > ids.length) group.list.lastChild.remove();
      const waiting = ids.filter((id) => isOpen(reading.cells.get(id))).length;
      group.count.textContent = ids.length;
      group.count.setAttribute("aria-label", plural(ids.length, "cell"));
      group.waits.textContent =
        waiting && !titles.has(name) && !reading.signed ? `${waiting} to confirm` : "";
      group.note.textContent =
        reading.signed && name !== "deleted" ? "Left out of the count." : group.hint;
      const confirmable = ids.filter(
        (id) => isOpen(reading.cells.get(id)) && reading.cells.get(id).label,
      ).length;
      group.all.hidden = reading.signed || !confirmable || titles.has(name); // doubtful ones want a look each
      group.all.querySelector("span:last-child").textContent = `Confirm ${confirmable}`;
      group.section.classList.toggle("empty", !ids.length);
      group.section.hidden =
        !ids.length &&
        (name === REJECTED || name === "deleted" || (name === UNIDENTIFIED && reading.signed));
      group.list.hidden = !ids.length;
    }
    for (const [id, tile] of tiles) {
      if (!reading.cells.has(id)) {
        tile.remove();
        tiles.delete(id);
      }
    }
    mark();
    if (held && document.activeElement === document.body)
      tiles.get(Number(held))?.focus({ preventScroll: true });
  }

  /** Shows which are chosen and which has the focus. */
  function mark() {
    for (const [id, tile] of tiles) {
      tile.setAttribute("aria-selected", review.chosen.has(id) ? "true" : "false");
      tile.tabIndex = id === review.focused ? 0 : -1;
    }
  }

  let anchor = null;
  const toggle = (id) => {
    const chosen = new Set(review.chosen);
    if (!chosen.delete(id)) chosen.add(id);
    anchor = id;
    review.choose(chosen);
  };
  const extend = (id) => {
    const all = everything();
    const [from, to] = [all.indexOf(anchor ?? review.focused), all.indexOf(id)].sort(
      (a, b) => a - b,
    );
    review.choose(all.slice(Math.max(from, 0), to + 1));
  };

  node.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    const id = Number(tile.dataset.id);
    if (event.shiftKey) extend(id);
    else if (event.ctrlKey || event.metaKey || (finger && review.chosen.size)) {
      toggle(id);
    } else {
      review.choose([]);
      anchor = id;
    }
    review.focus(id, { quiet: true });
  });
  // A finger that rests on a cell chooses it; then every touch chooses or leaves out.
  let finger = false;
  node.addEventListener("pointerdown", (event) => (finger = event.pointerType === "touch"));
  node.addEventListener("contextmenu", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile || !finger) return;
    event.preventDefault();
    toggle(Number(tile.dataset.id));
  });
  node.addEventListener("dblclick", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) review.go("cell", Number(tile.dataset.id));
  });
  node.addEventListener("focusin", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    review.focused = Number(tile.dataset.id);
    mark();
  });
  node.addEventListener("dragstart", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile || reading.signed) return event.preventDefault();
    const id = Number(tile.dataset.id);
    const ids = review.chosen.has(id) ? [...review.chosen] : [id];
    carry(event, ids);
    const carried = el("div", { class: "dragged", text: plural(ids.length, "cell") });
    document.body.append(carried);
    event.dataTransfer.setDragImage(carried, -8, -8);
    setTimeout(() => carried.remove());
    return undefined;
  });

  // A frame drawn round many, from any place between the tiles.
  node.addEventListener("pointerdown", (event) => {
    if (
      event.button !== 0 ||
      event.pointerType === "touch" ||
      event.target.closest(".tile, button, a")
    )
      return;
    const [x0, y0] = [event.pageX, event.pageY];
    const kept = event.ctrlKey || event.metaKey || event.shiftKey ? [...review.chosen] : [];
    const frame = el("div", { class: "marquee" });
    let drawn = false;
    const move = (now) => {
      const box = {
        left: Math.min(x0, now.pageX),
        right: Math.max(x0, now.pageX),
        top: Math.min(y0, now.pageY),
        bottom: Math.max(y0, now.pageY),
      };
      if (!drawn && box.right - box.left + box.bottom - box.top < 8) return;
      if (!drawn) document.body.append(frame);
      drawn = true;
      now.preventDefault();
      Object.assign(frame.style, {
        left: `${box.left}px`,
        top: `${box.top}px`,
        width: `${box.right - box.left}px`,
        height: `${box.bottom - box.top}px`,
      });
      const inside = [...tiles].filter(([, tile]) => {
        const rect = tile.getBoundingClientRect();
        const [left, top] = [rect.left + scrollX, rect.top + scrollY];
        return (
          rect.width &&
          left < box.right &&
          left + rect.width > box.left &&
          top < box.bottom &&
          top + rect.height > box.top
        );
      });
      review.choose([...kept, ...inside.map(([id]) => id)]);
    };
    const up = () => {
      document.removeEventListener("pointermove", move);
      frame.remove();
      if (!drawn) review.choose([]);
      else if (review.chosen.size) review.focus([...review.chosen][0], { quiet: true });
    };
    document.addEventListener("pointermove", move);
    document.addEventListener("pointerup", up, { once: true });
    document.addEventListener("pointercancel", up, { once: true });
    event.preventDefault();
  });

  /** The tile above or below: the nearest in the row over or under this one. */
  function neighbour(tile, down) {
    const here = tile.getBoundingClientRect();
    let best = null;
    for (const other of node.querySelectorAll(".tile")) {
      const rect = other.getBoundingClientRect();
      const dy = down ? rect.top - here.top : here.top - rect.top;
      if (dy < here.height / 2) continue;
      const far = dy * 1000 + Math.abs(rect.left - here.left);
      if (!best || far < best.far) best = { far, other };
    }
    return best?.other;
  }

  function press(event) {
    const tile = tiles.get(review.focused);
    const { key } = event;
    if (!tile || event.target.closest("button, a")) return false;
    if (key === " ") {
      toggle(review.focused);
      return true;
    }
    if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "a") {
      review.choose(order(place(review.cell())));
      return true;
    }
    const all = everything();
    const at = all.indexOf(review.focused);
    const group = order(place(review.cell()));
    const next = {
      ArrowRight: () => all[at + 1],
      ArrowLeft: () => all[at - 1],
      ArrowDown: () => neighbour(tile, true)?.dataset.id,
      ArrowUp: () => neighbour(tile, false)?.dataset.id,
      Home: () => group[0],
      End: () => group[group.length - 1],
    }[key];
    if (!next || event.ctrlKey || event.metaKey) return false;
    const found = next();
    if (found === undefined) return true;
    const id = Number(found);
    if (event.shiftKey) {
      anchor ??= review.focused;
      extend(id);
    } else {
      anchor = null;
      review.choose([]);
    }
    review.focus(id);
    return true;
  }

  function focus(id, quiet) {
    const tile = tiles.get(id);
    if (!tile) return;
    mark();
    tile.focus({ preventScroll: quiet });
    if (!quiet) tile.scrollIntoView({ block: "nearest" });
  }

  for (const cell of reading.cells.values()) drawTile(cell);
  arrange();
  return {
    node,
    order,
    press,
    focus,
    mark,
    show: () => {
      if (review.focused !== null && !document.activeElement?.closest?.("#views, dialog"))
        focus(review.focused);
    },
    update(ids) {
      for (const id of ids) if (reading.cells.has(id)) drawTile(reading.cells.get(id));
      arrange();
    },
    flash(ids) {
      for (const id of ids) {
        const tile = tiles.get(id);
        tile?.classList.remove("fresh");
        requestAnimationFrame(() => tile?.classList.add("fresh"));
      }
    },
  };
}
