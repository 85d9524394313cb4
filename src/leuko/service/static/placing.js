// Boxes on their way: one for a missed cell, two or more for a joined one. Pure: knows numbers.

const LEAST = 6; // px of the field

/** The side of the middle one of some boxes; `otherwise` without any. */
export function findUsualSide(boxes, otherwise) {
  const sides = boxes.map((box) => Math.max(box[2] - box[0], box[3] - box[1]));
  return sides.sort((a, b) => a - b)[Math.floor(sides.length / 2)] ?? otherwise;
}

/** `kind` is add or split; `boxes` are [x0, y0, x1, y1]; `drawn` counts those drawn by hand. */
export class Placing {
  constructor(kind, boxes, whole = null) {
    this.kind = kind;
    this.boxes = boxes;
    this.whole = whole; // what is split
    this.drawn = 0;
  }

  /** A box of a usual size in the middle of what is shown. */
  static add(x, y, side) {
    const half = side / 2;
    return new Placing("add", [[x - half, y - half, x + half, y + half]]);
  }

  /** Two halves of a box, cut through its longer side. */
  static split(box) {
    const [x0, y0, x1, y1] = box;
    const across = x1 - x0 >= y1 - y0;
    return new Placing("split", cut(box, across, across ? (x0 + x1) / 2 : (y0 + y1) / 2), box);
  }

  /** Whether the two halves lie side by side. */
  get across() {
    return this.boxes[0][2] === this.boxes[1][0];
  }

  /** Cuts the other way. */
  turn() {
    const [x0, y0, x1, y1] = this.whole;
    this.boxes = cut(this.whole, !this.across, this.across ? (y0 + y1) / 2 : (x0 + x1) / 2);
    this.drawn = 0;
  }

  /** Moves the box or the border between halves; `grow` changes the size instead. */
  shift(dx, dy, grow = false) {
    if (this.kind === "add") {
      const [x0, y0, x1, y1] = this.boxes[0];
      const box = grow
        ? [x0 - dx / 2, y0 - dy / 2, x1 + dx / 2, y1 + dy / 2]
        : [x0 + dx, y0 + dy, x1 + dx, y1 + dy];
      if (box[2] - box[0] >= LEAST && box[3] - box[1] >= LEAST) this.boxes = [box];
    } else if (!this.drawn) {
      const [x0, y0, x1, y1] = this.whole;
      const [low, high] = this.across ? [x0, x1] : [y0, y1];
      const at = this.across ? this.boxes[0][2] + dx : this.boxes[0][3] + dy;
      this.boxes = cut(this.whole, this.across, Math.min(Math.max(at, low + LEAST), high - LEAST));
    }
  }

  /** Brings the box, or the border, to a place. */
  moveTo(x, y) {
    const [x0, y0, x1, y1] = this.boxes[0];
    if (this.kind === "add") this.shift(x - (x0 + x1) / 2, y - (y0 + y1) / 2);
    else this.shift(x - x1, y - y1);
  }

  /** Takes a box that is being drawn; `done` when the hand has let go. */
  draw(from, to, done = false) {
    this.boxes[this.kind === "add" ? 0 : this.drawn % 2] = [
      Math.min(from.x, to.x),
      Math.min(from.y, to.y),
      Math.max(from.x, to.x),
      Math.max(from.y, to.y),
    ];
    if (done) this.drawn += 1;
  }

  /** The boxes within a field, in tenths of a px. */
  clip({ width, height }) {
    return this.boxes.map(([x0, y0, x1, y1]) =>
      [Math.max(0, x0), Math.max(0, y0), Math.min(width, x1), Math.min(height, y1)].map(
        (side) => Math.round(side * 10) / 10,
      ),
    );
  }
}

function cut([x0, y0, x1, y1], across, at) {
  const halves = across ? [x0, y0, at, y1, at, y0, x1, y1] : [x0, y0, x1, at, x0, at, x1, y1];
  return [halves.slice(0, 4), halves.slice(4)];
}
