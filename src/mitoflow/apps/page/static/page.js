// The page: which stacks there are, which one is shown, and what the controls do.

import { describe, element } from "./about.js";
import { Refusal, ask } from "./api.js";
import { Intake } from "./intake.js";
import { Tiles } from "./tiles.js";
import { Viewer } from "./viewer.js";

const byId = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
const UNFINISHED = ["uploading", "waiting", "predicting"];
const FILES = {
  mask: "Mask (OME-TIFF)",
  instances: "Instances (OME-TIFF)",
  table: "Table of mitochondria (CSV)",
  totals: "Sums over the stack (CSV)",
  overlay: "Picture with contours (PNG)",
};

const stacks = new Map(); // by key: what the server says, and what is shown of it
let current = null; // the key of the stack that is shown; null on the first screen
let saving = Promise.resolve(); // strokes reach the server in their order
let unsaved = 0; // strokes, and those taken back, that are on their way to it
let measuring = 0;

const viewer = new Viewer(byId("view"), {
  slice: (step) => showSlice(viewer.z + step),
  stroke: (stroke) => {
    const place = path();
    save(() => ask("POST", `${place}/strokes`, stroke));
  },
  moved: (zoom) => (byId("view").dataset.zoom = zoom.toFixed(3)),
});

const path = () => `/api/results/${current}`;
const shown = () => stacks.get(current);

function fail(error) {
  byId("message").hidden = false;
  byId("message").firstElementChild.textContent = error.message;
  if (!(error instanceof Refusal)) console.error(error);
}

function tell(promise) {
  promise.catch(fail);
}

// Which stacks there are, in the address: a reload finds them again.
function remember() {
  const keys = [...stacks.keys()];
  const hash = keys.length ? `#${new URLSearchParams({ stacks: keys.join("."), shown: current ?? "" })}` : " ";
  history.replaceState(null, "", hash.trim() || location.pathname);
}

async function recall() {
  const said = new URLSearchParams(location.hash.slice(1));
  for (const key of (said.get("stacks") ?? "").split(".").filter(Boolean)) {
    try {
      add(await ask("GET", `/api/results/${encodeURIComponent(key)}`), null, false);
    } catch (error) {
      fail(error);
    }
  }
  show(stacks.has(said.get("shown")) ? said.get("shown") : [...stacks.keys()][0] ?? null);
}

function add(result, upload = null, isShown = true) {
  if (!result) {
    show(null);
    return;
  }
  stacks.set(result.key, { result, upload, tiles: null });
  if (isShown) show(result.key);
  tell(follow(result.key));
}

// Asks how far a stack is until it is done.
async function follow(key) {
  for (let stack = stacks.get(key); stack; stack = stacks.get(key)) {
    if (!UNFINISHED.includes(stack.result.state)) break;
    await new Promise((resolve) => setTimeout(resolve, 400));
    try {
      stack.result = await ask("GET", `/api/results/${key}`);
    } catch (error) {
      if (error.status === 404) stacks.delete(key);
      if (error.status === 404 && current === key) show(null);
      if (error.status) throw error;
      fail(error); // the server does not answer: it may do so later
    }
    if (current === key) update();
    else listStacks();
  }
}

function listStacks() {
  const state = { uploading: "sending", waiting: "waiting", predicting: "predicting", failed: "failed", cancelled: "cancelled" };
  byId("results").replaceChildren(
    ...[...stacks.values()].map(({ result }) => {
      const text = state[result.state] ? `${result.name} (${state[result.state]})` : result.name;
      const button = element("button", text, { type: "button", title: result.name, onclick: () => show(result.key) });
      button.setAttribute("aria-current", result.key === current);
      return button;
    }),
  );
  byId("new").hidden = !stacks.size || current === null;
}

function show(key) {
  current = key;
  viewer.tiles = null;
  byId("start").hidden = key !== null;
  byId("work").hidden = key === null;
  if (key !== null) update();
  else listStacks();
  remember();
}

// Shows the state of the current stack, and the stack itself when it is predicted.
function update() {
  listStacks();
  const stack = shown();
  const { result } = stack;
  const isDone = result.state === "done";
  byId("waiting").hidden = isDone;
  byId("controls").hidden = !isDone;
  byId("zoom").hidden = byId("caption").hidden = !isDone;
  document.title = isDone ? `${result.name} - mitoflow` : "mitoflow";
  if (!isDone) {
    showProgress(stack);
    return;
  }
  if (!stack.tiles) {
    stack.tiles = new Tiles(result.key, result.stack, () => viewer.draw(), fail);
    stack.z = Math.floor(result.stack.shape[0] / 2);
    stack.undone = [];
  }
  showNotes(result);
  setControls(stack);
  showSlice(stack.z);
}

function showProgress({ result, upload }) {
  const seconds = result.seconds_left;
  const left = seconds === null ? "" : `, about ${seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`} left`;
  const isSearching = result.state === "predicting" && !result.done;
  const begun = { drawn: "Drawing a stack", inverted: "Inverting the stack, then looking for scale and threshold", files: "Looking for the scale and threshold that suit the stack" };
  byId("progress-text").textContent = {
    uploading: `Sending ${result.name}: ${Math.floor(100 * (upload?.share ?? 0))} %`,
    waiting: `${result.name} waits for others`,
    predicting: isSearching ? `${begun[result.origin]}: ${result.name}` : `Predicting ${result.name}: ${Math.floor(100 * result.done)} %${left}`,
    failed: result.error,
    cancelled: `${result.name} was cancelled.`,
  }[result.state];
  const isOver = !UNFINISHED.includes(result.state);
  byId("progress").hidden = isOver;
  byId("cancel").textContent = isOver ? "Choose another file" : "Cancel";
  const share = result.state === "uploading" ? upload?.share : result.done;
  if (share && result.state !== "waiting") byId("progress").value = share;
  else byId("progress").removeAttribute("value");
}

function showNotes({ stack, notes, origin }) {
  const verdict = byId("verdict");
  verdict.replaceChildren();
  if (stack.judgement) {
    const isPoor = !stack.judgement.startsWith("usable");
    verdict.append(element("p", `${stack.judgement[0].toUpperCase()}${stack.judgement.slice(1)}.`, { className: isPoor ? "warning" : "" }));
  }
  if (stack.is_inverted && origin !== "inverted") {
    const offer = element("p", "Bright and dark look the other way round than in the images that the model knows. ", { className: "offer" });
    offer.append(element("button", "Invert it, and predict again", { type: "button", id: "invert", onclick: () => tell(ask("POST", `${path()}/inverted`).then(add)) }));
    verdict.append(offer);
  }
  const section = byId("notes");
  section.replaceChildren(element("h3", "About this stack"));
  if (origin === "drawn") section.append(element("p", "It was drawn by mitoflow. It is not tissue, and says nothing about how good masks of tissue are."));
  const [z, y, x] = stack.shape;
  const known = ["z", "y", "x"].filter((axis) => axis in stack.spacing);
  const sizes = known.map((axis) => `${axis} ${+stack.spacing[axis].toFixed(2)}`).join(", ");
  section.append(element("p", `${z > 1 ? `${z} slices of ` : ""}${x} x ${y} pixels; ${sizes ? `voxel size ${sizes} nm` : "voxel size unknown, so the tables count voxels"}`));
  if (origin !== "drawn") section.append(otherVoxelSize());
  for (const note of notes.filter((each) => !stack.judgement || !each.includes(stack.judgement))) {
    section.append(element("p", note.replace(/^(note|warning): /, ""), { className: note.startsWith("warning") ? "warning" : "faint" }));
  }
  section.append(element("button", "Remove this stack from the page", { type: "button", id: "remove", onclick: forget }));
}

// Where the voxel size of the stack is wrong or unknown, it can be given, which may change scale, tables and neighbours.
function otherVoxelSize() {
  const form = element("form", "", { className: "row" });
  const size = element("input", "", { type: "text", id: "other-voxel-size", placeholder: "z,y,x in nm", autocomplete: "off" });
  size.setAttribute("aria-label", "Another voxel size in nanometres");
  form.onsubmit = (event) => {
    event.preventDefault();
    tell(ask("POST", `${path()}/voxel-size`, { voxel_size: size.value }).then(add));
  };
  form.append(size, element("button", "Predict again"));
  return form;
}

function setControls({ tiles, result }) {
  const { stack } = result;
  byId("slice-control").hidden = stack.shape[0] === 1;
  byId("slice").max = stack.shape[0] - 1;
  byId("threshold").min = Math.min(0.01, stack.threshold);
  byId("threshold").max = Math.max(0.99, stack.threshold);
  tiles.mode = chosen("mode");
  showThreshold();
  showStrokes();
}

function showSlice(z) {
  const { tiles } = shown();
  const place = Math.min(tiles.depth - 1, Math.max(0, z));
  shown().z = place;
  byId("slice").value = place;
  byId("slice-value").textContent = `${place} of 0 to ${tiles.depth - 1}`;
  tiles.keepOnly(place);
  viewer.show(tiles, place);
  measure();
}

function showThreshold() {
  const { threshold } = shown().tiles;
  const own = shown().result.stack.threshold;
  byId("threshold").value = threshold;
  byId("threshold-value").textContent = threshold.toFixed(3);
  byId("reset-threshold").disabled = threshold === own;
  byId("reset-threshold").textContent = `As predicted: ${own.toFixed(3)}`;
  showDownloads();
}

function setThreshold(value) {
  const { tiles } = shown();
  tiles.threshold = Math.min(+byId("threshold").max, Math.max(+byId("threshold").min, value));
  showThreshold();
  viewer.draw();
  measure();
}

// Says how much of the slice is mitochondrion, a moment after the last change.
function measure() {
  clearTimeout(measuring);
  measuring = setTimeout(async () => {
    const { tiles, z } = shown() ?? {};
    if (!tiles) return;
    await saving;
    tiles.settle();
    viewer.draw();
    const query = tiles.query;
    try {
      const { share } = await ask("GET", `/api/results/${tiles.key}/slices/${z}?${query}`);
      if (tiles !== shown()?.tiles || z !== shown().z || query !== tiles.query) return;
      const slice = tiles.depth > 1 ? `slice ${z}` : "the slice";
      byId("caption").textContent = `${(100 * share).toFixed(2)} % of ${slice} is mitochondria at threshold ${tiles.threshold.toFixed(3)}`;
    } catch (error) {
      fail(error);
    }
  }, 250);
}

// The files of the present mask. They are links: the browser fetches each by itself, however fast one clicks.
function showDownloads() {
  const { tiles } = shown();
  const isCorrected = tiles.strokes.length > 0;
  const link = (kind, text, query) => {
    const address = `/api/results/${tiles.key}/files/${kind}?${query}`;
    const id = `${kind}${query.includes("corrected") ? "-corrected" : ""}`;
    const made = element("a", text, { href: address, download: "", id });
    made.onclick = (event) => {
      if (unsaved) { // the file is that of the mask on the screen
        event.preventDefault();
        saving.then(() => made.click());
      } else {
        tell(look(address, text));
      }
    };
    return made;
  };
  const plain = `threshold=${tiles.threshold}`;
  const section = byId("downloads");
  const heading = section.firstElementChild;
  section.replaceChildren(heading);
  if (isCorrected) {
    section.append(
      link("mask", "Corrected mask (OME-TIFF)", tiles.query),
      link("training", "Corrected slices, for training (OME-TIFF)", tiles.query),
      link("mask", "Mask as predicted (OME-TIFF)", plain),
    );
    section.append(element("p", "Of the corrected mask:", { className: "faint" }));
  }
  const kinds = Object.keys(FILES).filter((kind) => !isCorrected || kind !== "mask");
  section.append(...kinds.map((kind) => link(kind, FILES[kind], tiles.query)));
  section.append(element("p", "", { className: "faint", id: "making" }));
}

// A download that fails says so in the browser's list alone, so the page asks as well.
async function look(address, text) {
  const making = byId("making");
  const timer = setTimeout(() => (making.textContent = `Making: ${text} ...`), 500);
  try {
    const response = await fetch(address, { method: "HEAD" });
    if (!response.ok) await ask("GET", address);
  } finally {
    clearTimeout(timer);
    making.textContent = "";
  }
}

function showStrokes() {
  const { tiles, undone } = shown();
  const count = tiles.strokes.length;
  byId("undo").disabled = !count;
  byId("redo").disabled = !undone.length;
  byId("strokes").textContent = count ? `${count} ${count === 1 ? "stroke" : "strokes"}` : "";
  showDownloads();
}

// Sends a change of the corrections after those before it.
function save(change, undone = []) {
  const stack = shown();
  stack.undone = undone;
  unsaved++;
  saving = saving.then(change).catch(fail).finally(() => unsaved--);
  showStrokes();
  viewer.draw();
  measure();
}

function undo() {
  const { tiles, undone } = shown();
  const last = tiles.strokes.at(-1);
  if (!last) return;
  tiles.replace(tiles.strokes.slice(0, -1));
  const place = path();
  if (last.z !== viewer.z) showSlice(last.z);
  save(() => ask("DELETE", `${place}/strokes`), [...undone, last]);
}

function redo() {
  const { tiles, undone } = shown();
  const stroke = undone.at(-1);
  if (!stroke) return;
  tiles.replace([...tiles.strokes, stroke]);
  const place = path();
  if (stroke.z !== viewer.z) showSlice(stroke.z);
  save(() => ask("POST", `${place}/strokes`, stroke), undone.slice(0, -1));
}

function connect() {
  byId("new").onclick = () => show(null);
  byId("message").lastElementChild.onclick = () => (byId("message").hidden = true);
  byId("example").onclick = () => tell(ask("POST", "/api/example").then(add));
  byId("cancel").onclick = cancel;
  byId("slice").oninput = (event) => showSlice(+event.target.value);
  byId("threshold").oninput = (event) => setThreshold(+event.target.value);
  byId("threshold").onkeydown = (event) => {
    const step = { ArrowRight: 0.01, ArrowUp: 0.01, ArrowLeft: -0.01, ArrowDown: -0.01 }[event.key];
    if (!step) return;
    event.preventDefault(); // without steps of its own, the slider would move by another amount in each browser
    setThreshold(shown().tiles.threshold + step);
  };
  byId("reset-threshold").onclick = () => setThreshold(shown().result.stack.threshold);
  const slide = (id, unit, apply) => {
    const change = () => {
      byId(`${id}-value`).textContent = unit(+byId(id).value);
      apply(+byId(id).value);
      viewer.draw();
    };
    byId(id).oninput = change;
    change();
  };
  slide("opacity", (value) => `${Math.round(100 * value)} %`, (value) => (viewer.opacity = value));
  slide("radius", (value) => `${value} px`, (value) => (viewer.radius = value));
  byId("beside").onchange = (event) => {
    viewer.isBeside = event.target.checked;
    if (viewer.isFitted) viewer.fit();
    viewer.draw();
  };
  for (const input of document.querySelectorAll("input[name=mode]")) input.onchange = () => setMode(input.value);
  for (const input of document.querySelectorAll("input[name=tool]")) input.onchange = () => setTool(input.value);
  byId("undo").onclick = undo;
  byId("redo").onclick = redo;
  byId("zoom-in").onclick = () => viewer.zoom(1.5);
  byId("zoom-out").onclick = () => viewer.zoom(1 / 1.5);
  byId("fit").onclick = () => viewer.fit();
  byId("actual").onclick = () => viewer.actual();
  addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.target.type === "text" || !shown()?.tiles) return;
    const key = event.key.toLowerCase();
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    if (key === "y" || event.shiftKey) redo();
    else undo();
  });
}

function cancel() {
  const stack = shown();
  if (!UNFINISHED.includes(stack.result.state)) {
    forget();
    return;
  }
  stack.upload?.abort.abort();
  tell(ask("POST", `${path()}/cancel`).then((result) => {
    stack.result = result;
    update();
  }));
}

// Removes the stack and all that was made of it, here and on the server.
function forget() {
  tell(ask("DELETE", path()));
  stacks.delete(current);
  show(null);
}

function setMode(mode) {
  shown().tiles.mode = mode;
  byId("scale").hidden = mode !== "probability";
  viewer.draw();
}

function setTool(tool) {
  viewer.tool = tool;
  byId("view").classList.toggle("paints", tool !== "move");
  if (tool !== "move" && ["instances", "probability"].includes(chosen("mode"))) { // strokes do not show there
    document.querySelector("input[name=mode][value=fill]").click();
  }
  viewer.draw();
}

async function start() {
  connect();
  const model = await ask("GET", "/api/model");
  describe(byId("about"), model);
  new Intake(model.endings, add, fail);
  await recall();
}

tell(start());
