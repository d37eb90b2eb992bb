// The page of one X-ray: what the server says of it, drawn. Texts are set as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const LOW = 0.001; // ends of the plot's scale
const SHOWN = 4; // contributions of a card beside the folded ones
// YlOrRd of ColorBrewer: one hue, darker where higher.
const COLOURS = [[255, 255, 178], [254, 204, 92], [253, 141, 60], [240, 59, 32], [189, 0, 38]];
const FLAT = 0.25; // attention of a smaller range is drawn paler

let about = null; // the model
let record = null; // the answer for the image that is shown
let forgotten = new Set(); // names of cases
let opened = 0; // number of the newest upload; answers to older ones are dropped
let asked = 0; // and of the newest question about the image that is shown

/* Elements */

function element(name, options = {}, ...children) {
  const { text, ...attributes } = options;
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

function drawn(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const shown = (name) => name.replaceAll("_", " ");
const share = (value) => (value < 0.0005 ? "<0.001" : value.toFixed(3));
const shareOr = (value, nothing) => (value === null ? nothing : share(value));
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);

/* Requests */

async function request(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server did not answer: is it still running?");
  }
  if (answer.status === 401) location.assign("login");
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? `The server answered ${answer.status}.`);
  return body;
}

async function open(file) {
  const mine = ++opened;
  fail("");
  if (file.size > Number(document.body.dataset.mostBytes)) {
    fail(`${file.name} is too large for this server.`);
    return;
  }
  $("status").className = "";
  $("status").textContent = `Reading ${file.name} …`;
  const form = new FormData();
  form.append("image", file, "image"); // its name stays here
  try {
    about ??= await request("api/model");
    const answer = await request("api/explain", { method: "POST", body: form });
    if (mine !== opened) return;
    const grey = await unpacked(answer.explanation.image);
    if (mine !== opened) return;
    [record, forgotten] = [answer, new Set()];
    asked++;
    show(file.name, grey);
  } catch (error) {
    if (mine === opened) {
      $("status").textContent = "";
      fail(error.message);
    }
  }
}

function fail(message) {
  $("alert").textContent = message;
  $("alert").hidden = !message;
}

// Red holds the upper 8 bits of a pixel, green the lower.
async function unpacked(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  const canvas = element("canvas", { width: picture.naturalWidth, height: picture.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const values = new Uint16Array(data.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = 256 * data[4 * i] + data[4 * i + 1];
  return { width: canvas.width, height: canvas.height, values };
}

/* The whole answer */

function show(name, grey) {
  const unlike = record.unfamiliar === true;
  $("result").hidden = false;
  for (const id of ["findings", "memory"]) $(id).hidden = unlike;
  for (const part of document.querySelectorAll(".of-overlay")) part.hidden = unlike;
  $("memory").hidden ||= !record.evidence;
  $("attention").hidden = !record.explanation.heat_maps.attention;
  const notes = [];
  if (unlike) {
    notes.push(
      "This image is unlike those that the model was trained on " +
        `(${record.unfamiliar_in.join(", ")}): no finding is reported.`,
    );
  }
  if (record.unfamiliar === null) {
    notes.push("It cannot be judged here whether the model was trained on images like this one.");
  }
  notes.push(...record.warnings.map((text) => `Warning: ${text}`));
  fail(notes.join("\n"));
  if (!unlike) {
    list();
    cards();
    update(record.scores);
  }
  const first = sorted()[0]?.name;
  const overlay = !unlike && record.findings?.includes(first) ? first : "";
  choose(overlay);
  viewer.open(grey);
  $("canvas").setAttribute("aria-label", `X-ray ${name}`);
  $("image-title").textContent = name;
  $("status").className = "hidden"; // for screen readers; the page shows it elsewhere
  $("status").textContent = unlike ? `${name}: no finding is reported.` : `${name}: ${verdict(record.scores)}`;
  $(notes.length ? "alert" : "result").scrollIntoView();
}

const reported = (finding, scores) =>
  finding.threshold !== null && scores[finding.name] >= finding.threshold;

// Reported findings first, then by score.
function sorted() {
  const scores = record.scores;
  const key = (finding) => (reported(finding, scores) ? 1 : 0) + scores[finding.name];
  return [...about.findings].sort((a, b) => key(b) - key(a));
}

function verdict(scores) {
  if (about.findings.every((finding) => finding.threshold === null)) {
    return "no threshold is known, so no finding is decided.";
  }
  const found = sorted().filter((finding) => reported(finding, scores));
  if (!found.length) return "no finding reaches its threshold.";
  return `${found.map((f) => `${shown(f.name)} ${share(scores[f.name])}`).join(", ")}.`;
}

/* Findings */

const place = (probability) => {
  const odds = (p) => Math.log(p / (1 - p));
  const inside = Math.min(Math.max(probability, LOW), 1 - LOW);
  return 8 + 184 * (odds(inside) - odds(LOW)) / (-2 * odds(LOW));
};
const MARKS = [0.01, 0.1, 0.5, 0.9, 0.99];

function list() {
  $("rows").replaceChildren(
    ...sorted().map((finding) => {
      const radio = element("input", { type: "radio", name: "overlay", value: finding.name });
      const cells = [
        element("th", { scope: "row", role: "rowheader" }, element("label", {}, radio, shown(finding.name))),
        element("td", { class: "score", role: "cell" }),
        element("td", { class: "plot", "aria-hidden": "true" }),
        element("td", { role: "cell", text: shareOr(finding.threshold, "none") }),
        element("td", { role: "cell", text: shareOr(finding.prevalence, "unknown") }),
      ];
      const row = element("tr", { role: "row" }, ...cells);
      row.finding = finding;
      return row;
    }),
  );
}

function update(scores) {
  const changed = forgotten.size > 0;
  for (const row of $("rows").children) {
    const { finding } = row;
    const [before, now] = [record.scores[finding.name], scores[finding.name]];
    row.classList.toggle("found", reported(finding, scores));
    const [, score, plot] = row.children;
    const uncalibrated = record.uncalibrated.includes(finding.name);
    score.replaceChildren(share(now));
    if (uncalibrated) score.append(" ", element("span", { class: "change", text: "not calibrated" }));
    if (changed && share(now) !== share(before)) {
      score.append(" ", element("span", { class: "change", text: `was ${share(before)}` }));
    }
    plot.replaceChildren(dots(finding, now, changed ? before : null));
  }
  const text = verdict(scores);
  $("verdict").textContent = text.charAt(0).toUpperCase() + text.slice(1);
}

function dots(finding, score, before) {
  const marks = MARKS.map((p) =>
    drawn("line", { class: "grid", x1: place(p), x2: place(p), y1: 2, y2: 20 }),
  );
  if (finding.prevalence !== null) {
    const x = place(finding.prevalence);
    marks.push(drawn("path", { class: "prevalence", d: `M${x} 14l4 7h-8z` }));
  }
  if (finding.threshold !== null) {
    const x = place(finding.threshold);
    marks.push(drawn("line", { class: "threshold", x1: x, x2: x, y1: 2, y2: 20 }));
  }
  if (before !== null) {
    const [from, to] = [place(before), place(score)];
    marks.push(drawn("line", { class: "moved", x1: from, x2: to, y1: 11, y2: 11 }));
    marks.push(drawn("circle", { class: "before", cx: from, cy: 11, r: 4 }));
  }
  marks.push(drawn("circle", { class: "score", cx: place(score), cy: 11, r: 5 }));
  return drawn("svg", { viewBox: "0 0 200 22" }, ...marks);
}

$("scale").append(
  drawn(
    "svg",
    { viewBox: "0 0 200 14", "aria-hidden": "true" },
    ...MARKS.map((p) => drawn("text", { x: place(p), y: 11 }, String(p))),
  ),
);

/* Stored cases */

function cards() {
  const thumbnails = record.explanation.thumbnails;
  const kind = about.votes ? "their shares in the vote" : "what each adds to the logits";
  $("memory-text").textContent = record.evidence.length
    ? `The stored cases that the scores lean on, with ${kind}. Forget one to see the scores without it.`
    : "No stored case was read.";
  $("cards").replaceChildren(...record.evidence.map((entry) => card(entry, thumbnails)));
  $("instead").hidden = true;
  $("changes").hidden = true;
}

function card(entry, thumbnails) {
  const known = entry.labels === null ? "labels unknown" : entry.labels.map(shown).join(", ");
  const texts = [
    element("h4", { text: entry.case }),
    element("p", { text: known || "no finding" }),
    element("p", { class: "quiet", text: `cosine ${entry.cosine.toFixed(3)}` }),
  ];
  const top = element("div", { class: "top" });
  const picture = thumbnails[entry.case];
  if (picture) top.append(element("img", { src: picture, alt: `Stored case ${entry.case}` }));
  top.append(element("div", {}, ...texts));
  const off = forgotten.has(entry.case);
  const button = element("button", {
    type: "button",
    role: "switch",
    "aria-checked": off,
    "aria-label": `Forget this case, ${entry.case}`,
    text: "Forget this case",
  });
  const made = element("article", { class: off ? "card forgotten" : "card" }, top);
  if (entry.contributions) made.append(...contributions(entry.contributions));
  made.append(button);
  button.addEventListener("click", () => toggle(entry.case, button, made));
  return made;
}

function contributions(values) {
  const largest = Math.max(...Object.values(values).map(Math.abs), 1e-9);
  const names = Object.keys(values).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
  const row = (name) => {
    const [value, length] = [values[name], 48 * Math.abs(values[name]) / largest];
    const x = value < 0 ? 50 - length : 50;
    const bar = drawn(
      "svg",
      { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      drawn("rect", { class: value < 0 ? "down" : "up", x, y: 1, width: length, height: 8 }),
      drawn("line", { class: "zero", x1: 50, x2: 50, y1: 0, y2: 10 }),
    );
    return element(
      "tr",
      {},
      element("th", { scope: "row", text: shown(name) }),
      element("td", { class: "bar" }, bar),
      element("td", { text: signed(value) }),
    );
  };
  const table = (some) => element("table", {}, element("tbody", {}, ...some.map(row)));
  const first = names.filter((name) => Math.abs(values[name]) >= 0.0005).slice(0, SHOWN);
  const rest = names.filter((name) => !first.includes(name));
  const folded = element("details", {}, element("summary", { text: "All findings" }), table(rest));
  return first.length ? [table(first), folded] : [folded];
}

async function toggle(name, button, made) {
  const set = (off) => {
    off ? forgotten.add(name) : forgotten.delete(name);
    button.setAttribute("aria-checked", off);
    made.classList.toggle("forgotten", off);
  };
  const off = !forgotten.has(name);
  set(off);
  if (!(await read())) set(!off);
}

// Whether the scores are those without the forgotten cases, or a later question is on its way.
async function read() {
  const mine = ++asked;
  const body = JSON.stringify({ features: record.explanation.features, cases: [...forgotten] });
  const headers = { "Content-Type": "application/json" };
  try {
    const answer = await request("api/forget", { method: "POST", body, headers });
    if (mine !== asked) return true;
    const scores = forgotten.size ? answer.scores : record.scores;
    update(scores);
    const own = new Set(record.evidence.map((entry) => entry.case));
    const others = answer.evidence.filter((entry) => !own.has(entry.case));
    const kept = [...$("instead-cards").querySelectorAll(".card.forgotten")];
    $("instead-cards").replaceChildren(
      ...(forgotten.size ? kept : []),
      ...others.map((entry) => card(entry, answer.thumbnails)),
    );
    $("instead").hidden = !$("instead-cards").children.length;
    $("changes").hidden = !forgotten.size;
    $("changes-text").textContent = changes(scores);
    $("status").textContent = forgotten.size ? changes(scores) : verdict(scores);
    return true;
  } catch (error) {
    if (mine === asked) fail(error.message);
    return mine !== asked;
  }
}

// The largest changes, on the scale of the plot.
function changes(scores) {
  const moved = (name) => Math.abs(place(scores[name]) - place(record.scores[name]));
  const names = Object.keys(scores).filter((n) => share(scores[n]) !== share(record.scores[n]));
  names.sort((a, b) => moved(b) - moved(a));
  const texts = names
    .slice(0, 3)
    .map((n) => `${shown(n)} ${share(record.scores[n])} → ${share(scores[n])}`);
  const cases = forgotten.size === 1 ? "1 case" : `${forgotten.size} cases`;
  return `Without ${cases}: ${texts.join(", ") || "no score changes by 0.001"}.`;
}

$("remember").addEventListener("click", () => {
  forgotten.clear();
  cards();
  read();
  $("memory-title").scrollIntoView({ block: "nearest" });
});

/* The image */

class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.grey = null;
    this.heat = null;
    this.base = element("canvas");
    [this.x, this.y] = [0.5, 0.5]; // the point of the image in the middle
    this.pointers = new Map();
    for (const id of ["window", "level"]) {
      $(id).addEventListener("input", () => { this.shade(); this.draw(); });
    }
    for (const id of ["zoom", "opacity"]) $(id).addEventListener("input", () => this.draw());
    $("reset").addEventListener("click", () => this.reset());
    canvas.addEventListener("keydown", (event) => this.press(event));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => this.pointers.delete(event.pointerId));
    }
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  open(grey) {
    this.grey = grey;
    [this.base.width, this.base.height] = [grey.width, grey.height];
    this.reset();
  }

  reset() {
    [$("window").value, $("level").value, $("zoom").value] = [100, 50, 1];
    [this.x, this.y] = [0.5, 0.5];
    this.shade();
    this.draw();
  }

  // Map window and level to 8 bits.
  shade() {
    if (!this.grey) return;
    const width = Number($("window").value) / 100;
    const low = Number($("level").value) / 100 - width / 2;
    const table = new Uint8ClampedArray(65536);
    for (let i = 0; i < 65536; i++) table[i] = 255 * (i / 65535 - low) / width;
    const { values } = this.grey;
    const context = this.base.getContext("2d");
    const pixels = context.createImageData(this.grey.width, this.grey.height);
    const words = new Uint32Array(pixels.data.buffer);
    for (let i = 0; i < values.length; i++) words[i] = 0xff000000 | (table[values[i]] * 0x010101);
    context.putImageData(pixels, 0, 0);
  }

  // Colour a map of few places, interpolated between their centres.
  overlay(heat) {
    this.heat = heat && this.coloured(heat);
    this.draw();
  }

  coloured(heat) {
    const [rows, columns, side] = [heat.length, heat[0].length, 192];
    const canvas = element("canvas", { width: side, height: side });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(side, side);
    const at = (i, n) => Math.min(Math.max((i + 0.5) * n / side - 0.5, 0), n - 1);
    for (let i = 0; i < side; i++) {
      const y = at(i, rows);
      const [top, below] = [heat[Math.floor(y)], heat[Math.ceil(y)]];
      for (let j = 0; j < side; j++) {
        const x = at(j, columns);
        const [left, right] = [Math.floor(x), Math.ceil(x)];
        const upper = top[left] + (x - left) * (top[right] - top[left]);
        const lower = below[left] + (x - left) * (below[right] - below[left]);
        const value = upper + (y - Math.floor(y)) * (lower - upper);
        const step = Math.min(Math.floor(value * 4), 3);
        const colour = COLOURS[step].map((c, k) => c + (value * 4 - step) * (COLOURS[step + 1][k] - c));
        pixels.data.set([...colour, 255 * value], 4 * (i * side + j));
      }
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  draw() {
    if (!this.grey) return;
    const [box, ratio] = [this.canvas.clientWidth, window.devicePixelRatio || 1];
    const tall = Math.min(this.grey.height / this.grey.width, 1.25);
    const [width, height] = [Math.round(box * ratio), Math.round(box * tall * ratio)];
    if (!width) return;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      [this.canvas.width, this.canvas.height] = [width, height];
    }
    const zoom = Number($("zoom").value);
    this.scale = zoom * Math.min(width / this.grey.width, height / this.grey.height);
    const [w, h] = [this.scale * this.grey.width, this.scale * this.grey.height];
    const inside = (at, all, view) =>
      all <= view ? 0.5 : Math.min(Math.max(at, view / 2 / all), 1 - view / 2 / all);
    [this.x, this.y] = [inside(this.x, w, width), inside(this.y, h, height)];
    const [left, top] = [width / 2 - this.x * w, height / 2 - this.y * h];
    this.context.clearRect(0, 0, width, height);
    this.context.imageSmoothingQuality = "high";
    this.context.globalAlpha = 1;
    this.context.drawImage(this.base, left, top, w, h);
    if (this.heat) {
      this.context.globalAlpha = Number($("opacity").value) / 100;
      this.context.drawImage(this.heat, left, top, w, h);
    }
    this.canvas.classList.toggle("zoomed", zoom > 1);
    for (const id of ["window", "level", "opacity"]) $(`${id}-value`).textContent = `${$(id).value} %`;
    $("zoom-value").textContent = `${zoom.toFixed(1)} ×`;
  }

  zoomBy(factor) {
    $("zoom").value = Number($("zoom").value) * factor;
    this.draw();
  }

  moveBy(dx, dy) { // in CSS pixels
    const ratio = window.devicePixelRatio || 1;
    this.x -= dx * ratio / (this.scale * this.grey.width);
    this.y -= dy * ratio / (this.scale * this.grey.height);
    this.draw();
  }

  press(event) {
    const moves = { ArrowLeft: [30, 0], ArrowRight: [-30, 0], ArrowUp: [0, 30], ArrowDown: [0, -30] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (moves[event.key] && Number($("zoom").value) > 1) this.moveBy(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.25);
    else if (event.key === "-") this.zoomBy(0.8);
    else if (event.key === "0") this.reset();
    else return;
    event.preventDefault();
  }

  wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    this.zoomBy(Math.exp(-event.deltaY / 200));
  }

  down(event) {
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    this.canvas.setPointerCapture(event.pointerId);
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    this.pointers.set(event.pointerId, now);
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId);
    if (others.length) {
      const other = others[0][1];
      const apart = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]) || 1;
      this.zoomBy(apart(now) / apart(before));
    } else if (event.shiftKey) {
      $("window").value = Number($("window").value) + (now[0] - before[0]) / 4;
      $("level").value = Number($("level").value) + (now[1] - before[1]) / 4;
      this.shade();
      this.draw();
    } else {
      this.moveBy(now[0] - before[0], now[1] - before[1]);
    }
  }
}

const viewer = new Viewer($("canvas"));

function choose(name) {
  for (const radio of document.querySelectorAll("input[name=overlay]")) {
    radio.checked = radio.value === name;
  }
  const map = name ? record.explanation.heat_maps[name] : null;
  const values = map?.flat() ?? [];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (!map) {
    $("caption").textContent = "";
    viewer.overlay(null);
  } else if (name === "attention") {
    $("caption").textContent = `Overlay: attention, ${low.toFixed(2)} to ${high.toFixed(2)}`;
    const range = Math.max(high - low, FLAT);
    viewer.overlay(map.map((row) => row.map((value) => (value - low) / range)));
  } else {
    const places = `${map.length} × ${map[0].length} places`;
    $("caption").textContent = high > 0
      ? `Overlay: Grad-CAM of ${shown(name)}, ${places}`
      : `Nothing in the image speaks for ${shown(name)}.`;
    viewer.overlay(map);
  }
}

document.addEventListener("change", (event) => {
  if (event.target.name === "overlay") choose(event.target.value);
});

/* Files */

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) open(file);
});

for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, () => $("drop").classList.remove("over"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) open(file);
});
