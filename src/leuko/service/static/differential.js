// The differential beside the cells, live: what the machine says, what a person makes of it, with
// exact limits; how far it is to the target; what to beware of; and the signature.

import { button, el, icon, percent, plural, put, svg } from "./elements.js";
import { isDoubtful, isOpen } from "./reading.js";
import { makeExports } from "./signing.js";

export function makePanel(review) {
  const { reading } = review;
  const target = el("section", { class: "progress", "aria-label": "Progress" });
  const table = el("div", { class: "counts" });
  const flags = el("ul", { class: "flags", "aria-label": "Flags" });
  const corrected = el("div", { class: "corrected" });
  const actions = el("div", { class: "actions" });
  const exports = el("div", { class: "exports" });
  const node = el(
    "aside",
    { class: "panel", id: "differential", "aria-label": "Differential" },
    el(
      "div",
      { class: "rolls", tabindex: 0, role: "region", "aria-label": "Counts" },
      el("h2", { text: "Differential" }),
      target,
      table,
      flags,
      corrected,
      exports,
    ),
    actions,
  );
  let before = "";

  function update() {
    const found = reading.differential;
    if (!found) return;
    drawTarget(target, reading, found.reviewed);
    drawTable(table, found);
    put(
      flags,
      ...found.reviewed.flags.map((flag) =>
        el(
          "li",
          { class: flag.level },
          icon(flag.level === "warning" ? "warn" : "flag"),
          el("span", { text: flag.text }),
        ),
      ),
    );
    flags.hidden = !found.reviewed.flags.length;
    const cells = [...reading.cells.values()];
    const doubtful = cells.filter((cell) => isDoubtful(cell)).length;
    const sure = review.sure().length;
    if (reading.signed) flags.before(exports);
    else corrected.after(exports);
    drawCorrection(corrected, found.machine);
    // Redrawn only when something changed: a button mustn't vanish under the finger.
    const now = JSON.stringify([
      doubtful,
      sure,
      reading.state,
      reading.version,
      reading.signature,
      reading.slide.images_deleted,
      cells.length,
    ]);
    if (now === before) return;
    before = now;
    drawActions(actions, review, { doubtful, sure, none: !cells.length });
    put(exports, ...makeExports(review));
  }

  return { node, update };
}

function drawTarget(node, reading, found) {
  const share = Math.min(1, found.cells / found.target);
  const open = [...reading.cells.values()].filter(isOpen).length;
  const all = [...reading.cells.values()].filter((cell) => !cell.deleted).length;
  put(
    node,
    el(
      "p",
      { class: "sum" },
      el("strong", { text: found.cells }),
      ` of ${found.target} leukocytes`,
    ),
    el("progress", {
      max: 1,
      value: share,
      "aria-label": `${found.cells} of ${found.target} leukocytes counted`,
    }),
    el("p", { class: "hint", text: `${all - open} of ${plural(all, "cell")} reviewed` }),
  );
}

function drawTable(node, { machine, reviewed }) {
  const raw = new Map([...machine.rows, ...machine.beside].map((row) => [row.label, row]));
  const widest = Math.max(
    10,
    ...reviewed.rows.map((row) => row.high ?? 0),
    ...machine.rows.map((row) => row.percent ?? 0),
  );
  put(
    node,
    el(
      "table",
      {},
      el("caption", {
        class: "unseen",
        text: "Counts after review, percent of leukocytes with exact 95 % limits, and the machine's count",
      }),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { scope: "col", text: "class" }),
          el("th", { scope: "col", text: "n" }),
          el("th", { scope: "col", text: "%" }),
          el("th", { scope: "col", text: "95 % limits" }),
          el(
            "th",
            { scope: "col", class: "raw", title: "before review" },
            el("span", { text: "machine" }),
          ),
        ),
      ),
      el(
        "tbody",
        {},
        reviewed.rows.map((row) => drawRow(row, raw.get(row.label), widest)),
      ),
      reviewed.beside.some((row) => row.count || raw.get(row.label)?.count)
        ? el(
            "tbody",
            { class: "beside" },
            reviewed.beside
              .filter((row) => row.count || raw.get(row.label)?.count)
              .map((row) => drawBeside(row, raw.get(row.label))),
          )
        : null,
    ),
    el(
      "p",
      { class: "hint legend" },
      el("span", { class: "dot full" }),
      "after review ",
      el("span", { class: "dot" }),
      "machine ",
      el("span", { class: "whisker" }),
      "exact 95 % limits",
    ),
  );
}

function drawRow(row, raw, widest) {
  const differs = raw && raw.count !== row.count;
  return [
    el(
      "tr",
      { class: row.count ? "" : "zero" },
      el("th", { scope: "row", text: row.label }),
      el("td", { class: "n", text: row.count }),
      el("td", { text: percent(row.percent) }),
      el("td", { class: "limits", text: `${percent(row.low)}–${percent(row.high)}` }),
      el("td", { class: differs ? "raw differs" : "raw", text: raw ? raw.count : "–" }),
    ),
    el(
      "tr",
      { class: "plot", "aria-hidden": "true" },
      el("td", { colspan: 5 }, drawPlot(row, raw, widest)),
    ),
  ];
}

/** Percent and its limits on one scale for all classes: full after review, hollow before. */
function drawPlot(row, raw, widest) {
  const x = (value) => `${(100 * value) / widest}%`;
  return svg(
    "svg",
    { class: "plot", height: 10, width: "100%" },
    svg("line", { class: "base", x1: 0, x2: "100%", y1: 5, y2: 5 }),
    row.percent === null
      ? null
      : svg("line", { class: "limits", x1: x(row.low), x2: x(row.high), y1: 5, y2: 5 }),
    raw && raw.percent !== null
      ? svg("circle", { class: "raw", cx: x(raw.percent), cy: 5, r: 3.2 })
      : null,
    row.percent === null
      ? null
      : svg("circle", { class: "value", cx: x(row.percent), cy: 5, r: 3.6 }),
  );
}

function drawBeside(row, raw) {
  const limits =
    row.low === null || row.low === undefined ? "" : ` (${percent(row.low)}–${percent(row.high)})`;
  const per =
    row.per_100 === null || row.per_100 === undefined
      ? ""
      : `${percent(row.per_100)}${limits} per 100`;
  return el(
    "tr",
    {},
    el("th", { scope: "row", text: row.label }),
    el("td", { class: "n", text: row.count }),
    el("td", { colspan: 2, class: "limits", text: per || "not in the 100 %" }),
    el("td", { class: "raw", text: raw ? raw.count : "–" }),
  );
}

/** What the machine's count becomes when its own errors are undone: for who wants to know. */
function drawCorrection(node, { rows, correction }) {
  if (node.dataset.of === JSON.stringify(rows)) return; // open stays open
  node.dataset.of = JSON.stringify(rows);
  if (!correction?.done) return put(node);
  return put(
    node,
    el(
      "details",
      { class: "menu" },
      el("summary", { text: "The machine's count, corrected" }),
      el("p", { class: "hint", text: correction.text }),
      el(
        "table",
        {},
        el("caption", { class: "unseen", text: "Percent of leukocytes, corrected, with limits" }),
        el(
          "tbody",
          {},
          rows.map((row) =>
            el(
              "tr",
              {},
              el("th", { scope: "row", text: row.label }),
              el("td", { text: percent(row.corrected) }),
              el("td", {
                class: "hint",
                text: `${percent(row.corrected_low)}–${percent(row.corrected_high)}`,
              }),
            ),
          ),
        ),
      ),
    ),
  );
}

function drawActions(node, review, { doubtful, sure, none }) {
  const { reading } = review;
  if (reading.signed) {
    put(
      node,
      el("p", { class: "signed" }, icon("lock"), el("span", { text: review.signedText() })),
      button("New version …", () => review.amend(), { icon: "pen" }),
    );
    return;
  }
  const parts = [];
  if (none)
    parts.push(
      el("p", { class: "hint", text: "No cell was found yet." }),
      el(
        "a",
        { class: "button", href: `#/slides/${reading.slideId}/images/${reading.id}` },
        icon("images"),
        el("span", { text: "Add images" }),
      ),
    );
  if (doubtful)
    parts.push(
      button(`Next of ${doubtful} doubtful`, () => review.step(1), {
        icon: "doubt",
        key: ".",
        kind: "lead",
      }),
    );
  if (sure)
    parts.push(
      button(`Confirm the other ${sure}`, () => review.confirmSure(), {
        icon: "check",
        title: "Ctrl Enter",
      }),
    );
  if (!none)
    parts.push(
      button("Sign …", () => review.sign(), {
        icon: "lock",
        kind: doubtful || sure ? "" : "strong",
      }),
    );
  put(node, ...parts);
}
