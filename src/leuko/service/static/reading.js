// One reading as the server knows it. Every change goes to the server first and is shown when it is
// kept there; what others change comes back by the long poll. Knows nothing of what is shown.

import { address, call, makeId, sleep } from "./service.js";

export const UNIDENTIFIED = "unidentified";
export const REJECTED = "rejected";
export const REVIEWED = "reviewed";

/**
 * Events: `cells` {ids, mine, by}, `state`, `differential`, `fields`, `conflict` {cells, wanted, by},
 * `trouble` {waiting}, `refused` {error}.
 */
export class Reading extends EventTarget {
  constructor(slide, id) {
    super();
    this.slideId = slide;
    this.id = id;
    this.cells = new Map();
    this.revision = 0;
    this.queue = Promise.resolve();
    this.pending = new Map(); // changes that aren't kept yet, each with the revision it is made from
    this.own = new Set(); // ids of changes made here
    this.stopped = new AbortController();
  }

  /** How many changes aren't kept yet. */
  get waiting() {
    return this.pending.size;
  }

  get path() {
    return `slides/${this.slideId}/readings/${this.id}`;
  }

  get signed() {
    return this.state === "signed";
  }

  /** Where the picture of a cell is; nowhere when it was deleted after the signature. */
  portrait(cell, size) {
    return this.slide.images_deleted
      ? ""
      : `${address(this.path)}/cells/${cell}/image?size=${size}`;
  }

  /** The same for a whole field. */
  image(field, width = 0) {
    if (this.slide.images_deleted) return "";
    return `${address(`slides/${this.slideId}`)}/fields/${field}/image${width ? `?width=${width}` : ""}`;
  }

  async load() {
    const [slide, reading] = await Promise.all([
      call("GET", `slides/${this.slideId}`),
      call("GET", this.path),
    ]);
    // They arrive in any order; a person looks for them by their names.
    slide.fields.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }) || a.id - b.id);
    this.slide = slide;
    this.overtake(reading.cells.filter((cell) => cell.changed > this.revision));
    this.take(reading);
    this.cells.clear();
    for (const cell of reading.cells) this.cells.set(cell.id, cell);
    await this.count();
  }

  take(reading) {
    for (const name of ["reader", "state", "version", "revision", "undo", "redo", "arbitrates"]) {
      if (reading[name] !== undefined) this[name] = reading[name];
    }
    if (reading.signed !== undefined) this.signature = reading.signed;
  }

  tell(name, detail = {}) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /**
   * Takes over what the server says; an answer that was overtaken by a later one is passed over.
   * `made` is the own change that is answered.
   */
  merge(answer, mine, by = "", made = null) {
    if (answer.revision < this.revision) return;
    const cells = answer.cells ?? [];
    const own = new Set(made?.cells);
    // A field that was looked at again at the scale of all images has other cells now.
    const gone = (answer.changes ?? [])
      .filter((change) => change.revision > this.revision)
      .flatMap((change) => change.detail?.gone ?? []);
    for (const id of gone) this.cells.delete(id);
    for (const change of answer.changes ?? []) {
      if (change.revision <= this.revision || !this.own.has(change.id)) continue;
      for (const id of [...change.cells, ...change.made]) own.add(id);
    }
    this.overtake(cells.filter((cell) => !own.has(cell.id) && !(cell.changed <= this.revision)));
    for (const cell of cells) this.cells.set(cell.id, cell);
    this.take(answer);
    if (answer.reading) this.take({ ...answer.reading, revision: answer.revision });
    if (cells.length || gone.length)
      this.tell("cells", { ids: cells.map((cell) => cell.id), mine, by });
    if (gone.length) this.tell("fields");
    this.tell("state");
  }

  /**
   * Somebody else changed these cells. Whoever decided on them before hadn't seen it: such changes
   * are sent with the revision of before, so that the service refuses them.
   */
  overtake(cells) {
    const ids = new Set(cells.map((cell) => cell.id));
    for (const [body, seen] of this.pending)
      if (seen === null && body.cells.some((id) => ids.has(id)))
        this.pending.set(body, this.revision);
  }

  /**
   * One change. Changes are sent one after the other, each with an id of its own: one that the
   * network swallowed is sent again and counts once. `by` is a name, or the promise of one; without
   * a name nothing is sent. Resolves to the changed cells, or null.
   */
  change(kind, facts, by) {
    const body = { id: makeId(), kind, cells: [], ...facts };
    this.pending.set(body, null);
    this.own.add(body.id);
    const result = this.queue
      .then(() => by)
      .then((name) => (name ? this.deliver(Object.assign(body, { by: name })) : null))
      .finally(() => {
        this.pending.delete(body);
        if (!this.waiting) this.count().catch(() => {});
      });
    this.queue = result.catch(() => {});
    return result;
  }

  /** Sends a change until the service has kept or refused it, even if its page was left meanwhile. */
  async deliver(body) {
    for (let attempt = 0; ; attempt += 1) {
      const revision = this.pending.get(body) ?? this.revision;
      try {
        const answer = await call("POST", `${this.path}/changes`, { body: { ...body, revision } });
        if (attempt) this.tell("trouble", { waiting: false });
        this.merge(answer, true, "", body);
        return answer.cells;
      } catch (error) {
        if (error.status === 409) {
          if (attempt) this.tell("trouble", { waiting: false });
          const by = await this.findAuthor(body.cells, revision);
          this.merge(error.body, false);
          this.tell("conflict", { cells: error.body.cells ?? [], wanted: body, error, by });
          return null;
        }
        if (error.status !== 0 && error.status !== 429 && error.status !== 503) {
          this.tell("refused", { error });
          return null;
        }
        this.tell("trouble", { waiting: true });
        await sleep(Math.min(0.5 * 2 ** attempt, 8));
      }
    }
  }

  /** Who else changed one of these cells after a revision; empty if that isn't known. */
  async findAuthor(cells, revision) {
    const news = await call("GET", `${this.path}/changes?since=${revision}`).catch(() => null);
    const about = (change) =>
      !this.own.has(change.id) && [...change.cells, ...change.made].some((id) => cells.includes(id));
    return (news?.changes ?? []).filter(about).pop()?.by ?? "";
  }

  /** The differential as the server counts it. */
  async count() {
    this.differential = await call("GET", `${this.path}/differential`);
    this.tell("differential");
  }

  /** Listens to what others change, until `stop`. */
  async watch() {
    const { signal } = this.stopped;
    let lost = 0;
    while (!signal.aborted) {
      try {
        const asked = performance.now();
        const answer = await call("GET", `${this.path}/changes?since=${this.revision}&wait=20`, {
          signal,
        });
        if (lost) this.tell("trouble", { waiting: false });
        lost = 0;
        await this.queue;
        if (answer.revision <= this.revision) {
          // Nothing new: our own change, or a service that is about to stop and doesn't wait.
          if (performance.now() - asked < 300) await sleep(0.3);
          continue;
        }
        const { state, version } = this;
        this.merge(answer, false, answer.changes?.at(-1)?.by);
        const fields = new Set(this.slide.fields.map((field) => field.id));
        const unknown = (answer.cells ?? []).some((cell) => !fields.has(cell.field));
        if (unknown || this.state !== state || this.version !== version) await this.reload();
        else await this.count();
      } catch (error) {
        if (signal.aborted) return;
        lost += 1;
        if (lost > 1) this.tell("trouble", { waiting: true });
        await sleep(Math.min(lost, 8));
      }
    }
  }

  /** Everything again: after a signature, a new version, or new fields. */
  async reload() {
    const before = this.slide.fields.length;
    await this.load();
    this.tell("cells", { ids: [...this.cells.keys()], mine: true });
    if (this.slide.fields.length !== before) this.tell("fields");
    this.tell("state");
  }

  /** Ends listening. Changes that wait are still sent. */
  stop() {
    this.stopped.abort();
  }
}

// --- what the cells mean to a person -----------------------------------------------------------

/** Under which heading a cell stands: a class, or one of the three that are none. */
export function place(cell) {
  if (cell.deleted) return "deleted";
  if (cell.state === UNIDENTIFIED) return UNIDENTIFIED;
  if (cell.state === REJECTED || !cell.label) return REJECTED;
  return cell.label;
}

/** How sure the machine is of what the cell is called now. */
export function certainty(cell) {
  const all = cell.machine?.probabilities;
  return (cell.label && all?.[cell.label]) ?? cell.machine?.probability ?? 0;
}

/** Whether a person still has to look: neither confirmed nor moved by one. */
export function isOpen(cell) {
  return !cell.deleted && cell.state !== REVIEWED;
}

/** Whether the machine itself doubts. */
export function isDoubtful(cell) {
  return !cell.deleted && (cell.state === UNIDENTIFIED || cell.state === REJECTED);
}

/** Most doubtful first; the order doesn't change while a person works, for it is the machine's. */
export function byDoubt(a, b) {
  const rank = (cell) =>
    cell.machine?.state === REJECTED ? 0 : cell.machine?.state === UNIDENTIFIED ? 1 : 2;
  return (
    rank(a) - rank(b) ||
    (a.machine?.probability ?? 0) - (b.machine?.probability ?? 0) ||
    (a.id < b.id ? -1 : 1)
  );
}

const USUAL = [
  "neutrophil",
  "segmented",
  "band",
  "lymphocyte",
  "monocyte",
  "eosinophil",
  "basophil",
];

/** The classes in the order of a laboratory's form, the others behind them as the model has them. */
export function orderClasses(classes) {
  const rank = (name) => {
    const at = USUAL.findIndex((usual) => name.toLowerCase().startsWith(usual));
    return at < 0 ? USUAL.length : at;
  };
  return classes
    .map((name, at) => [rank(name), at, name])
    .sort((a, b) => a[0] - b[0] || a[1] - b[1])
    .map((one) => one[2]);
}

/** A letter per class: its first one that is free. u, z, y and o are taken by commands. */
export function assignKeys(classes) {
  const taken = new Set(["u", "z", "y", "o"]);
  const keys = new Map();
  for (const first of [true, false]) {
    for (const name of classes) {
      if (keys.has(name)) continue;
      const letters = name.toLowerCase().match(/[a-z]/g) ?? [];
      const letter = (first ? letters.slice(0, 1) : letters).find((one) => !taken.has(one));
      if (!letter) continue;
      taken.add(letter);
      keys.set(name, letter);
    }
  }
  return keys;
}
