// One cell, large: what the machine sees in it, how sure it is, why, and what it is like.

import { button, el, icon, percent, picture, put } from "./elements.js";
import { address, call } from "./service.js";
import { isOpen, place, REVIEWED, UNIDENTIFIED } from "./reading.js";

const SIZE = 640;

/** The classes that can't be excluded, in a sentence. */
function describeSet(set) {
  if (!set) return "";
  if (!set.length) return "No class fits well.";
  return set.length === 1 ? `Only ${set[0]} fits.` : `It can't exclude: ${set.join(", ")}.`;
}

export function makeCellView(review) {
  const { reading } = review;
  const large = el("img", { class: "picture", alt: "" });
  const map = el("img", { class: "map", alt: "", hidden: true });
  const stack = el("div", { class: "stack" }, large, map);
  const why = el("input", { type: "checkbox", id: "why" });
  const strength = el("input", {
    type: "range",
    id: "strength",
    min: 10,
    max: 100,
    value: 60,
    "aria-label": "How strongly the map is laid over",
  });
  const whyNote = el("p", { class: "hint", role: "status" });
  const facts = el("div", { class: "facts" });
  const similar = el("div", { class: "similar" });
  const where = el("p", { class: "hint where" });
  const node = el(
    "section",
    { class: "view cell-view", hidden: true, "aria-label": "Cell" },
    el(
      "div",
      { class: "large" },
      stack,
      el(
        "div",
        { class: "row" },
        el("div", { class: "check" }, why, el("label", { for: "why", text: "Show why" })),
        strength,
        button("Previous", () => review.step(-1), { key: ",", kind: "small" }),
        button("Next", () => review.step(1), { key: ".", kind: "small" }),
      ),
      whyNote,
      where,
    ),
    el("div", { class: "beside" }, facts, similar),
  );
  let shown = null;
  let asked = 0;

  const layMap = () => {
    strength.hidden = !why.checked;
    map.hidden = !why.checked;
    map.style.opacity = strength.value / 100;
    whyNote.textContent = "";
    if (why.checked && shown !== null)
      map.src = `${address(reading.path)}/cells/${shown}/map?size=${SIZE}`;
  };
  why.addEventListener("change", layMap);
  strength.addEventListener("input", layMap);
  map.addEventListener("error", () => {
    if (!why.checked) return;
    map.hidden = true;
    whyNote.textContent = "This model can't say what its answer rests on.";
  });
  map.addEventListener("load", () => {
    whyNote.textContent = "Warm parts speak for the machine's answer. It is a hint, no proof.";
  });
  large.addEventListener("error", () => stack.classList.add("gone"));
  large.addEventListener("load", () => stack.classList.remove("gone"));

  function draw() {
    const cell = review.cell();
    if (!cell) {
      put(facts, el("p", { class: "hint", text: "There is no cell on this slide yet." }));
      return;
    }
    if (shown !== cell.id) {
      shown = cell.id;
      const there = reading.portrait(cell.id, SIZE);
      stack.classList.toggle("gone", !there);
      if (there) large.src = there;
      layMap();
      drawSimilar(cell.id);
    }
    const { machine } = cell;
    const field = reading.slide.fields.find((one) => one.id === cell.field);
    large.alt = `Cell ${cell.id}, ${cell.label ?? UNIDENTIFIED}`;
    put(
      where,
      "In ",
      el("a", {
        href: `#/slides/${reading.slideId}/${reading.id}/fields/${cell.id}`,
        text: field?.name ?? "its field",
      }),
    );
    const said =
      { deleted: "no leukocyte", [UNIDENTIFIED]: "unidentified" }[place(cell)] ??
      cell.label ??
      "rejected";
    const kind = cell.deleted ? "deleted" : cell.state;
    put(
      facts,
      el(
        "p",
        { class: `verdict ${kind}` },
        icon(
          kind === REVIEWED
            ? "check"
            : isOpen(cell) && kind !== "pre-classified"
              ? "doubt"
              : "cell",
        ),
        el("strong", { text: said }),
        el("span", {
          class: "hint",
          text: [said === kind ? "" : kind, cell.added ? "added by hand" : ""]
            .filter(Boolean)
            .join(", "),
        }),
      ),
      cell.reason ? el("p", { class: "reason", text: cell.reason }) : null,
      el("h3", { text: "What the machine says" }),
      drawBars(cell),
      el("p", { class: "hint", text: describeSet(machine.set) }),
      machine.reason && machine.reason !== cell.reason
        ? el("p", { class: "hint", text: machine.reason })
        : null,
    );
  }

  function drawBars({ machine, label }) {
    const rows = Object.entries(machine.probabilities ?? {}).sort((a, b) => b[1] - a[1]);
    return el(
      "table",
      { class: "bars" },
      el("caption", { class: "unseen", text: "Probability of each class" }),
      el(
        "tbody",
        {},
        rows.map(([name, value]) => {
          const bar = el("span", { class: "bar-of" });
          bar.style.width = `${Math.max(0.5, 100 * value)}%`;
          return el(
            "tr",
            {
              class: [
                name === label ? "now" : "",
                machine.set?.includes(name) ? "in-set" : "",
              ].join(" "),
            },
            el("th", { scope: "row", text: name }),
            el("td", { class: "wide" }, bar),
            el("td", { text: `${percent(100 * value)} %` }),
          );
        }),
      ),
    );
  }

  async function drawSimilar(id) {
    const turn = (asked += 1);
    put(similar);
    let found;
    try {
      found = await call("GET", `${reading.path}/cells/${id}/similar`);
    } catch {
      return; // a model without features has none to compare
    }
    if (turn !== asked) return;
    put(
      similar,
      el("h3", { text: "Similar cells that a person has labelled" }),
      found.length
        ? el(
            "ul",
            { class: "likes" },
            found.map((one) => {
              const image = picture(
                `${address(`slides/${one.slide}/readings/${one.reading}`)}/cells/${one.cell}/image?size=128`,
                { width: 64, height: 64 },
              );
              return el(
                "li",
                {},
                image,
                el("span", { text: one.label }),
                String(one.slide) === String(reading.slideId)
                  ? null
                  : el("span", { class: "hint", text: "another slide" }),
              );
            }),
          )
        : el("p", { class: "hint", text: "None yet: they come from cells that were reviewed." }),
    );
  }

  return {
    node,
    show() {
      if (review.focused !== null && !location.hash.endsWith(`/cell/${review.focused}`)) {
        history.replaceState(
          null,
          "",
          `#/slides/${reading.slideId}/${reading.id}/cell/${review.focused}`,
        );
      }
      draw();
    },
    focus: draw,
    update: () => {
      if (!node.hidden) draw();
    },
    press(event) {
      if (event.target.closest?.("input")) return false;
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
        review.step(event.key === "ArrowRight" ? 1 : -1);
        return true;
      }
      return false;
    },
  };
}
