// Images that a person hands over: dropped, or chosen. Knows files; knows nothing of slides.

const HIDDEN = /(^|\/)(\.|Thumbs\.db$|desktop\.ini$|__MACOSX\/)/i;

/** From a drop: files and, through all their folders, what is in them. */
export async function readDrop(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return keep([...transfer.files].map((file) => ({ file, name: file.name })));
  const found = [];
  for (const entry of entries) await walk(entry, "", found);
  return keep(found);
}

/** From a file or folder picker. */
export function readPicked(input) {
  return keep(
    [...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name })),
  );
}

function keep(found) {
  return found
    .filter(({ name }) => !HIDDEN.test(name))
    .sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
}

async function walk(entry, above, found) {
  const name = above + entry.name;
  if (entry.isFile) {
    found.push({ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), name });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // a browser gives at most a hundred at a time
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) return;
    for (const inner of part) await walk(inner, `${name}/`, found);
  }
}
