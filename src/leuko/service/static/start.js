// The first view: the slides there are, and a new one.

import { ask, button, el, entry, icon, moment, notify, plural, say } from "./elements.js";
import { makeDrop } from "./drop.js";
import { askReader, getReader, setReader } from "./reader.js";
import { call } from "./service.js";
import { handOver } from "./upload.js";

export async function openStart(work) {
  document.title = "Slides · Leuko";
  const slides = await call("GET", "slides");
  work.className = "room start";
  work.append(
    el("section", { class: "sheet new", "aria-labelledby": "new" }, makeNew()),
    el(
      "section",
      { class: "sheet slides", "aria-labelledby": "slides" },
      el("h2", { id: "slides", text: "Slides" }),
      slides.length
        ? el(
            "ul",
            { class: "list" },
            slides.sort((a, b) => (a.created < b.created ? 1 : -1)).map(describeSlide),
          )
        : el("p", {
            class: "hint",
            text: "There is none yet. The first one begins with its images.",
          }),
    ),
  );
}

function makeNew() {
  let files = [];
  const name = entry(
    "Name of the slide",
    { maxlength: 200, autocomplete: "off" },
    "As it is written on the glass; no name of a patient is needed.",
  );
  const reader = entry("Your name", { maxlength: 100, autocomplete: "name", value: getReader() });
  const targets = el(
    "fieldset",
    { class: "choice" },
    el("legend", { text: "Cells to count" }),
    [100, 200, 400].map((count) => {
      const input = el("input", {
        type: "radio",
        name: "target",
        value: count,
        id: `target-${count}`,
      });
      input.checked = count === 200;
      return el("div", {}, input, el("label", { for: `target-${count}`, text: count }));
    }),
  );
  const keep = el("input", { type: "checkbox", id: "keep" });
  const chosen = el("p", { class: "chosen", role: "status" });
  const begin = el(
    "button",
    { class: "strong", type: "submit" },
    el("span", { text: "Begin" }),
    icon("next"),
  );
  begin.disabled = true;

  const take = (found) => {
    files = [
      ...files,
      ...found.filter(
        (one) =>
          !files.some((other) => other.name === one.name && other.file.size === one.file.size),
      ),
    ];
    chosen.textContent = files.length
      ? `${plural(files.length, "image")} chosen.`
      : "No image was found in there.";
    begin.disabled = !files.length;
    const folder = files[0]?.name.split("/").slice(0, -1).pop();
    if (folder && !name.input.value) name.input.value = folder.slice(0, 200);
    if (files.length) (name.input.value ? begin : name.input).focus();
  };

  const form = el(
    "form",
    {},
    el("h1", { id: "new", text: "A new slide" }),
    makeDrop(take),
    chosen,
    el("div", { class: "two" }, name.whole, reader.whole),
    targets,
    el(
      "div",
      { class: "check" },
      keep,
      el(
        "label",
        { for: "keep" },
        el("strong", { text: "Keep the images after signing." }),
        " Otherwise they are deleted as soon as the slide is signed, and only boxes, labels and counts remain.",
      ),
    ),
    el("div", { class: "row" }, begin),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!files.length) return;
    begin.disabled = true;
    setReader(reader.input.value);
    try {
      const slide = await call("POST", "slides", {
        body: {
          name: name.input.value.trim() || `Slide of ${moment(new Date().toISOString())}`,
          target: Number(form.elements.target.value),
          keep_images: keep.checked,
          reader: getReader(),
        },
      });
      handOver(slide.id, files);
      location.hash = `#/slides/${slide.id}/images/${slide.readings[0].id}`;
    } catch (error) {
      begin.disabled = false;
      notify(error.message, { kind: "bad", id: "begin" });
    }
  });
  return form;
}

function describeSlide(slide) {
  const readings = slide.readings;
  const open = readings.some((reading) => reading.state !== "signed");
  const everSigned = readings.some((reading) => reading.state === "signed" || reading.version > 1);
  const row = el(
    "li",
    { class: "slide" },
    el(
      "div",
      { class: "what" },
      el("a", {
        class: "name",
        href: `#/slides/${slide.id}/${readings[0].id}/gallery`,
        text: slide.name,
      }),
      el("p", {
        class: "hint",
        text: `${moment(slide.created)} · ${plural(count(slide.fields), "field")} · ${plural(count(slide.cells), "cell")}`,
      }),
    ),
    el(
      "ul",
      { class: "readings" },
      readings.map((reading, at) =>
        el(
          "li",
          {},
          el(
            "a",
            {
              href: `#/slides/${slide.id}/${reading.id}/gallery`,
              class: `reading ${reading.state}`,
            },
            icon(reading.state === "signed" ? "lock" : "pen"),
            el("span", {
              text: `${reading.reader || `Reading ${at + 1}`}${reading.version > 1 ? `, version ${reading.version}` : ""}`,
            }),
            el("span", { class: "hint", text: reading.state }),
          ),
        ),
      ),
    ),
    el(
      "div",
      { class: "row" },
      button("Second reading", () => beginReading(slide), {
        icon: "person",
        kind: "small",
        title: "Another person reads the slide without seeing this reading",
      }),
      readings.length > 1
        ? el(
            "a",
            {
              class: "button small",
              href: `#/slides/${slide.id}/compare/${readings[0].id}/${readings[1].id}`,
            },
            icon("compare"),
            el("span", { text: "Compare" }),
          )
        : null,
      everSigned
        ? // what was signed stays; only its images may go, once nobody reads them any more
          open || slide.images_deleted
          ? null
          : button("Delete the images", (event) => removeImages(slide, event.currentTarget), { icon: "bin", kind: "small" })
        : button("", () => remove(slide, row), {
            icon: "bin",
            kind: "plain icon-only",
            label: `Delete the slide ${slide.name}`,
          }),
    ),
  );
  return row;
}

function count(value) {
  return Array.isArray(value) ? value.length : value;
}

/** A second person reads the slide without seeing the first one's labels. */
async function beginReading(slide) {
  const { whole, input } = entry("Name of the reader", { maxlength: 100, required: true });
  let reading = null;
  await ask(
    "A second reading",
    el(
      "div",
      {},
      el("p", {
        text: "It begins with the machine's labels and doesn't show what the first reader changed.",
      }),
      whole,
    ),
    {
      yes: "Begin",
      check: async () => {
        if (!input.value.trim()) return "A reading needs the name of its reader.";
        reading = await call("POST", `slides/${slide.id}/readings`, {
          body: { reader: input.value.trim() },
        });
        return "";
      },
    },
  );
  if (!reading) return;
  setReader(input.value);
  location.hash = `#/slides/${slide.id}/${reading.id}/gallery`;
}

async function remove(slide, row) {
  const sure = await ask(
    "Delete this slide?",
    el("p", { text: `${slide.name}: its images, cells and changes are deleted for good.` }),
    { yes: "Delete", kind: "danger" },
  );
  if (!sure) return;
  try {
    await call("DELETE", `slides/${slide.id}`);
    row.remove();
    say(`${slide.name} was deleted.`);
  } catch (error) {
    notify(error.message, { kind: "bad" });
  }
}

/** Of a slide that was signed: boxes, labels and counts stay. */
async function removeImages(slide, pressed) {
  const sure = await ask(
    "Delete the images of this slide?",
    el("p", {
      text: `${slide.name}: its images are deleted for good; boxes, labels and counts remain. The labelled set, a second reading, and adapting the model need the images.`,
    }),
    { yes: "Delete the images", kind: "danger" },
  );
  const by = sure && (getReader() || (await askReader()));
  if (!by) return;
  try {
    await call("DELETE", `slides/${slide.id}/images?by=${encodeURIComponent(by)}`);
    pressed.remove();
    say(`The images of ${slide.name} were deleted.`);
  } catch (error) {
    notify(error.message, { kind: "bad" });
  }
}
