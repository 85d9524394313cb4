// Images on their way: each with its progress, each can be cancelled, bad ones are listed with the
// reason and the rest goes on. What has arrived is on the server and outlives a reload.

import { button, el, icon, notify, plural, say } from "./elements.js";
import { makeDrop } from "./drop.js";
import { call, makeId, send, sleep } from "./service.js";

const AT_ONCE = 2;
const waiting = new Map(); // slide → files handed over by the view before

/** Files for a slide that was just made. */
export function handOver(slide, files) {
  waiting.set(String(slide), files);
}

export async function openUpload(work, sid, rid) {
  const slide = await call("GET", `slides/${sid}`);
  document.title = `Images · ${slide.name} · Leuko`;
  const list = el("ul", { class: "files", "aria-label": "Images", tabindex: 0 });
  const sum = el("p", { class: "big", role: "status" });
  const bar = el("progress", { "aria-label": "All images", max: 1, value: 0 });
  const stop = button("Cancel the rest", () => jobs.forEach((job) => job.cancel()), {
    icon: "close",
  });
  const go = el(
    "a",
    { class: "button strong", href: `#/slides/${sid}/${rid}/gallery` },
    el("span", { text: "Review the cells" }),
    icon("next"),
  );
  const jobs = [];
  let running = 0;
  let cells = 0;
  let settling = "";

  const refresh = () => {
    const done = jobs.filter((job) => job.ended).length;
    const aside = jobs.filter((job) => job.state === "aside").length;
    const moving = done < jobs.length || Boolean(settling);
    bar.max = jobs.length || 1;
    bar.value = jobs.reduce((all, job) => all + (job.ended ? 1 : 0.9 * (job.sent ?? 0.9)), 0);
    bar.hidden = !jobs.length;
    stop.hidden = done === jobs.length;
    go.classList.toggle("strong", !moving);
    const text = `${done} of ${plural(jobs.length, "image")} done · ${plural(cells, "cell")} found${aside ? ` · ${aside} set aside` : ""}`;
    if (!jobs.length) sum.textContent = "No images yet.";
    else if (sum.textContent !== (settling || text)) sum.textContent = settling || text;
  };

  /** Once all have arrived: the first ones were looked at before the scale of the others was known. */
  const finish = async () => {
    if (settling || refresh.told || !jobs.length || jobs.some((job) => !job.ended)) return;
    refresh.told = true;
    settling = `All ${plural(jobs.length, "image")} are here. Their common scale is measured …`;
    refresh();
    await settleScale(sid, (left) => {
      settling = `All ${plural(jobs.length, "image")} are here. ${left} still to be looked at again, at the scale of them all …`;
      refresh();
    });
    const { fields } = await call("GET", `slides/${sid}`).catch(() => slide);
    const now = new Map(fields.map((field) => [field.id, field]));
    for (const job of jobs) {
      const field = now.get(job.field);
      if (field && job.state === "done") job.note.textContent = describe(field);
    }
    cells = fields.reduce((all, field) => all + field.cells.length, 0);
    settling = "";
    refresh();
    if (!refresh.told) return finish(); // more have come meanwhile
    say(`All images are done. ${plural(cells, "cell")} found.`);
    go.focus();
  };

  const next = () => {
    while (running < AT_ONCE) {
      const job = jobs.find((one) => one.state === "waits");
      if (!job) break;
      running += 1;
      deliver(job, sid, refresh).then((field) => {
        running -= 1;
        if (field) cells += field.cells.length;
        next();
        refresh();
        finish();
      });
    }
  };

  const take = (files) => {
    refresh.told = false;
    for (const one of files) {
      const job = makeJob(one.name, refresh);
      job.file = one.file;
      jobs.push(job);
      list.append(job.row);
    }
    next();
    refresh();
    finish();
  };

  for (const field of slide.fields) {
    const job = makeJob(field.name, refresh);
    cells += field.cells.length;
    settle(job, field);
    jobs.push(job);
    list.append(job.row);
  }
  work.append(
    el(
      "section",
      { class: "sheet narrow upload" },
      el("p", { class: "hint" }, el("a", { href: "#/", text: "All slides" })),
      el("h1", { text: slide.name }),
      sum,
      bar,
      el("div", { class: "row" }, go, stop),
      list,
      makeDrop(take, { compact: true }),
      el("p", {
        class: "hint",
        text: "An image that has arrived is safe. If you close the page before the rest has arrived, drop those again: the same image is never counted twice.",
      }),
    ),
  );
  const files = waiting.get(sid) ?? [];
  waiting.delete(sid);
  if (files.length) take(files);
  else refresh.told = true;
  refresh();
  const warn = (event) => {
    if (jobs.some((job) => !job.ended)) event.preventDefault();
  };
  window.addEventListener("beforeunload", warn);
  return () => window.removeEventListener("beforeunload", warn); // what is on its way goes on
}

function makeJob(name, refresh) {
  const bar = el("progress", { max: 1, value: 0, "aria-label": `Progress of ${name}` });
  const note = el("span", { class: "note", text: "waits" });
  const cancel = button("", () => job.cancel(), {
    icon: "close",
    kind: "plain icon-only",
    label: `Cancel ${name}`,
  });
  const job = {
    name,
    bar,
    note,
    cancelButton: cancel,
    state: "waits",
    ended: false,
    sent: 0,
    abort: new AbortController(),
    key: makeId(),
    row: el("li", {}, el("span", { class: "file", text: name }), bar, note, cancel),
    cancel() {
      if (job.ended) return;
      job.abort.abort();
      if (job.state === "waits") end(job, "cancelled", "cancelled");
      refresh();
    },
  };
  return job;
}

function end(job, state, text) {
  job.state = state;
  job.ended = true;
  job.row.className = state;
  job.note.textContent = text;
  job.bar.remove();
  job.cancelButton.remove();
}

function settle(job, field) {
  if (field.set_aside)
    end(job, "aside", `set aside: ${field.set_aside.detail || field.set_aside.reason}`);
  else end(job, "done", describe(field));
  job.field = field.id;
}

function describe(field) {
  return field.cells.length ? plural(field.cells.length, "cell") : "no leukocyte";
}

/** Has images looked at again until all were looked at with one scale; what fails stays as it was. */
async function settleScale(sid, tell) {
  for (let attempt = 0; attempt < 8; ) {
    try {
      const { field, left } = await call("POST", `slides/${sid}/scale`);
      if (field === null) return;
      attempt = 0;
      tell(left);
    } catch (error) {
      if (error.status !== 0 && error.status !== 429 && error.status !== 503) {
        notify(error.message, { kind: "warn" });
        return;
      }
      attempt += 1;
      await sleep(Math.max(error.wait ?? 0, Math.min(2 ** attempt, 20)));
    }
  }
}

async function deliver(job, sid, refresh) {
  job.state = "sending";
  job.note.textContent = "is sent";
  const progress = (fraction) => {
    job.sent = fraction ?? 1;
    if (fraction === null) job.bar.removeAttribute("value");
    else job.bar.value = fraction;
    job.note.textContent = fraction === null ? "is looked at" : "is sent";
    refresh();
  };
  for (let attempt = 0; ; attempt += 1) {
    try {
      const field = await send(`slides/${sid}/fields`, job.file, {
        name: job.name,
        key: job.key,
        progress,
        signal: job.abort.signal,
      });
      settle(job, field);
      return field;
    } catch (error) {
      if (error.name === "AbortError" || job.abort.signal.aborted) {
        end(job, "cancelled", "cancelled");
        return null;
      }
      if (error.status === 401) {
        await call("GET", "slides"); // asks for the token
        continue;
      }
      if (error.status === 0 || error.status === 429 || error.status === 503) {
        job.note.textContent = "the service is busy; waits";
        await sleep(Math.max(error.wait ?? 0, Math.min(2 ** attempt, 20)));
        if (!job.abort.signal.aborted) continue;
        end(job, "cancelled", "cancelled");
        return null;
      }
      if (error.code === "same_file") {
        end(job, "done", `is here already as ${error.body.error.name}`);
      } else end(job, "aside", `set aside: ${error.message}`);
      return null;
    }
  }
}
