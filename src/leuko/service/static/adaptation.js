// What the reviewed cells of a reading would give the model: before and after, on cells that were
// held back. The state is the service's, so that a reload loses nothing.

import { button, el, icon, moment, notify, plural, put, say, svg } from "./elements.js";
import { getReader } from "./reader.js";
import { address, call, sleep } from "./service.js";

const RUNNING = "running";
const PAUSE = 1; // s between two looks at how far it is

export async function openAdaptation(work, sid, rid) {
  const path = `slides/${sid}/readings/${rid}/adaptation`;
  const [slide, told] = await Promise.all([call("GET", `slides/${sid}`), call("GET", path)]);
  const reading = slide.readings.find((one) => String(one.id) === rid);
  document.title = `Adapt the model · ${slide.name} · Leuko`;
  const labels = el("section", { "aria-labelledby": "labels" });
  const run = el("section", { class: "run" });
  const outcome = el("section", { class: "outcome" });
  const back = `#/slides/${sid}/${rid}/gallery`;
  work.append(
    el(
      "div",
      { class: "sheet adaptation" },
      el("p", { class: "hint" }, el("a", { href: back, text: "Back to the cells" })),
      el("h1", { text: "Adapt the model" }),
      el("p", {
        text: `Fits the model to this microscope with the cells that ${reading?.reader || "the reader"} reviewed on ${slide.name}. The model that answers now stays as it is: a new one is made beside it, and measured on cells that it wasn't fitted to.`,
      }),
      outcome,
      run,
      labels,
    ),
  );
  const page = { path, back, slide: sid, reading: rid, labels, run, outcome, shown: {}, open: true };
  show(page, told);
  if (told.state === RUNNING) follow(page);
  return () => (page.open = false); // what runs goes on
}

/** Asks how far it is until it has ended. */
async function follow(page) {
  while (page.open) {
    await sleep(PAUSE);
    const told = await call("GET", page.path).catch((error) => ({ error }));
    if (!page.open) return;
    if (told.error instanceof Error) {
      if (told.error.status !== 0) return refuse(told.error);
      page.doing.textContent = "The service doesn't answer; it is asked again.";
      continue;
    }
    show(page, told);
    if (told.state !== RUNNING) return announce(page, told);
  }
}

async function begin(page) {
  try {
    show(page, await call("POST", page.path, { body: { by: getReader() } }));
    say("The adaptation has begun.");
    page.run.querySelector("button")?.focus();
    await follow(page);
  } catch (error) {
    refuse(error);
  }
}

async function cancel(page) {
  try {
    show(page, await call("DELETE", page.path));
  } catch (error) {
    refuse(error);
  }
}

function refuse(error) {
  notify(error.message, { kind: "bad", id: "adaptation" });
}

function announce(page, told) {
  const here = page.run.contains(document.activeElement) || document.activeElement === document.body;
  if (told.state === "done" && told.kept) {
    say(`${name(told.kept.result)}. ${told.kept.result.reason}`);
    if (here) page.outcome.querySelector("h2").focus();
    return;
  }
  say(told.state === "cancelled" ? "Cancelled." : (told.error ?? "The adaptation has ended."));
  if (here) page.run.querySelector("button")?.focus();
}

/** Each part is drawn anew only if it is to be different: a button mustn't vanish under the finger. */
function show(page, told) {
  const parts = {
    outcome: [told.kept, told.state === RUNNING],
    run: [told.state, told.error, told.busy, told.labels.missing, Boolean(told.kept)],
    labels: [told.labels],
  };
  const draw = { outcome: drawOutcome, run: drawRun, labels: drawLabels };
  for (const [part, facts] of Object.entries(parts)) {
    const now = JSON.stringify(facts);
    if (page.shown[part] === now) continue;
    page.shown[part] = now;
    draw[part](page, told);
  }
  if (told.state !== RUNNING) return;
  const words = told.total ? `${told.doing}: ${told.done} of ${told.total}` : told.doing;
  page.doing.textContent = `${words[0].toUpperCase()}${words.slice(1)}`;
  if (told.total) {
    page.bar.max = told.total;
    page.bar.value = told.done;
  } else page.bar.removeAttribute("value");
}

// --- what there is to learn from ------------------------------------------------------------------

function drawLabels(page, { labels }) {
  put(
    page.labels,
    el("h2", { id: "labels", text: "What it learns from" }),
    labels.classes.length
      ? el(
          "div",
          { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": "labels" },
          el(
            "table",
            { class: "plain" },
            el("caption", {
              text: `Reviewed cells of this reading. A class takes part with cells in ${labels.least_fields} fields or more: cells of one field have the same light, so none may judge what was fitted to another.`,
            }),
            head(["class", "cells", "fields", "takes part"]),
            el(
              "tbody",
              {},
              labels.classes.map((row) =>
                el(
                  "tr",
                  {},
                  el("th", { scope: "row", text: row.label }),
                  el("td", { text: row.cells }),
                  el("td", { text: row.fields }),
                  el("td", {
                    text: row.enough
                      ? "yes"
                      : `no, ${plural(labels.least_fields - row.fields, "more field")} needed`,
                  }),
                ),
              ),
            ),
          ),
        )
      : el("p", { class: "hint", text: "No cell of a class of the model was reviewed yet." }),
    Object.entries(labels.other).map(([label, count]) =>
      el("p", {
        class: "hint",
        text: `${plural(count, "cell")} labelled ${label}: the model has no such class, so ${count === 1 ? "it takes" : "they take"} no part.`,
      }),
    ),
  );
}

// --- the run --------------------------------------------------------------------------------------

function drawRun(page, told) {
  const { missing, images } = told.labels;
  if (told.state === RUNNING) {
    page.doing = el("p", { text: told.doing });
    page.bar = el("progress", { max: 1, "aria-label": "The adaptation" });
    put(
      page.run,
      el("h2", { text: "The adaptation runs" }),
      page.doing,
      page.bar,
      el(
        "div",
        { class: "row" },
        button("Cancel", () => cancel(page), { icon: "close" }),
        el("p", {
          class: "hint",
          text: "It goes on if you leave this page. With a hundred cells it takes a minute or two.",
        }),
      ),
    );
    return;
  }
  const parts = [];
  if (told.state === "failed") parts.push(line("bad", `It failed. ${told.error}`));
  if (told.state === "cancelled") parts.push(line("note", "It was cancelled. Nothing was changed."));
  if (missing) {
    parts.push(line("warn", missing));
    if (images)
      parts.push(
        el(
          "a",
          { class: "button", href: page.back },
          icon("gallery"),
          el("span", { text: "Review more cells" }),
        ),
      );
  } else if (told.busy) {
    parts.push(line("warn", "The model is being adapted to another slide. Wait until that is done."));
    parts.push(button("Look again", () => look(page), { icon: "redo" }));
  } else {
    parts.push(
      button(told.kept ? "Adapt again" : "Adapt the model", () => begin(page), {
        icon: "adapt",
        kind: told.kept && !told.kept.outdated ? "" : "strong",
      }),
    );
  }
  put(page.run, ...parts);
}

async function look(page) {
  await call("GET", page.path)
    .then((told) => show(page, told))
    .catch(refuse);
}

function line(kind, text) {
  return el(
    "p",
    { class: `told ${kind}` },
    icon(kind === "note" ? "check" : "warn"),
    el("span", { text }),
  );
}

// --- what came of it ------------------------------------------------------------------------------

function name(result) {
  if (result.changed) return "The adapted model is better here";
  return result.calibrated ? "The model stays as it was" : "Nothing was learnt";
}

function drawOutcome(page, { kept, state }) {
  page.outcome.hidden = !kept || state === RUNNING;
  if (page.outcome.hidden) return put(page.outcome);
  const { result } = kept;
  const who = kept.by ? ` by ${kept.by}` : "";
  return put(
    page.outcome,
    kept.outdated
      ? line("warn", "The reading has changed since. To take that in, adapt again.")
      : null,
    el(
      "h2",
      { tabindex: -1, class: result.changed ? "better" : "" },
      icon(result.changed ? "check" : "flag"),
      name(result),
    ),
    el("p", { class: "big", text: result.reason }),
    el("div", { class: "two" }, drawFigures(result), drawCurve(result)),
    drawRecalls(result),
    kept.notes.length
      ? el(
          "ul",
          { class: "notes hint" },
          kept.notes.map((text) => el("li", { text: `${text[0].toUpperCase()}${text.slice(1)}.` })),
        )
      : null,
    result.calibrated ? drawUse(page, kept) : null,
    el("p", { class: "hint", text: `Done ${moment(kept.at)}${who}, and kept with this reading.` }),
  );
}

function drawFigures(result) {
  const after = result.changed ? "after" : "with a new layer, not taken";
  const { before, after: now, gain } = result.balanced_accuracy;
  const row = (title, ...values) =>
    el("tr", {}, el("th", { scope: "row", text: title }), values.map(cell));
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Before and after" },
    el(
      "table",
      { class: "plain" },
      el("caption", {
        text: `On ${plural(result.data.cells, "reviewed cell")}, each judged by layers that no cell of its field was fitted to. Percent, with 95 % limits.`,
      }),
      head(["", "before", after]),
      el(
        "tbody",
        {},
        row("balanced accuracy", share(before), share(now)),
        row("accuracy", share(result.accuracy.before), share(result.accuracy.after)),
        el(
          "tr",
          {},
          el("th", { scope: "row", text: "gain in balanced accuracy" }),
          el("td", {}, ""),
          cell([points(gain.value), `${points(gain.low)} to ${points(gain.high)}`]),
        ),
      ),
    ),
  );
}

function cell([value, limits]) {
  return el("td", {}, el("strong", { text: value }), el("span", { class: "limits", text: limits }));
}

function share({ value, low, high }) {
  return [per(value), `${per(low)}–${per(high)}`];
}

const per = (value) => (100 * value).toFixed(1);
const points = (value) => `${value < 0 ? "−" : "+"}${Math.abs(100 * value).toFixed(1)}`;

/** The share of each class that is called right; few cells say little, so n stands beside it. */
function drawRecalls(result) {
  return el(
    "details",
    { class: "menu" },
    el("summary", { text: "Class by class" }),
    el(
      "table",
      { class: "plain" },
      el("caption", { text: "Of the cells of a class, the share that is called so, in percent." }),
      head(["class", "cells", "before", "after"]),
      el(
        "tbody",
        {},
        Object.entries(result.recall).map(([label, found]) =>
          el(
            "tr",
            {},
            el("th", { scope: "row", text: label }),
            el("td", { text: result.data.counts[label] }),
            el("td", { text: per(found.before) }),
            el("td", { text: per(found.after) }),
          ),
        ),
      ),
    ),
  );
}

/** Balanced accuracy by number of labels; the line is the model as it was. */
function drawCurve({ curve, outlook, balanced_accuracy: { before } }) {
  const most = Math.max(...curve.map((point) => point.labels));
  const least = Math.min(before.value, ...curve.map((point) => point.low));
  const bottom = Math.max(0, Math.floor(10 * (least - 0.03)) / 10);
  const x = (labels) => `${10 + (82 * labels) / most}%`;
  const y = (value) => 10 + (120 * (1 - value)) / (1 - bottom || 1);
  const mark = (value, text) => svg("text", { x: 0, y: y(value) + 4, text });
  const words = curve.map((point) => `${point.labels} labels ${per(point.value)} %`).join(", ");
  return el(
    "figure",
    {},
    svg(
      "svg",
      {
        class: "curve",
        height: 156,
        width: "100%",
        role: "img",
        "aria-label": `Balanced accuracy by number of labels: ${words}; before ${per(before.value)} %`,
      },
      svg("line", { class: "base", x1: "10%", x2: "100%", y1: y(bottom), y2: y(bottom) }),
      mark(1, "100"),
      mark(bottom, (100 * bottom).toFixed(0)),
      svg("line", { class: "before", x1: "10%", x2: "100%", y1: y(before.value), y2: y(before.value) }),
      curve.map((point) => [
        svg("line", {
          class: "limits",
          x1: x(point.labels),
          x2: x(point.labels),
          y1: y(point.low),
          y2: y(point.high),
        }),
        svg("circle", { class: "value", cx: x(point.labels), cy: y(point.value), r: 4 }),
        svg("text", { class: "at", x: x(point.labels), y: 150, text: point.labels }),
      ]),
    ),
    el(
      "figcaption",
      { class: "hint" },
      `Balanced accuracy in percent by number of labels, with 95 % limits; the dashed line is the model as it was. ${outlook}`,
    ),
  );
}

function drawUse(page, { result, size }) {
  const file = `bundle-slide-${page.slide}-reading-${page.reading}.zip`;
  return el(
    "div",
    { class: "use" },
    el(
      "div",
      { class: "row" },
      el(
        "a",
        {
          class: `button ${result.changed ? "strong" : ""}`,
          href: `${address(page.path)}/bundle.zip`,
          download: "",
        },
        icon("save"),
        el("span", { text: `Save the new bundle (${Math.max(1, Math.round(size / 1e6))} MB)` }),
      ),
      result.changed
        ? null
        : el("p", {
            class: "hint",
            text: "Its last layer is the old one; how sure it is, and what it takes for a cell, was fitted.",
          }),
    ),
    el("p", {}, "To use it, end the service and start it again with the file that you saved:"),
    el("pre", { tabindex: 0, "aria-label": "Command" }, el("code", { text: `leuko serve --model ${file}` })),
    el("p", {
      class: "hint",
      text: "New slides are then read by it. Cells that are in the store keep what the old model said of them.",
    }),
  );
}

function head(names) {
  return el(
    "thead",
    {},
    el(
      "tr",
      {},
      names.map((text) => (text ? el("th", { scope: "col", text }) : el("td"))),
    ),
  );
}
