// Part 1 of the canvas: what needs no state. The parts are joined into the body of one function, which gradio calls
// for each canvas with (element, trigger, props, server, upload, watch); nothing here is global.
const LEAST = 0.03; // the smallest side of a box that is drawn or sized by hand
const STEP = 0.01;
const MOST = 8;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const EDGES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
const BRIGHT = 0.197; // the luminance above which #161616 reads better than white

const clamp = (value, least, most) => Math.max(least, Math.min(most, value));
const percent = (fraction) => Math.round(fraction * 100) + " %";
const same = (some, others) => JSON.stringify(some) === JSON.stringify(others);

function tidy(box) {
  const round = (value) => Math.round(value * 1e4) / 1e4;
  const [x, y] = [clamp(round(box.x), 0, 1), clamp(round(box.y), 0, 1)];
  return { concept: box.concept, x, y, w: Math.min(round(box.w), 1 - x), h: Math.min(round(box.h), 1 - y) };
}

function moved(box, dx, dy) {
  return { ...box, x: clamp(box.x + dx, 0, 1 - box.w), y: clamp(box.y + dy, 0, 1 - box.h) };
}

function resized(box, edges, dx, dy) {
  let [left, top, right, bottom] = [box.x, box.y, box.x + box.w, box.y + box.h];
  if (edges.includes("w")) left = clamp(left + dx, 0, Math.max(right - LEAST, 0));
  if (edges.includes("e")) right = clamp(right + dx, Math.min(left + LEAST, 1), 1);
  if (edges.includes("n")) top = clamp(top + dy, 0, Math.max(bottom - LEAST, 0));
  if (edges.includes("s")) bottom = clamp(bottom + dy, Math.min(top + LEAST, 1), 1);
  return { concept: box.concept, x: left, y: top, w: right - left, h: bottom - top };
}

// The box that a drag from `start` to `end` draws.
function spanned(start, end) {
  return {
    x: Math.min(start.x, end.x), y: Math.min(start.y, end.y),
    w: Math.abs(start.x - end.x), h: Math.abs(start.y - end.y),
  };
}

function overlap(a, b) {
  const shared = (at, size) => Math.min(a[at] + a[size], b[at] + b[size]) - Math.max(a[at], b[at]);
  return Math.max(shared("x", "w"), 0) * Math.max(shared("y", "h"), 0);
}

// The free place for one more of `count` boxes, from the left: the column of which `boxes` cover least.
function freeSpot(boxes, count) {
  const covered = (spot) => boxes.reduce((sum, box) => sum + overlap(box, spot), 0);
  const column = (_, n) => ({ x: (n + 0.08) / count, y: 0.12, w: 0.84 / count, h: 0.8 });
  return Array.from({ length: count }, column)
    .reduce((best, spot) => (covered(spot) < covered(best) - 1e-9 ? spot : best));
}

function inkOn(colour) {
  const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
  const light = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] > BRIGHT ? "#161616" : "#ffffff";
}

function make(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function place(shape, box) {
  for (const [side, value] of [["left", box.x], ["top", box.y], ["width", box.w], ["height", box.h]]) {
    shape.style[side] = value * 100 + "%";
  }
}
