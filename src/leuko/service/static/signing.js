// The signature, what comes after it, and what leaves the page as files.

import { ask, el, entry, icon, moment, notify, plural, say } from "./elements.js";
import { address, call } from "./service.js";
import { getReader, setReader } from "./reader.js";
import { isDoubtful, isOpen } from "./reading.js";

const FILES = [
  ["differential.pdf", "Report (PDF)"],
  ["differential.csv", "Differential (CSV)"],
  ["cells.csv", "Cells (CSV)"],
  ["differential.json", "FHIR (JSON)"],
  ["set.zip", "Labelled set (ZIP)"],
];

export function describeSigned({ signature, version }) {
  return `Signed by ${signature?.name ?? "?"}, ${moment(signature?.when)}${version > 1 ? `, version ${version}` : ""}.`;
}

/** Exports as plain links: they work without a click being caught. Beside them, what labels are good for. */
export function makeExports({ reading }) {
  const gone = Boolean(reading.slide.images_deleted);
  const files = el(
    "details",
    { class: "menu", open: reading.signed },
    el("summary", {}, el("span", { text: reading.signed ? "Export" : "Export as preliminary" })),
    el(
      "ul",
      {},
      FILES.filter(([file]) => file !== "set.zip" || !gone).map(([file, title]) =>
        el(
          "li",
          {},
          el(
            "a",
            { href: `${address(reading.path)}/export/${file}`, download: "", data: { file } },
            icon("save"),
            el("span", { text: title }),
          ),
        ),
      ),
    ),
    el("p", {
      class: "hint",
      text: gone
        ? "There is no labelled set: it needs the images, and they are deleted. Boxes, labels and counts are kept."
        : "The labelled set holds each reviewed cell with its label; leuko adapt and leuko train read it.",
    }),
  );
  const adapt = el(
    "a",
    { class: "adapt", href: `#/slides/${reading.slideId}/${reading.id}/adaptation` },
    icon("adapt"),
    el("span", { text: "Adapt the model to these cells" }),
  );
  return [files, adapt];
}

/** Waits until all own changes are kept and counted; false when the person has gone on meanwhile. */
async function settle(reading) {
  while (reading.waiting || reading.differential.revision < reading.revision) {
    await reading.queue;
    await reading.count();
  }
  return !reading.stopped.signal.aborted;
}

export async function sign(review) {
  if (review.signing) return;
  review.signing = true;
  try {
    if (await settle(review.reading)) await askToSign(review);
  } catch (error) {
    notify(error.message, { kind: "bad", id: "signing" });
  } finally {
    review.signing = false;
  }
}

async function askToSign(review) {
  const { reading } = review;
  // What the dialog says is what is signed: a change that arrives while it is open isn't.
  const seen = reading.revision;
  const cells = [...reading.cells.values()];
  const doubtful = cells.filter(isDoubtful).length;
  const open = cells.filter((cell) => isOpen(cell) && !isDoubtful(cell)).length;
  const name = entry("Your name", {
    maxlength: 100,
    required: true,
    autocomplete: "name",
    value: getReader(), // the reading's own reader may be somebody else
  });
  const leave = el("input", { type: "checkbox", id: "leave" });
  const notes = [];
  if (open)
    notes.push(
      el("p", {
        class: "hint",
        text: `${plural(open, "cell")} that the machine is sure of ${open === 1 ? "was" : "were"} not confirmed one by one or in a group. The signature stands for ${open === 1 ? "it" : "them"} too.`,
      }),
    );
  if (doubtful) {
    notes.push(
      el(
        "div",
        { class: "check" },
        leave,
        el("label", {
          for: "leave",
          text: `Leave ${plural(doubtful, "doubtful cell")} out of the count`,
        }),
      ),
    );
  }
  const found = reading.differential.reviewed;
  if (found.cells < found.target)
    notes.push(
      el("p", {
        class: "hint",
        text: `${found.target} leukocytes were to be counted; ${found.target - found.cells} are missing.`,
      }),
    );
  const { keep_images: keep } = reading.slide;
  notes.push(
    el("p", {
      class: "hint",
      text: keep
        ? "The images are kept."
        : "Its images are deleted when no reading of this slide is open any more; boxes, labels and counts remain. The labelled set, and adapting the model, need the images: do that before, if it is wanted.",
    }),
  );
  let answer = null;
  const done = await ask(
    "Sign the differential",
    el(
      "div",
      {},
      el(
        "p",
        {},
        el("strong", { text: `${found.cells} leukocytes` }),
        ` on ${reading.slide.name}: ${found.rows
          .filter((row) => row.count)
          .map((row) => `${row.label} ${row.percent.toFixed(1)}\u00a0%`)
          .join(", ")}.`,
      ),
      name.whole,
      notes,
    ),
    {
      yes: "Sign",
      check: async () => {
        if (!name.input.value.trim()) return "A signature needs a name.";
        try {
          answer = await call("POST", `${reading.path}/signature`, {
            body: {
              name: name.input.value.trim(),
              revision: seen,
              leave_unidentified: leave.checked,
            },
          });
        } catch (error) {
          if (error.status !== 409) throw error;
          await reading.reload();
          return "Somebody changed this reading after these numbers were counted, so nothing was signed. Cancel, look at what changed, and press Sign again.";
        }
        return "";
      },
    },
  );
  if (!done) return;
  setReader(name.input.value);
  if (answer) await reading.reload();
  say("Signed. The reading is locked.");
  document.querySelector(".exports summary")?.focus();
}

/** Opens a signed reading again, as a new version with its reason. */
export async function amend(review) {
  const { reading } = review;
  const reason = entry(
    "Reason",
    { maxlength: 500, required: true, rows: 3 },
    "It stays in the trail, beside the version that was signed.",
  );
  const name = entry("Your name", {
    maxlength: 100,
    required: true,
    autocomplete: "name",
    value: getReader(),
  });
  const done = await ask("A new version", el("div", {}, reason.whole, name.whole), {
    yes: "Begin the new version",
    check: async () => {
      if (!reason.input.value.trim()) return "A new version needs a reason.";
      if (!name.input.value.trim()) return "A new version needs a name.";
      await call("POST", `${reading.path}/versions`, {
        body: { reason: reason.input.value.trim(), name: name.input.value.trim() },
      });
      return "";
    },
  });
  if (!done) return;
  setReader(name.input.value);
  await reading.reload();
  notify(`Version ${reading.version} is open. The signed one before it stays as it was.`, {
    seconds: 12,
  });
}
