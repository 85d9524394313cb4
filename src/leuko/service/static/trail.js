// Who did what and when, in every version.

import { el, icon, moment } from "./elements.js";
import { call } from "./service.js";

export function makeTrail(review) {
  const { reading } = review;
  const list = el("ol", { class: "trail" });
  const node = el("section", { class: "view sheet", hidden: true, "aria-labelledby": "trail" }, el("h2", { id: "trail", text: "Trail" }), el("p", { class: "hint", text: "Every change, with the newest first. Nothing is ever taken out of it." }), list);
  const icons = { sign: "lock", version: "pen", undo: "undo", redo: "redo", delete: "none", split: "split", add: "box", confirm: "check", field: "images" };

  async function show() {
    const entries = await call("GET", `${reading.path}/trail`);
    list.replaceChildren(
      ...entries.slice().reverse().map((one) =>
        el(
          "li",
          { class: one.kind },
          icon(icons[one.kind] ?? "cell"),
          el("div", {}, el("p", { text: one.text }), el("p", { class: "hint", text: `${one.who || "no name"} · ${moment(one.when)} · version ${one.version}` })),
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
