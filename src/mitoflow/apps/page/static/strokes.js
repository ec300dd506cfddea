// Corrections that are painted on slices. Whole numbers throughout: strokes.py marks the same voxels.

export const PAINTED = 1;
export const ERASED = 2;

// Yields where the brush goes, [x, y], a voxel at a time.
function* centres(points) {
  yield points[0];
  for (let i = 1; i < points.length; i++) {
    const [x0, y0] = points[i - 1];
    const [x1, y1] = points[i];
    const steps = Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0));
    for (let step = 1; step <= steps; step++) {
      yield [x0, y0].map((from, axis) => {
        const way = axis ? y1 - y0 : x1 - x0;
        return from + Math.floor((2 * way * step + steps) / (2 * steps));
      });
    }
  }
}

// Marks the voxels of a stroke in a tile: its `x0` and `y0` are those of its first voxel, `step` is the distance from
// one to the next, and `marks` (height x width) gets PAINTED or ERASED.
export function mark(stroke, tile) {
  const { x0, y0, step, width, height, marks } = tile;
  const { radius, erases } = stroke;
  for (const [cx, cy] of centres(stroke.points)) {
    const top = Math.max(0, Math.ceil((cy - radius - y0) / step));
    const bottom = Math.min(height - 1, Math.floor((cy + radius - y0) / step));
    for (let row = top; row <= bottom; row++) {
      const dy = y0 + row * step - cy;
      const half = Math.floor(Math.sqrt(radius * radius - dy * dy));
      const left = Math.max(0, Math.ceil((cx - half - x0) / step));
      const right = Math.min(width - 1, Math.floor((cx + half - x0) / step));
      if (left <= right) marks.fill(erases ? ERASED : PAINTED, row * width + left, row * width + right + 1);
    }
  }
}
