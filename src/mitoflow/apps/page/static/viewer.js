// The picture: zoomed, moved and painted on, by mouse, touch and keyboard.

const MOST = 40; // pixels of the screen to one of the image
const STEP = 1.25; // of a key or a button

export class Viewer {
  // `on.slice` is called with a step along z, `on.stroke` with a stroke that was painted, `on.moved` after a change.
  constructor(canvas, on) {
    Object.assign(this, { canvas, on, tiles: null, z: 0, opacity: 1, isBeside: false, tool: "move", radius: 6 });
    this.x = this.y = 0; // of the image, in the middle of a pane
    this.scale = 1; // pixels of the page to one of the image
    this.pointers = new Map();
    this.cursor = null;
    this.isFitted = true;
    new ResizeObserver(() => (this.isFitted ? this.fit() : this.draw())).observe(canvas);
    for (const name of ["pointerdown", "pointermove", "pointerup", "pointercancel", "pointerleave", "wheel", "keydown"]) {
      canvas.addEventListener(name, (event) => this[name](event), { passive: false });
    }
  }

  show(tiles, z) {
    const isNew = tiles !== this.tiles;
    Object.assign(this, { tiles, z });
    if (isNew) this.fit();
    else this.draw();
  }

  get panes() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!this.isBeside) return [{ left: 0, top: 0, width, height, kinds: ["image", "overlay"] }];
    const isWide = width > height;
    const half = isWide ? { width: width / 2, height } : { width, height: height / 2 };
    const second = isWide ? { left: width / 2, top: 0 } : { left: 0, top: height / 2 };
    return [
      { left: 0, top: 0, ...half, kinds: ["image"] },
      { ...second, ...half, kinds: ["image", "overlay"] },
    ];
  }

  get fitting() {
    const [pane] = this.panes;
    return Math.max(1e-3, Math.min(pane.width / this.tiles.width, pane.height / this.tiles.height));
  }

  fit() {
    if (!this.tiles) return;
    Object.assign(this, { x: this.tiles.width / 2, y: this.tiles.height / 2, scale: this.fitting });
    this.isFitted = true;
    this.draw();
  }

  actual() {
    this.zoom(1 / devicePixelRatio / this.scale);
  }

  // Zooms by a factor around a point of the canvas; around the middle without one.
  zoom(factor, at = null) {
    if (!this.tiles) return;
    const before = at && this.toImage(at);
    this.scale = Math.min(MOST, Math.max(this.fitting / 2, this.scale * factor));
    this.isFitted = false;
    if (at) {
      const after = this.toImage(at);
      this.x += before.x - after.x;
      this.y += before.y - after.y;
    }
    this.settle();
  }

  move(dx, dy) {
    this.x -= dx / this.scale;
    this.y -= dy / this.scale;
    this.isFitted = false;
    this.settle();
  }

  settle() {
    this.x = Math.min(this.tiles.width, Math.max(0, this.x));
    this.y = Math.min(this.tiles.height, Math.max(0, this.y));
    this.draw();
  }

  toImage({ x, y }) {
    const panes = this.panes;
    const pane = panes.find((each) => x >= each.left && x < each.left + each.width && y >= each.top && y < each.top + each.height) ?? panes.at(-1);
    return {
      x: this.x + (x - pane.left - pane.width / 2) / this.scale,
      y: this.y + (y - pane.top - pane.height / 2) / this.scale,
    };
  }

  draw() {
    if (this.isDrawing) return;
    this.isDrawing = true;
    requestAnimationFrame(() => {
      this.isDrawing = false;
      this.paint();
    });
  }

  paint() {
    const { canvas, tiles } = this;
    const ratio = devicePixelRatio;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!tiles) return;
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = this.scale * ratio < 1.5;
    const level = Math.min(tiles.stack.levels - 1, Math.max(0, Math.floor(Math.log2(1 / (this.scale * ratio)))));
    for (const pane of this.panes) {
      context.save();
      context.beginPath();
      context.rect(pane.left, pane.top, pane.width, pane.height);
      context.clip();
      for (const kind of pane.kinds) {
        context.globalAlpha = kind === "overlay" ? this.opacity : 1;
        this.paintLayer(context, pane, kind, level, ratio);
      }
      context.globalAlpha = 1;
      if (this.isBeside) {
        context.strokeStyle = "#6b757c";
        context.strokeRect(pane.left, pane.top, pane.width, pane.height);
      }
      if (this.cursor && this.tool !== "move") this.paintCursor(context, pane);
      context.restore();
    }
    this.on.moved(this.scale * ratio);
  }

  paintLayer(context, pane, kind, level, ratio) {
    const { tiles, z, scale } = this;
    const side = tiles.stack.tile * 2 ** level;
    const [left, top] = [pane.left + pane.width / 2 - this.x * scale, pane.top + pane.height / 2 - this.y * scale];
    const visible = (start, length, first, all) => [
      Math.max(0, Math.floor((start - first) / scale / side)),
      Math.min(Math.ceil(all / side), Math.ceil((start + length - first) / scale / side)),
    ];
    const [row0, row1] = visible(pane.top, pane.height, top, tiles.height);
    const [column0, column1] = visible(pane.left, pane.width, left, tiles.width);
    const snap = (value) => Math.round(value * ratio) / ratio; // no seams between tiles
    for (let row = row0; row < row1; row++) {
      for (let column = column0; column < column1; column++) {
        const found = this.finest(kind, z, level, row, column);
        if (!found) continue;
        const { x0, y0, x1, y1 } = tiles.place(level, row, column);
        const [dx0, dx1, dy0, dy1] = [snap(left + x0 * scale), snap(left + x1 * scale), snap(top + y0 * scale), snap(top + y1 * scale)];
        const step = 2 ** found.level;
        const origin = tiles.place(found.level, found.row, found.column);
        const source = [(x0 - origin.x0) / step, (y0 - origin.y0) / step, (x1 - x0) / step, (y1 - y0) / step];
        context.drawImage(found.canvas, ...source, dx0, dy0, dx1 - dx0, dy1 - dy0);
      }
    }
  }

  // Returns the picture of a tile, or of a coarser one around it until it has come.
  finest(kind, z, level, row, column) {
    const last = this.tiles.stack.levels - 1;
    for (let up = level; up <= last; up++) {
      const [r, c] = [row >> (up - level), column >> (up - level)];
      const canvas = this.tiles.picture(kind, z, up, r, c, up === level || up === last);
      if (canvas) return { canvas, level: up, row: r, column: c };
    }
    return null;
  }

  paintCursor(context, pane) {
    const { x, y } = this.toImage(this.cursor);
    const [cx, cy] = [pane.left + pane.width / 2 + (x - this.x) * this.scale, pane.top + pane.height / 2 + (y - this.y) * this.scale];
    for (const [colour, width] of [["#000", 3], [this.tool === "eraser" ? "#ff7b6b" : "#ffd24d", 1.5]]) {
      context.beginPath();
      context.arc(cx, cy, Math.max(2, (this.radius + 0.5) * this.scale), 0, 2 * Math.PI);
      Object.assign(context, { strokeStyle: colour, lineWidth: width });
      context.stroke();
    }
  }

  // Where a pointer is, in pixels of the page from the corner of the canvas.
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  voxel(point) {
    const { x, y } = this.toImage(point);
    return [Math.floor(x), Math.floor(y)];
  }

  pointerdown(event) {
    if (!this.tiles) return;
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.at(event));
    if (this.pointers.size === 1 && this.tool !== "move" && event.button === 0 && !event.shiftKey) {
      this.tiles.begin({ z: this.z, radius: this.radius, erases: this.tool === "eraser", points: [this.voxel(this.at(event))] });
    } else if (this.pointers.size === 2 && this.tiles.live) {
      this.tiles.live = null; // two fingers zoom: what the first one painted does not count
      this.tiles.replace(this.tiles.strokes);
    }
    this.draw();
  }

  pointermove(event) {
    if (!this.tiles) return;
    const now = this.at(event);
    const before = this.pointers.get(event.pointerId);
    this.cursor = event.pointerType === "touch" ? null : now;
    if (before && this.tiles.live) {
      for (const each of event.getCoalescedEvents?.() ?? [event]) this.tiles.extend(this.voxel(this.at(each)));
      this.tiles.extend(this.voxel(now));
    } else if (before && this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const middle = (point) => ({ x: (point.x + other.x) / 2, y: (point.y + other.y) / 2 });
      const distance = (point) => Math.max(1, Math.hypot(point.x - other.x, point.y - other.y));
      this.move(middle(now).x - middle(before).x, middle(now).y - middle(before).y);
      this.zoom(distance(now) / distance(before), middle(now));
    } else if (before) {
      this.move(now.x - before.x, now.y - before.y);
    }
    if (before) this.pointers.set(event.pointerId, now);
    this.draw();
  }

  pointerup(event) {
    this.pointers.delete(event.pointerId);
    if (this.tiles?.live) this.on.stroke(this.tiles.finish());
    this.draw();
  }

  pointercancel(event) {
    this.pointerup(event);
  }

  pointerleave() {
    this.cursor = null;
    this.draw();
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.zoom(Math.exp(-event.deltaY * lines * 0.0015), this.at(event));
  }

  keydown(event) {
    if (!this.tiles || event.ctrlKey || event.metaKey || event.altKey) return;
    const far = 60;
    const actions = {
      ArrowLeft: () => this.move(far, 0),
      ArrowRight: () => this.move(-far, 0),
      ArrowUp: () => this.move(0, far),
      ArrowDown: () => this.move(0, -far),
      "+": () => this.zoom(STEP),
      "=": () => this.zoom(STEP),
      "-": () => this.zoom(1 / STEP),
      0: () => this.fit(),
      PageUp: () => this.on.slice(1),
      PageDown: () => this.on.slice(-1),
    };
    const action = actions[event.key];
    if (action) {
      event.preventDefault();
      action();
    }
  }
}
