// Dropped scans: sent as they are, followed until their map is there.
import { reason } from "./frames.js";

const $ = (id) => document.getElementById(id);
const POLL_MILLISECONDS = 1000;
const DOWNLOADS = {
  "anomaly_map.nii.gz": "anomaly map",
  "score_map.nii.gz": "score map",
  "excess_map.nii.gz": "excess map",
  "residual_map.nii.gz": "residual map",
  "gradient_map.nii.gz": "gradient map",
  "regions.csv": "table of regions",
  "summary.json": "summary",
};
const rows = new Map();
let file = null;
let settings = null;
let timer = 0;
let lost = false; // whether the server failed to say how scans are when it was asked last

function problem(text) {
  $("scan-problem").textContent = text;
  $("scan-problem").hidden = !text;
}

/** Why a file cannot be sent, or "". The server looks again, and closer. */
function objection(chosen) {
  if (!chosen) return "Choose a file first.";
  if (!/\.nii(\.gz)?$/i.test(chosen.name)) return `${chosen.name}: expected a NIfTI file, .nii or .nii.gz`;
  if (chosen.size > settings.megabytes * 2 ** 20) return `${chosen.name}: larger than ${settings.megabytes} megabytes`;
  if (!$("age").value.trim()) return "Give the age at the scan, in years, or write unknown.";
  return "";
}

function choose(chosen) {
  file = chosen ?? null;
  $("chosen").textContent = file ? `${file.name}, ${(file.size / 2 ** 20).toFixed(1)} MB` : "";
  problem("");
}

function send() {
  const wrong = objection(file);
  problem(wrong);
  if (wrong || $("send").disabled) return;
  const query = new URLSearchParams({ name: file.name, age: $("age").value.trim(), sex: $("sex").value, strip: $("strip").value });
  const request = new XMLHttpRequest(); // fetch does not tell how much has been sent
  request.open("PUT", `/api/scans?${query}`);
  request.responseType = "json";
  request.upload.addEventListener("progress", (event) => { $("sending").value = (100 * event.loaded) / (event.total || 1); });
  request.addEventListener("loadend", () => {
    $("send").disabled = false;
    $("sending").hidden = true;
    if (request.status === 201) {
      show(request.response);
      choose(null);
      $("file").value = "";
      follow();
    } else {
      problem(request.response?.error ?? "The scan could not be sent; is the server still there?");
    }
  });
  $("send").disabled = true;
  $("sending").hidden = false;
  $("sending").value = 0;
  request.send(file);
}

const scansAre = (n) => (n === 1 ? "one scan is" : `${n} scans are`);
const seconds = (s) => (s >= 90 ? `${Math.round(s / 60)} minutes` : `${Math.round(s)} seconds`);

function stateText(scan) {
  if (scan.state === "queued") return scan.place ? `Waiting: ${scansAre(scan.place)} before this one.` : "Waiting.";
  if (scan.stopping) return "Stops after this step.";
  if (scan.state === "running") {
    if (scan.step === "patches") return `Patches: ${scan.done} of ${scan.total}${scan.seconds_left === null ? "" : `, ${seconds(scan.seconds_left)} left`}.`;
    return `Prepares the scan: finds the brain, corrects the field, registers it. ${seconds(scan.seconds)} so far.`;
  }
  if (scan.state === "cancelled") return "Cancelled.";
  if (scan.state === "failed") return scan.message;
  const { regions, peak_score: peak, threshold } = scan.result;
  return `Done in ${seconds(scan.seconds)}: ${regions === 1 ? "1 region" : `${regions} regions`} above ${threshold.toFixed(2)}; highest ${peak.toFixed(2)}.`;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text; // a status that does not change is not read out again
}

function show(scan) {
  let row = rows.get(scan.id);
  if (!row) {
    row = $("scan").content.cloneNode(true).firstElementChild;
    row.dataset.id = scan.id;
    row.querySelector("h4").textContent = scan.name;
    row.querySelector(".cancel").addEventListener("click", () => change("POST", `${scan.id}/cancel`));
    row.querySelector(".delete").addEventListener("click", () => change("DELETE", scan.id));
    for (const button of row.querySelectorAll("button")) button.setAttribute("aria-label", `${button.textContent} ${scan.name}`);
    row.querySelector("progress").setAttribute("aria-label", `Progress of ${scan.name}`);
    rows.set(scan.id, row);
    $("list").prepend(row);
  }
  row.dataset.state = scan.state;
  const state = row.querySelector(".state");
  state.classList.toggle("problem", scan.state === "failed");
  setText(state, stateText(scan));
  const bar = row.querySelector("progress");
  bar.hidden = scan.state !== "running";
  if (scan.step === "patches" && scan.total) bar.value = (100 * scan.done) / scan.total;
  else bar.removeAttribute("value");
  row.querySelector(".cancel").hidden = !["queued", "running"].includes(scan.state) || scan.stopping;
  if (scan.state === "finished" && row.querySelector(".result").hidden) showResult(row, scan);
  $("list-title").hidden = !rows.size;
}

function showResult(row, scan) {
  const base = `/api/scans/${scan.id}/`;
  row.querySelector(".result").hidden = false;
  const picture = row.querySelector(".overlay");
  picture.src = `${base}overlay.png`;
  picture.alt = `Slices through the highest value of ${scan.name}; the anomaly map over them`;
  const whole = row.querySelector(".whole");
  whole.addEventListener("toggle", () => {
    if (whole.querySelector("iframe")) return; // it holds volumes: loaded when it is asked for
    const frame = Object.assign(document.createElement("iframe"), { title: `Map of ${scan.name}` });
    frame.setAttribute("sandbox", "allow-scripts");
    frame.src = `${base}index.html`;
    whole.append(frame);
  });
  for (const note of [...scan.result.p_values.map((p) => `p ${p.p.toPrecision(2)}, ${p.about}`), ...scan.result.notes]) {
    row.querySelector(".notes").append(Object.assign(document.createElement("li"), { textContent: note }));
  }
  const files = row.querySelector(".files");
  files.append(Object.assign(document.createElement("a"), { href: `${base}index.html`, target: "_blank", rel: "noopener", textContent: "the map's page" }));
  for (const name of scan.result.files.filter((name) => name in DOWNLOADS)) {
    files.append(Object.assign(document.createElement("a"), { href: base + name, download: "", textContent: DOWNLOADS[name] }));
  }
}

async function change(method, path) {
  try {
    const response = await fetch(`/api/scans/${path}`, { method });
    problem(response.ok ? "" : await reason(response));
  } catch {
    problem("The server does not answer.");
  }
  follow();
}

/** Look at all scans now, and again while one of them is not done. */
async function follow() {
  clearTimeout(timer);
  let again = true;
  try {
    const response = await fetch("/api/scans");
    if (!response.ok) throw new Error(await reason(response));
    const { scans } = await response.json();
    scans.forEach(show);
    for (const [id, row] of rows) {
      if (!scans.some((scan) => scan.id === id)) {
        row.remove();
        rows.delete(id);
      }
    }
    $("list-title").hidden = !rows.size;
    again = scans.some((scan) => ["queued", "running"].includes(scan.state));
    if (lost) problem("");
    lost = false;
  } catch (error) {
    lost = true;
    problem(error instanceof TypeError ? "The server does not answer; this page tries again." : error.message);
  }
  clearTimeout(timer);
  if (again) timer = setTimeout(follow, POLL_MILLISECONDS);
}

export function showScans(about) {
  settings = about;
  $("scans").hidden = $("nav-scans").hidden = false;
  $("stripping").textContent = about.stripping === "none" ? "The model's own scans came without skulls: drop such a scan, or choose who finds the brain." : "";
  const names = { none: "the scan holds nothing else", deepbet: "deepbet finds it", hdbet: "HD-BET finds it" };
  for (const name of about.strippers) $("strip").append(new Option(names[name] ?? name, name));
  $("file").addEventListener("change", () => choose($("file").files[0]));
  $("bring").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  const drop = $("drop");
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault()); // beside the zone, too
  drop.addEventListener("dragover", () => drop.classList.add("over"));
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    drop.classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    choose(event.dataTransfer.files[0]);
    send();
  });
  follow();
}
