// The tiles of a stack: loaded when they are needed, and drawn with what is known of the mask.

import { numbers } from "./api.js";
import { ERASED, PAINTED, mark } from "./strokes.js";

const LAYERS = { image: Uint8Array, probability: Float32Array, instances: Uint32Array };
const KEPT = 160; // tiles of each kind
const MASK = [0, 200, 150];
const ADDED = [255, 160, 0]; // what was painted and the model does not find
const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]; // as in page.css

export class Tiles {
  // `stack` is what the server says of the stack; `changed` is called when a tile has come, `failed` with an error.
  constructor(key, stack, changed, failed) {
    Object.assign(this, { key, stack, changed, failed });
    [this.depth, this.height, this.width] = stack.shape;
    this.strokes = stack.strokes;
    this.live = null; // the stroke that is being painted
    this.threshold = stack.threshold;
    this.mode = "contours";
    this.version = 0; // of the strokes
    this.settle();
    this.loaded = new Map();
    this.loading = new Map();
    this.pictures = new Map();
    this.marked = new Map();
  }

  // What the server needs to know to make the files of this mask.
  get query() {
    const corrected = this.strokes.length ? "&corrected=1" : "";
    return `threshold=${this.threshold}${corrected}`;
  }

  // From now on instances are those of the present mask: the server knows it.
  settle() {
    this.settled = `${this.query}&version=${this.version}`;
  }

  place(level, row, column) {
    const side = this.stack.tile * 2 ** level;
    const [x0, y0] = [column * side, row * side];
    const [x1, y1] = [Math.min(x0 + side, this.width), Math.min(y0 + side, this.height)];
    const step = 2 ** level;
    return { x0, y0, x1, y1, step, width: Math.ceil((x1 - x0) / step), height: Math.ceil((y1 - y0) / step) };
  }

  // Returns the picture of a tile as a canvas, or null; where `isWanted`, what is missing is loaded.
  picture(kind, z, level, row, column, isWanted) {
    const name = `${z}/${level}/${row}/${column}`;
    const layer = kind === "image" ? "image" : this.mode === "instances" ? "instances" : "probability";
    const stamp = kind === "image" ? "" : `${this.mode} ${layer === "instances" ? this.settled : `${this.query} ${this.version}`}`;
    const known = this.pictures.get(`${kind}/${name}`);
    if (known?.stamp === stamp) return known.canvas;
    const voxels = this.voxels(layer, name, layer === "instances" ? `?${this.settled}` : "", isWanted);
    if (!voxels) return known?.stamp.startsWith(this.mode) ? known.canvas : null;
    const place = this.place(level, row, column);
    const paint = kind === "image" ? grey : { instances: colours, probability: heat }[this.mode] ?? mask;
    const marks = paint === mask ? this.marks(z, name, place) : null;
    const canvas = known?.canvas ?? new OffscreenCanvas(place.width, place.height);
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(place.width, place.height);
    const ink = new Uint32Array(pixels.data.buffer);
    paint(voxels, ink, place, marks, { threshold: Math.fround(this.threshold), isFilled: this.mode === "fill" });
    context.putImageData(pixels, 0, 0);
    remember(this.pictures, `${kind}/${name}`, { stamp, canvas });
    return canvas;
  }

  voxels(layer, name, query, isWanted) {
    const path = `/api/results/${this.key}/tiles/${layer}/${name}${query}`;
    if (this.loaded.has(path)) return this.loaded.get(path);
    if (isWanted && !this.loading.has(path)) {
      const abort = new AbortController();
      this.loading.set(path, { abort, layer, z: Number(name.split("/")[0]) });
      numbers(path, LAYERS[layer], abort.signal)
        .then((voxels) => remember(this.loaded, path, voxels))
        .catch((error) => {
          if (error.name === "AbortError") return;
          remember(this.loaded, path, null); // asked for once
          this.failed(error);
        })
        .finally(() => {
          this.loading.delete(path);
          this.changed();
        });
    }
    return null;
  }

  // Stops loading what is not shown any more.
  keepOnly(z) {
    for (const each of this.loading.values()) if (each.z !== z) each.abort.abort();
  }

  get isComputing() {
    return [...this.loading.values()].some((each) => each.layer === "instances");
  }

  marks(z, name, place) {
    const known = this.marked.get(name);
    if (known) return known.marks;
    const tile = { ...place, z, marks: new Uint8Array(place.width * place.height) };
    const strokes = this.live ? [...this.strokes, this.live] : this.strokes;
    for (const stroke of strokes) if (stroke.z === z) mark(stroke, tile);
    remember(this.marked, name, tile);
    return tile.marks;
  }

  begin(stroke) {
    this.live = stroke;
    this.extend(stroke.points[0]);
  }

  extend(point) {
    const from = this.live.points.at(-1);
    if (from !== point && `${from}` === `${point}`) return;
    if (from !== point) this.live.points.push(point);
    for (const tile of this.marked.values()) {
      if (tile.z === this.live.z) mark({ ...this.live, points: [from, point] }, tile);
    }
    this.version++;
  }

  // Returns the stroke that was painted.
  finish() {
    const stroke = this.live;
    this.strokes = [...this.strokes, stroke];
    this.live = null;
    this.version++;
    return stroke;
  }

  replace(strokes) {
    this.strokes = strokes;
    this.marked.clear();
    this.version++;
  }
}

function remember(map, key, value) {
  map.delete(key);
  map.set(key, value);
  if (map.size > KEPT) map.delete(map.keys().next().value);
}

// A pixel of an image as one number: canvases are little-endian on every machine that runs a browser.
const rgba = ([red, green, blue], alpha = 255) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

function grey(voxels, ink) {
  for (let i = 0; i < voxels.length; i++) ink[i] = 0xff000000 | (voxels[i] * 0x10101);
}

function mask(voxels, ink, { width, height }, marks, { threshold, isFilled }) {
  const inside = new Uint8Array(voxels.length);
  for (let i = 0; i < voxels.length; i++) {
    inside[i] = marks[i] === PAINTED || (marks[i] !== ERASED && voxels[i] >= threshold) ? 1 : 0;
  }
  const [found, added] = [rgba(MASK), rgba(ADDED)];
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!inside[i]) continue;
      const isInner =
        (x === 0 || inside[i - 1]) && (x === width - 1 || inside[i + 1]) &&
        (y === 0 || inside[i - width]) && (y === height - 1 || inside[i + width]) &&
        (x < 2 || inside[i - 2]) && (x > width - 3 || inside[i + 2]) &&
        (y < 2 || inside[i - 2 * width]) && (y > height - 3 || inside[i + 2 * width]);
      if (isFilled || !isInner) ink[i] = voxels[i] >= threshold ? found : added;
    }
  }
}

function colours(voxels, ink) {
  const known = new Map([[0, 0]]);
  for (let i = 0; i < voxels.length; i++) {
    const label = voxels[i];
    if (!known.has(label)) known.set(label, rgba(hue(label * 137.508)));
    ink[i] = known.get(label);
  }
}

function hue(degrees) {
  return [0, 8, 4].map((shift) => {
    const at = (shift + degrees / 30) % 12;
    return Math.round(255 * (0.55 - 0.42 * Math.max(-1, Math.min(at - 3, 9 - at, 1))));
  });
}

const HEAT_INK = Uint32Array.from({ length: 256 }, (_, i) => {
  const at = (i / 255) * (HEAT.length - 1);
  const [low, high] = [HEAT[Math.floor(at)], HEAT[Math.min(HEAT.length - 1, Math.floor(at) + 1)]];
  return rgba(low.map((value, channel) => Math.round(value + (high[channel] - value) * (at % 1))));
});

function heat(voxels, ink) {
  for (let i = 0; i < voxels.length; i++) ink[i] = HEAT_INK[Math.round(voxels[i] * 255)];
}
