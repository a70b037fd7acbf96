"use strict";

// What was answered, one object a patch: name, label, probability, error, file.
const answers = [];
const MOST_ROWS = 500; // that the page shows; the CSV holds all
const A_REQUEST = 32; // files, so that answers come soon
const place = (id) => document.getElementById(id);
const body = document.querySelector("#answers tbody");
let most = { files: 256, bytes: 32 << 20 };
let queue = Promise.resolve();
let waiting = 0, generation = 0;

async function asked(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw new Error("the server does not answer; is hcd serve still running?");
  }
  if (!response.ok) {
    let text = `the server answered ${response.status}`;
    try { text = (await response.json()).error || text; } catch (error) { /* no JSON */ }
    throw new Error(text);
  }
  return response;
}

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text; // never HTML: names are the user's
  if (name) made.className = name;
  return made;
}

async function begin() {
  const card = await (await asked("model")).json();
  most = { files: card.most_files, bytes: card.most_bytes };
  place("use").textContent = card.intended_use;
  place("limits").textContent = card.limits;
  const here = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  const kept = here ? "They stay on this machine." : "The server holds them in memory alone, while it answers.";
  const side = card.recipe.original_size;
  place("size").textContent =
    `${side} x ${side} px at ${card.spacing_um_px} micrometres a px, 8-bit RGB; TIFF, PNG or JPEG. ${kept}`;
  const auc = card.metrics.valid_auc;
  const split = card.splits.valid_auc;
  const measured = typeof auc === "number" ? `, validation AUC ${auc.toFixed(4)} (split: ${split || "not recorded"})` : "";
  place("model").textContent = `Model: ${card.recipe.arch}${measured}, weights ${card.weights_sha256.slice(0, 12)}`;
  const count = card.examples;
  place("examples").addEventListener("click", () => add(Array.from({ length: count }, (_, i) => example(i))));
}

// A patch that is fetched only when its turn comes.
function example(number) {
  return async () => new File([await (await asked(`examples/${number}`)).blob()], `drawn example ${number + 1}.png`);
}

function add(files) {
  waiting += files.length;
  const mine = generation;
  for (const part of parts(files)) {
    queue = queue.then(async () => {
      try {
        if (mine === generation) await answer(part, mine);
      } finally {
        if (mine === generation) {
          waiting -= part.length;
          show();
        }
      }
    });
  }
  show();
}

// Files by the request: few at a time, and never more bytes than one may hold.
function parts(files) {
  const found = [];
  let part = [], size = 0;
  for (const file of files) {
    const more = (file.size || 0) + 1000;
    if (part.length === Math.min(A_REQUEST, most.files) || (part.length && size + more > most.bytes)) {
      found.push(part);
      part = [];
      size = 0;
    }
    part.push(file);
    size += more;
  }
  return part.length ? [...found, part] : found;
}

// A file once it has been read, or its name and why it could not be: it may be gone, or a folder.
async function held(file) {
  const name = file.name || "a drawn example";
  try {
    const given = typeof file === "function" ? await file() : file;
    return new File([await given.arrayBuffer()], given.name);
  } catch (error) {
    return { name, error: `${name} cannot be read (${error.message}); choose it again` };
  }
}

async function answer(part, mine) {
  const files = await Promise.all(part.map(held));
  const good = files.filter((file) => !file.error);
  let found = [];
  try {
    const form = new FormData();
    for (const file of good) form.append("files", file, file.name);
    const path = "predict?pictures=true";
    if (good.length) found = (await (await asked(path, { method: "POST", body: form })).json()).answers;
  } catch (error) {
    found = good.map(() => ({ label: "", probability: null, error: error.message }));
  }
  const answered = found.values();
  found = files.map((file) => (file.error ? { label: "", probability: null, error: file.error } : answered.next().value));
  if (mine !== generation) return; // cleared meanwhile
  found.forEach((one, i) => {
    const row = { ...one, name: files[i].name, file: files[i] };
    answers.push(row);
    if (answers.length <= MOST_ROWS) body.append(line(row));
    delete row.picture; // shown, and no longer needed
    if (answers.length > MOST_ROWS) delete row.file;
  });
}

function line(row) {
  const made = element("tr");
  const patch = element("td"), name = element("td", row.name, "name"), said = element("td"), looks = element("td");
  if (row.error) {
    said.append(element("span", row.error, "error"));
  } else {
    const image = element("img");
    image.src = `data:image/png;base64,${row.picture}`;
    image.alt = `patch ${row.name}`;
    patch.append(image);
    said.append(element("strong", row.label), element("div", `tumour probability ${row.probability.toFixed(3)}`));
    said.append(bar(row));
    const button = element("button", "Show");
    button.setAttribute("aria-label", `show where the model looks in ${row.name}`);
    button.addEventListener("click", () => explain(row, looks, button));
    looks.append(button);
  }
  made.append(patch, name, said, looks);
  return made;
}

function bar(row) {
  const space = "http://www.w3.org/2000/svg";
  const made = document.createElementNS(space, "svg"), filled = document.createElementNS(space, "rect");
  made.setAttribute("class", "bar");
  made.setAttribute("aria-hidden", "true");
  filled.setAttribute("width", `${100 * row.probability}%`);
  filled.setAttribute("height", "100%");
  filled.setAttribute("class", row.label);
  made.append(filled);
  return made;
}

async function explain(row, cell, button) {
  button.disabled = true;
  const form = new FormData();
  form.append("file", row.file, row.name);
  try {
    const response = await asked("explain", { method: "POST", body: form });
    const figure = element("figure"), image = element("img");
    const title = response.headers.get("Heatmap-Title");
    image.src = URL.createObjectURL(await response.blob());
    image.alt = `${title} of ${row.name}`;
    figure.append(image, element("figcaption", `${title}; the white box is the centre 32 x 32 px`));
    cell.replaceChildren(figure);
  } catch (error) {
    button.disabled = false;
    cell.append(element("div", error.message, "error"));
  }
}

function show() {
  const done = answers.length, bad = answers.filter((row) => row.error).length;
  place("answers").hidden = !done;
  place("download").disabled = place("clear").disabled = !done;
  place("progress").hidden = !waiting;
  place("progress").value = done / Math.max(done + waiting, 1);
  const left = waiting ? `, ${waiting} to go` : "";
  const wrong = bad ? `, ${bad} of them could not be read` : "";
  place("state").textContent = done || waiting ? `${done} answered${wrong}${left}` : "";
  place("more").hidden = done <= MOST_ROWS;
  place("more").textContent = `The first ${MOST_ROWS} are shown; the CSV holds all ${done}.`;
}

// A cell that a spreadsheet takes for text, whatever it begins with.
function cell(value) {
  const text = String(value ?? "");
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return `"${safe.replaceAll('"', '""')}"`;
}

function download() {
  const lines = answers.map((row) => [row.name, row.label, row.probability, row.error].map(cell).join(","));
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([["path,label,probability,error", ...lines, ""].join("\r\n")], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

function clear() {
  generation += 1;
  waiting = 0;
  answers.length = 0;
  for (const image of body.querySelectorAll("figure img")) URL.revokeObjectURL(image.src);
  body.replaceChildren();
  show();
}

const drop = place("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // a file beside the box would replace the page
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") add([...event.dataTransfer.files]);
  });
}
place("choose").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = ""; // so that the same file may be chosen again
});
place("download").addEventListener("click", download);
place("clear").addEventListener("click", clear);
begin().catch((error) => { place("state").textContent = error.message; });
