// Part 2 of the canvas: its state, how it is drawn, and every change of it.
// What the user sees is `boxes`, later ones in front; `props.value` is what the server sees. Names come from users:
// they reach the page as textContent and attributes only.
const PARTS = ["stage", "picture", "hint", "boxes", "frame", "away", "choice", "tools", "said"];
const [stage, picture, hint, layer, frame, away, choice, tools, said] = PARTS
  .map((part) => element.querySelector("." + part));

let layout = { concepts: [], boxes: [] }; // the value as it was last received or sent
let boxes = [];
let past = [];
let future = [];
let selected = null; // the name of the concept whose box is selected
let draft = null; // a box just drawn that no concept is bound to yet
let gesture = null; // what the pointer is doing
let nudged = null; // the boxes before the arrow key that is still held down

const boxOf = (name) => boxes.find((box) => box.concept === name);
const conceptOf = (name) => layout.concepts.find((concept) => concept.name === name);
const free = () => layout.concepts.filter((concept) => !boxOf(concept.name));
const title = (name) => conceptOf(name).letter + ", " + name;

function described(box) {
  const sides = [["left", box.x], ["top", box.y], ["width", box.w], ["height", box.h]];
  return "Box " + title(box.concept) + ", " + sides.map(([side, value]) => side + " " + percent(value)).join(", ");
}

// ---- drawing

function newShape(name) {
  const shape = make("div", "box");
  shape.dataset.concept = name;
  shape.tabIndex = 0;
  shape.setAttribute("role", "group");
  const tag = make("span", "tag");
  tag.append(make("b", "letter"), make("span", "name", name));
  shape.append(tag);
  return shape;
}

function dress(shape, box) {
  const concept = conceptOf(box.concept);
  place(shape, box);
  shape.style.setProperty("--colour", concept.colour);
  shape.style.setProperty("--ink", inkOn(concept.colour));
  shape.setAttribute("aria-label", described(box));
  shape.classList.toggle("selected", box.concept === selected);
  shape.querySelector(".letter").textContent = concept.letter;
  if (box.concept === selected) drawFrame(box, concept);
}

// The handles lie above all boxes, so that a box behind others can be sized too.
function drawFrame(box, concept) {
  place(frame, box);
  frame.style.setProperty("--colour", concept.colour);
  away.setAttribute("aria-label", "Remove box " + title(box.concept));
}

function shapeOf(name) {
  return [...layer.children].find((shape) => shape.dataset.concept === name);
}

function draw() {
  const old = new Map([...layer.children].map((shape) => [shape.dataset.concept, shape]));
  for (const [n, box] of boxes.entries()) {
    const shape = old.get(box.concept) ?? newShape(box.concept);
    old.delete(box.concept);
    dress(shape, box);
    if (layer.children[n] !== shape) layer.insertBefore(shape, layer.children[n] ?? null);
  }
  old.forEach((shape) => shape.remove());
  frame.hidden = !boxOf(selected);
  if (draft) {
    place(layer.appendChild(make("div", "draft")), draft);
  }
  hint.textContent = draft || boxes.length ? "" : layout.concepts.length
    ? "Draw a box where a concept shall be" : "Choose concepts first; then draw where each shall be";
  drawTools();
}

function drawTools() {
  const index = boxes.findIndex((box) => box.concept === selected);
  const able = {
    add: free().length > 0 && boxes.length < MOST, undo: past.length > 0, redo: future.length > 0,
    bind: index >= 0, remove: index >= 0, clear: boxes.length > 0,
    forward: index >= 0 && index < boxes.length - 1, back: index > 0,
  };
  for (const button of tools.children) button.setAttribute("aria-disabled", String(!able[button.dataset.do]));
}

function drawStage() {
  stage.style.setProperty("--ratio", layout.width / layout.height);
  picture.hidden = !layout.picture;
  if (layout.picture) picture.setAttribute("src", layout.picture);
  else picture.removeAttribute("src");
}

function select(name, focus = true) {
  selected = name;
  draw();
  if (focus) (name ? shapeOf(name) : stage).focus({ preventScroll: true });
}

// ---- changing: every finished gesture is one entry of the history and one event

function commit(before, message) {
  boxes = boxes.map(tidy);
  if (same(boxes, before)) return draw();
  past = [...past.slice(-99), before];
  future = [];
  publish(message);
}

function publish(message) {
  if (!boxOf(selected)) selected = null;
  said.textContent = message;
  draw();
  layout = { ...layout, boxes: boxes.map((box) => ({ ...box })) };
  props.value = layout;
  trigger("layout_changed");
}

function travel(from, to, word) {
  if (!from.length) return;
  to.push(boxes);
  boxes = from.pop().filter((box) => conceptOf(box.concept));
  publish(word + ". " + (boxes.map(described).join("; ") || "No box is left") + ".");
}

function bind(name) {
  const before = boxes;
  if (draft) boxes = [...boxes.filter((box) => box.concept !== name), { ...draft, concept: name }];
  else boxes = boxes.map((box) => ({ ...box, concept: swapped(box.concept, selected, name) }));
  draft = null;
  closeChoice();
  selected = name;
  commit(before, described(tidy(boxOf(name))) + ".");
  select(name);
}

function swapped(one, a, b) {
  if (one === a) return b;
  return one === b ? a : one;
}

function addBox() {
  const [concept] = free();
  if (!concept || boxes.length >= MOST) return;
  const before = boxes;
  const box = { concept: concept.name, ...freeSpot(boxes, Math.min(layout.concepts.length, MOST)) };
  boxes = [...boxes, box];
  selected = concept.name;
  commit(before, "Added. " + described(box) + ".");
}

function removeBox(name, focus) {
  const before = boxes;
  const index = boxes.findIndex((box) => box.concept === name);
  if (index < 0) return;
  boxes = boxes.filter((box) => box.concept !== name);
  if (selected === name) selected = null;
  commit(before, "Box " + title(name) + " removed.");
  if (focus) select(boxes[Math.min(index, boxes.length - 1)]?.concept ?? null);
}

function restack(step) {
  const index = boxes.findIndex((box) => box.concept === selected);
  const target = index + step;
  if (index < 0 || target < 0 || target >= boxes.length) return;
  const before = boxes;
  boxes = [...boxes];
  [boxes[index], boxes[target]] = [boxes[target], boxes[index]];
  commit(before, "Box " + title(selected) + " is " + (target + 1) + " of " + boxes.length + " from the back.");
}

function clearAll() {
  if (!boxes.length) return;
  const before = boxes;
  boxes = [];
  commit(before, "All boxes removed.");
}

function replace(box) {
  boxes = boxes.map((one) => (one.concept === box.concept ? box : one));
  dress(shapeOf(box.concept), box);
}
