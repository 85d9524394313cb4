// Who did what and when, in every version.

import { el, icon, moment, plural, put } from "./elements.js";
import { UNIDENTIFIED } from "./reading.js";
import { call } from "./service.js";

export function makeTrail(review) {
  const { reading } = review;
  const list = el("ol", { class: "history" });
  const node = el(
    "section",
    { class: "view sheet", hidden: true, "aria-labelledby": "trail" },
    el("h2", { id: "trail", text: "Trail" }),
    el("p", {
      class: "hint",
      text: "Every change, with the newest first. Nothing is ever taken out of it.",
    }),
    list,
  );
  const icons = {
    sign: "lock",
    version: "pen",
    undo: "undo",
    redo: "redo",
    delete: "none",
    split: "split",
    add: "box",
    confirm: "check",
    field: "images",
    adapted: "adapt",
  };

  const where = (id) => {
    const field = reading.cells.get(id)?.field;
    return reading.slide.fields.find((one) => one.id === field)?.name;
  };

  /** Cells by the field in which they lie: their numbers say nothing to a person. */
  const gather = (ids) => {
    const names = new Set(ids.map(where));
    const [name] = names.size === 1 ? names : [];
    if (ids.length === 1) return name ?? "A cell";
    return name ? `${name}, ${plural(ids.length, "cell")}` : plural(ids.length, "cell");
  };

  /** What cells were called before each change, by its id: undo and redo go back and forth. */
  function follow(entries) {
    const called = new Map();
    for (const { id, machine } of reading.cells.values())
      called.set(id, machine.state === "pre-classified" ? machine.label : UNIDENTIFIED);
    const names = new Map();
    const set = (ids, name) => ids.forEach((id, at) => called.set(id, name(at)));
    for (const { id, kind, cells, label, change } of entries) {
      const last = names.get(change);
      if (kind === "undo" && last) set(last.cells, (at) => last.before[at]);
      else if (kind === "redo" && last?.after) set(last.cells, () => last.after);
      else if (kind === "label") {
        names.set(id, {
          cells,
          before: cells.map((cell) => called.get(cell)),
          after: label ?? UNIDENTIFIED,
        });
        set(cells, () => label ?? UNIDENTIFIED);
      } else if (kind === "arbitrate") set(cells, () => undefined); // it names none of them
    }
    return names;
  }

  /** One entry as a sentence. */
  function tell({ id, kind, cells, label, made, detail, change }, entries, names) {
    const which = gather(cells);
    const before = new Set(names.get(id)?.before);
    const from = before.size === 1 ? ([...before][0] ?? "") : "";
    const target = () => {
      const found = entries.find((one) => one.id && one.id === change);
      return found ? tell(found, entries, names) : "the change before";
    };
    const says = {
      label: () => `${which}: ${from ? `${from} → ` : ""}${label ?? UNIDENTIFIED}`,
      confirm: () => `${which}: confirmed`,
      delete: () => `${which}: no leukocyte`,
      restore: () => `${which}: brought back`,
      add: () => `${gather(made)}: ${plural(made.length, "cell")} added by hand`,
      split: () => `${which}: a cell was split into ${made.length}`,
      undo: () => `Undone: ${target()}`,
      redo: () => `Done again: ${target()}`,
      field: () =>
        detail?.gone
          ? `${detail.name} was looked at again, at the scale of all images: ${plural(cells.length, "cell")}${instead(cells.length, detail.gone.length)}`
          : `${detail?.name ?? "A field"} came, with ${plural(made.length || cells.length, "cell")}`,
      arbitrate: () => "Arbitration of two readings",
      reading: () => "A reading was begun",
      changed: () =>
        `The slide was changed: ${Object.entries(detail?.after ?? {})
          .map(([what, value]) => `${what.replace("_", " ")} ${value}`)
          .join(", ")}`,
      adapted: () =>
        `The model was adapted to ${plural(detail?.cells ?? 0, "reviewed cell")}: ${detail?.changed ? "its last layer was fitted again" : "its last layer was kept"} (bundle ${String(detail?.bundle ?? "").slice(0, 12)})`,
      sign: () => "Signed",
      version: () => `A new version: ${detail?.reason ?? ""}`,
    };
    return (
      says[kind]?.() ??
      [kind, ...Object.values(detail ?? {}).filter((one) => typeof one === "string")].join(" · ")
    );
  }

  /** The sentence leads to its cell, if it is about one. */
  function link({ cells, made }, text) {
    const [id, ...more] = [...cells, ...made].filter((one) => reading.cells.has(one));
    if (id === undefined || more.length) return el("p", { text });
    const href = `#/slides/${reading.slideId}/${reading.id}/cell/${id}`;
    return el("p", {}, el("a", { href, text }));
  }

  async function show() {
    const entries = await call("GET", `${reading.path}/trail`);
    const names = follow(entries);
    put(
      list,
      ...entries
        .slice()
        .reverse()
        .map((one) =>
          el(
            "li",
            { class: one.kind },
            icon(icons[one.kind] ?? "cell"),
            el(
              "div",
              {},
              link(one, tell(one, entries, names)),
              el("p", {
                class: "hint",
                text: [
                  one.by || (one.kind === "field" ? "" : "no name"),
                  moment(one.at),
                  one.version ? `version ${one.version}` : "",
                ]
                  .filter(Boolean)
                  .join(" · "),
              }),
            ),
          ),
        ),
    );
  }

  return {
    node,
    show,
    update: () => {
      if (!node.hidden) show();
    },
  };
}

function instead(now, before) {
  return now === before ? "" : ` instead of ${before}`;
}
