// The explorer's page: sliders, one or two subjects, their difference.
import { Frames, reason } from "./frames.js";
import { showScans } from "./scans.js";

const $ = (id) => document.getElementById(id);
const sides = [];
const values = {};
let controls = [];
let moving = null;
let frames = null;
let difference = null;

history.replaceState(null, "", location.pathname + location.hash); // a token does not stay in the address bar

const shownValue = (control, value) => `${Number(value.toFixed(Number.isInteger(control.step) ? 0 : 1))} ${control.unit}`.trim();
const where = () => controls.map((control) => `${control.name} ${shownValue(control, values[control.name])}`).join(", ");
const visible = () => ($("compare").checked ? sides : sides.slice(0, 1));

function problem(text) {
  $("look-problem").textContent = text;
  $("look-problem").hidden = !text;
}

function makeSide(label, number, subjects) {
  const root = $("side").content.cloneNode(true).firstElementChild;
  const side = { root, label, who: root.querySelector(".who"), number: root.querySelector("input"), canvas: root.querySelector("canvas") };
  root.querySelector(".label").textContent = label;
  side.who.append(new Option("generated", ""));
  for (const subject of subjects) side.who.append(new Option(subject.label, subject.who));
  side.number.value = number;
  const original = root.querySelector(".original");
  side.who.addEventListener("change", () => {
    const known = subjects.find((subject) => subject.who === side.who.value);
    root.querySelector(".number").hidden = root.querySelector(".another").hidden = Boolean(known);
    original.hidden = !known;
    if (known) {
      original.src = `/api/original?who=${encodeURIComponent(known.who)}`;
      original.alt = `The image of ${known.label} as it is`;
      for (const control of controls) setKnob(control, known.values[control.name]);
    }
    changed();
  });
  side.number.addEventListener("input", changed);
  root.querySelector(".another").addEventListener("click", () => {
    side.number.value = String(Math.floor(Math.random() * 100000));
    changed();
  });
  const seed = () => Math.min(Math.max(Math.trunc(Number(side.number.value)) || 0, 0), 2147483647); // whatever was typed
  side.name = () => (side.who.value ? side.who.selectedOptions[0].text : `generated subject ${seed()}`);
  side.id = () => side.who.value || `seed:${seed()}`;
  sides.push(side);
  $("sides").append(root);
}

function makeDifference() {
  const root = $("side").content.cloneNode(true).firstElementChild;
  root.id = "difference";
  root.querySelector(".knob").textContent = "Absolute difference";
  difference = { root, canvas: root.querySelector("canvas") };
  $("sides").append(root);
}

function setKnob(control, value) {
  values[control.name] = Math.min(Math.max(value, control.low), control.high);
  control.input.value = String(values[control.name]);
  showKnob(control);
}

function showKnob(control) {
  const text = shownValue(control, values[control.name]);
  control.output.textContent = text;
  control.input.setAttribute("aria-valuetext", text);
}

function makeKnob(control) {
  const row = document.createElement("div");
  row.className = "knob";
  const name = document.createElement("label");
  name.className = "name";
  name.textContent = control.name;
  name.htmlFor = `knob-${control.name}`;
  control.input = Object.assign(document.createElement("input"), { type: "range", id: name.htmlFor });
  Object.assign(control.input, { min: control.low, max: control.high, step: control.step });
  control.output = document.createElement("output");
  control.output.htmlFor = name.htmlFor;
  control.input.addEventListener("input", () => {
    moving = control;
    values[control.name] = Number(control.input.value);
    showKnob(control);
    changed();
  });
  row.append(name, control.input, control.output);
  $("knobs").append(row);
  setKnob(control, control.start);
}

const ask = (side) => ({ who: side.id(), control: moving, values: { ...values }, plane: $("plane").value });

function draw() {
  let waiting = false;
  for (const side of visible()) {
    const found = frames.nearest(ask(side));
    waiting ||= !found?.exact;
    side.root.querySelector("figcaption").textContent = found ? `${side.name()}, ${where()}` : "";
    side.canvas.setAttribute("aria-label", found ? `${side.name()} at ${where()}` : "not there yet");
    side.shown = found;
    if (found) paint(side.canvas, found.bitmap);
  }
  for (const side of sides) side.root.hidden = !visible().includes(side);
  difference.root.hidden = !$("compare").checked;
  if ($("compare").checked) drawDifference();
  const text = waiting ? "one moment …" : "";
  if ($("loading").textContent !== text) $("loading").textContent = text;
}

function paint(canvas, bitmap) {
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(bitmap, 0, 0);
}

function drawDifference() {
  const [a, b] = sides.map((side) => side.canvas);
  const caption = difference.root.querySelector("figcaption");
  const same = sides.every((side) => side.shown) && a.width === b.width && a.height === b.height;
  const [first, second] = [a, b].map((canvas) => canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, canvas.width, canvas.height));
  Object.assign(difference.canvas, { width: a.width, height: a.height });
  if (!same) {
    caption.textContent = sides.every((side) => side.shown) ? "The two pictures have not the same size." : "";
    difference.canvas.setAttribute("aria-label", "no difference to show");
    return;
  }
  const result = new ImageData(a.width, a.height);
  let sum = 0;
  for (let i = 0; i < result.data.length; i += 4) {
    for (let c = 0; c < 3; c += 1) {
      result.data[i + c] = Math.abs(first.data[i + c] - second.data[i + c]);
      sum += result.data[i + c];
    }
    result.data[i + 3] = 255;
  }
  difference.canvas.getContext("2d").putImageData(result, 0, 0);
  const mean = (sum / (a.width * a.height * 3 * 255) * 100).toFixed(1);
  caption.textContent = `${mean} % of the grey range, on average`;
  difference.canvas.setAttribute("aria-label", `Absolute difference of ${sides[0].name()} and ${sides[1].name()} at ${where()}: ${mean} % on average`);
}

function changed() {
  problem("");
  draw();
  frames.fill();
}

async function begin() {
  const response = await fetch("/api/about");
  if (!response.ok) throw new Error(await reason(response));
  const about = await response.json();
  controls = about.controls;
  moving = controls[0];
  document.title = `${about.name} · normscape explorer`;
  $("name").textContent = about.name;
  $("description").textContent = about.description;
  $("origin").textContent = `Shown: ${about.origin}.`;
  $("version").textContent = `Served by normscape ${about.version}. Nothing on this page is loaded from elsewhere.`;
  for (const plane of about.planes) $("plane").append(new Option(plane, plane));
  $("plane-choice").hidden = !about.planes.length;
  if (about.scans) showScans(about.scans);
  if (!controls.length) {
    problem("This model has no attribute with a single value that could be moved.");
    document.querySelector("#look .slider > div").hidden = $("compare").parentElement.hidden = true;
    return;
  }
  if (about.subjects.length) $("look-text").append(" Subjects with a name are the run's own test images, rebuilt: at their known value, and at others.");
  controls.forEach(makeKnob);
  frames = new Frames(() => visible().map(ask), draw, problem);
  makeSide("Subject", 1, about.subjects);
  makeSide("Second subject", 2, about.subjects);
  makeDifference();
  $("compare").addEventListener("change", changed);
  $("plane").addEventListener("change", changed);
  document.addEventListener("visibilitychange", () => frames.fill());
  changed();
}

begin().catch((error) => problem(error.message));
