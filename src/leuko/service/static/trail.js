// Who did what and when, in every version.

import { el, icon, moment, plural, put } from "./elements.js";
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

  const name = (id) => `cell ${id}`;
  const gather = (ids) => (ids.length <= 3 ? ids.map(name).join(", ") : plural(ids.length, "cell"));

  /** One entry as a sentence. */
  function tell({ kind, cells, label, made, detail }) {
    const which = gather(cells);
    const says = {
      label: () => `${which}: ${label ?? "unidentified"}`,
      confirm: () => `${which}: confirmed`,
      delete: () => `${which}: no leukocyte`,
      restore: () => `${which}: brought back`,
      add: () => `${gather(made)} added by hand`,
      split: () => `${which} split into ${gather(made)}`,
      undo: () => "The change before was undone",
      redo: () => "The change was done again",
      field: () =>
        detail?.gone
          ? `${detail.name} was looked at again, at the scale of all images: ${plural(cells.length, "cell")} instead of ${detail.gone.length}`
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

  async function show() {
    const entries = await call("GET", `${reading.path}/trail`);
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
              el("p", { text: tell(one) }),
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
