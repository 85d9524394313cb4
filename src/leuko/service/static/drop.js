// The place where images are dropped, with two pickers for those who don't drag.

import { button, el, icon } from "./elements.js";
import { readDrop, readPicked } from "./files.js";

/** `take` hears of what came: [{file, name}]. */
export function makeDrop(take, { compact = false } = {}) {
  const pick = (facts) => {
    const input = el("input", {
      type: "file",
      class: "unseen",
      tabindex: -1,
      "aria-hidden": "true",
      multiple: true,
      ...facts,
    });
    input.addEventListener("change", () => {
      take(readPicked(input));
      input.value = "";
    });
    return input;
  };
  const images = pick({ accept: "image/*,.tif,.tiff,.bmp", data: { pick: "images" } });
  const folder = pick({ webkitdirectory: true, data: { pick: "folder" } });
  const zone = el(
    "div",
    { class: compact ? "drop compact" : "drop" },
    compact ? null : icon("images"),
    el("p", {
      class: "big",
      text: compact ? "Drop more images here" : "Drop the images of a slide here",
    }),
    compact
      ? null
      : el("p", {
          class: "hint",
          text: "A folder, or as many fields as you like. They stay on this service.",
        }),
    el(
      "div",
      { class: "row centre" },
      button("Choose images", () => images.click(), { icon: "images" }),
      button("Choose a folder", () => folder.click(), { icon: "folder" }),
    ),
    images,
    folder,
  );
  const over = (on) => zone.classList.toggle("over", on);
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  zone.addEventListener("dragleave", () => over(false));
  zone.addEventListener("drop", async (event) => {
    event.preventDefault();
    over(false);
    take(await readDrop(event.dataTransfer));
  });
  return zone;
}
