// Two readings of one slide side by side, and what they differ on.

import { button, el, icon, notify, percent, picture, plural } from "./elements.js";
import { address, call } from "./service.js";
import { getReader } from "./reader.js";

export async function openComparison(work, sid, a, b) {
  const slide = await call("GET", `slides/${sid}`);
  document.title = `Comparison · ${slide.name} · Leuko`;
  const name = (id) => {
    const at = slide.readings.findIndex((one) => String(one.id) === String(id));
    return slide.readings[at]?.reader || `Reading ${at + 1}`;
  };
  const place = el("div");
  const choose = (label, now, other) => {
    const select = el(
      "select",
      { id: `choose-${label}` },
      slide.readings.map((one) => {
        const option = el("option", {
          value: one.id,
          text: `${name(one.id)}${one.version > 1 ? `, version ${one.version}` : ""} (${one.state})`,
        });
        option.selected = String(one.id) === String(now);
        return option;
      }),
    );
    select.addEventListener(
      "change",
      () =>
        (location.hash = `#/slides/${sid}/compare/${label === "first" ? `${select.value}/${other}` : `${other}/${select.value}`}`),
    );
    return el(
      "div",
      { class: "entry" },
      el("label", {
        for: `choose-${label}`,
        text: label === "first" ? "One reading" : "The other",
      }),
      select,
    );
  };
  work.append(
    el(
      "section",
      { class: "sheet comparison" },
      el("p", { class: "hint" }, el("a", { href: "#/", text: "All slides" })),
      el("h1", {}, slide.name),
      el("div", { class: "two" }, choose("first", a, b), choose("second", b, a)),
      place,
    ),
  );
  let found;
  try {
    found = await call(
      "GET",
      `slides/${sid}/comparison?a=${encodeURIComponent(a)}&b=${encodeURIComponent(b)}`,
    );
  } catch (error) {
    place.append(
      el("p", { class: "notice warn" }, icon("warn"), el("span", { text: error.message })),
    );
    return undefined;
  }
  const names = [name(a), name(b)];
  const share = (one) =>
    one === null || one === undefined
      ? "–"
      : `${percent(100 * one.value)} (${percent(100 * one.low)}–${percent(100 * one.high)})`;
  place.append(
    el(
      "div",
      { class: "figures" },
      el(
        "p",
        {},
        el("strong", { text: found.agreement ? `${percent(100 * found.agreement.value)} %` : "–" }),
        ` agreement on ${plural(found.cells, "cell")}, 95 % limits ${found.agreement ? `${percent(100 * found.agreement.low)}–${percent(100 * found.agreement.high)}` : "–"}`,
      ),
      el(
        "p",
        {},
        el("strong", { text: found.kappa ? found.kappa.value.toFixed(2) : "–" }),
        ` Cohen's kappa${found.kappa ? `, 95 % limits ${found.kappa.low.toFixed(2)}–${found.kappa.high.toFixed(2)}` : ""}`,
      ),
    ),
    el(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Counts of both" },
      el(
        "table",
        { class: "plain" },
        el("caption", {
          text: "Cells per class. Of the cells that one reader gave a class, the share that the other gave it too, in percent with exact 95 % limits.",
        }),
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            ["class", ...names, "both", `of ${names[0]}'s`, `of ${names[1]}'s`].map((text) =>
              el("th", { scope: "col", text }),
            ),
          ),
        ),
        el(
          "tbody",
          {},
          found.classes.map((row) =>
            el(
              "tr",
              {},
              el("th", { scope: "row", text: row.label }),
              [row.a, row.b, row.both, share(row.of_a), share(row.of_b)].map((text) =>
                el("td", { text }),
              ),
            ),
          ),
        ),
      ),
    ),
    el("h2", {
      text:
        found.differing.length === 0
          ? "No cell differs"
          : found.differing.length === 1
            ? "1 cell differs"
            : `${found.differing.length} cells differ`,
    }),
    el(
      "ul",
      { class: "differing" },
      found.differing.map((one) => {
        const [reading, cell] = one.a.cell === null ? [b, one.b.cell] : [a, one.a.cell];
        const image = picture(
          `${address(`slides/${sid}/readings/${reading}`)}/cells/${cell}/image?size=192`,
          { width: 96, height: 96, loading: "lazy" },
        );
        return el(
          "li",
          {},
          image,
          el(
            "dl",
            {},
            [
              [names[0], one.a.label],
              [names[1], one.b.label],
            ].map(([who, label]) =>
              el("div", {}, el("dt", { text: who }), el("dd", { text: label })),
            ),
          ),
        );
      }),
    ),
  );
  if (found.differing.length) {
    const arbitrate = button(
      "Arbitrate",
      async () => {
        try {
          const reading = await call("POST", `slides/${sid}/readings`, {
            body: { arbitrates: [Number(a), Number(b)], reader: getReader() },
          });
          location.hash = `#/slides/${sid}/${reading.id}/gallery`;
        } catch (error) {
          notify(error.message, { kind: "bad", id: "arbitrate" });
        }
      },
      { icon: "compare", kind: "strong" },
    );
    place.append(
      el(
        "div",
        { class: "row" },
        arbitrate,
        el("p", {
          class: "hint",
          text: "A third reading: agreed cells are taken over, those that differ wait as unidentified.",
        }),
      ),
    );
  }
  return undefined;
}
