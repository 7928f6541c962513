// Part 3 of the canvas: the pointer, the keys, the buttons, the choice of a concept, and what the server sends.

function at(event) {
  const frame = stage.getBoundingClientRect();
  return {
    x: clamp((event.clientX - frame.left) / frame.width, 0, 1),
    y: clamp((event.clientY - frame.top) / frame.height, 0, 1),
  };
}

function grab(event) {
  if (!event.isPrimary || event.button !== 0 || event.target.closest(".choice, .away")) return;
  event.preventDefault(); // no text is selected; focus goes where select() puts it
  dismiss();
  endNudge();
  stage.classList.add("by-pointer"); // no focus ring on what was clicked
  const { edges } = event.target.dataset;
  const name = edges ? selected : event.target.closest(".box")?.dataset.concept ?? null;
  gesture = { id: event.pointerId, start: at(event), before: boxes, origin: boxOf(name), edges };
  stage.setPointerCapture(event.pointerId);
  select(name);
}

function drag(event) {
  if (gesture?.id !== event.pointerId) return;
  const point = at(event);
  const [dx, dy] = [point.x - gesture.start.x, point.y - gesture.start.y];
  if (!gesture.origin) {
    draft = spanned(gesture.start, point);
    draw();
  } else replace(gesture.edges ? resized(gesture.origin, gesture.edges, dx, dy) : moved(gesture.origin, dx, dy));
}

function release(event) {
  if (gesture?.id !== event.pointerId) return;
  const { before, origin, edges } = gesture;
  gesture = null;
  if (origin) commit(before, (edges ? "Resized. " : "Moved. ") + described(tidy(boxOf(origin.concept))) + ".");
  else if (draft) finishDraft();
}

function abandon() {
  if (!gesture) return;
  boxes = gesture.before;
  gesture = draft = null;
  draw();
}

function finishDraft() {
  const waiting = free();
  if (draft.w < LEAST || draft.h < LEAST || !layout.concepts.length) {
    const wide = draft.w > 0.01 || draft.h > 0.01;
    said.textContent = !layout.concepts.length ? "Choose concepts first." : wide ? "Drag further to draw a box." : "";
    draft = null;
    draw();
  } else if (waiting.length === 1 && boxes.length < MOST) bind(waiting[0].name);
  else openChoice(draft);
}

// ---- which concept

function openChoice(box) {
  const options = draft && boxes.length >= MOST ? layout.concepts.filter(({ name }) => boxOf(name)) : layout.concepts;
  choice.replaceChildren(...options.map(newOption));
  choice.hidden = false;
  const fit = (wanted, size, room) => clamp(wanted, 4, Math.max(room - size - 4, 4)) + "px";
  const [width, height] = [stage.clientWidth, stage.clientHeight];
  const right = (box.x + box.w) * width + 8;
  const beside = right + choice.offsetWidth < width ? right : box.x * width - choice.offsetWidth - 8;
  choice.style.left = fit(beside, choice.offsetWidth, width);
  choice.style.top = fit(box.y * height, choice.offsetHeight, height);
  const likely = choice.querySelector("[aria-pressed=true], [data-free=true]") ?? choice.firstElementChild;
  likely.focus({ preventScroll: true });
}

function newOption({ name, letter, colour, label }) {
  const option = make("button", "option");
  option.type = "button";
  option.dataset.concept = name;
  option.style.setProperty("--colour", colour);
  option.style.setProperty("--ink", inkOn(colour));
  option.setAttribute("aria-pressed", String(!draft && name === selected));
  option.dataset.free = String(Boolean(draft) && !boxOf(name));
  const note = boxOf(name) && (draft || name !== selected) ? (draft ? "moves here" : "swaps") : "";
  const text = make("span", "text");
  text.append(make("span", "name", name), make("small", "note", [label, note].filter(Boolean).join(" · ")));
  option.append(make("b", "letter", letter), text);
  return option;
}

function closeChoice() {
  choice.hidden = true;
  choice.replaceChildren();
}

// Closes the choice; a box that was drawn but not bound is gone.
function dismiss() {
  const asked = !choice.hidden;
  closeChoice();
  if (draft) draft = null;
  if (asked) draw();
  return asked;
}

function keyInChoice(event) {
  const options = [...choice.children];
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (event.key === "Escape") {
    dismiss();
    select(selected);
  } else if (step) {
    const index = options.indexOf(document.activeElement);
    options[(index + step + options.length) % options.length].focus();
  } else return false;
  return true;
}

// ---- keys and buttons

const DEEDS = {
  add: addBox,
  bind: () => selected && openChoice(boxOf(selected)),
  undo: () => travel(past, future, "Undone"),
  redo: () => travel(future, past, "Redone"),
  forward: () => restack(1),
  back: () => restack(-1),
  remove: () => removeBox(selected),
  clear: clearAll,
};

function keyOnCanvas(event) {
  const arrow = ARROWS[event.key];
  if (!arrow) endNudge();
  if (event.key === "Escape") {
    abandon();
    select(null);
  } else if (!selected) return false;
  else if (arrow) nudge(arrow, event.shiftKey);
  else if (event.key === "Delete" || event.key === "Backspace") removeBox(selected, true);
  else if (event.key === "Enter") openChoice(boxOf(selected));
  else if (event.key === "PageUp" || event.key === "PageDown") {
    restack(event.key === "PageUp" ? 1 : -1);
    shapeOf(selected).focus({ preventScroll: true }); // it was lifted out of the page and put back
  } else return false;
  return true;
}

// An arrow key held down is one gesture, which ends when it is let go.
function nudge([dx, dy], resize) {
  nudged ??= boxes;
  const box = boxOf(selected);
  if (resize) replace(resized(resized(box, "e", dx * STEP, 0), "s", 0, dy * STEP));
  else replace(moved(box, dx * STEP, dy * STEP));
}

function endNudge() {
  if (!nudged) return;
  const before = nudged;
  nudged = null;
  commit(before, described(tidy(boxOf(selected))) + ".");
}

function keydown(event) {
  const command = (event.ctrlKey || event.metaKey) && !event.altKey;
  const key = event.key.toLowerCase();
  let done = true;
  stage.classList.remove("by-pointer");
  if (!choice.hidden) done = keyInChoice(event);
  else if (command && (key === "z" || key === "y")) {
    endNudge();
    DEEDS[key === "y" || event.shiftKey ? "redo" : "undo"]();
    if (!element.contains(document.activeElement)) stage.focus({ preventScroll: true }); // its box is gone
  } else if (command || event.altKey || !stage.contains(event.target)) done = false;
  else done = keyOnCanvas(event);
  if (!done) return;
  event.preventDefault();
  event.stopPropagation(); // the page's own shortcuts do not see it
}

function click(event) {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.parentElement === tools) {
    dismiss();
    if (button.getAttribute("aria-disabled") !== "true") DEEDS[button.dataset.do]();
  } else if (button.matches(".option")) bind(button.dataset.concept);
  else removeBox(selected, true);
}

// ---- what the server sends

// A new size, picture or list of concepts keeps the history; other boxes are a new layout, which starts one.
function receive() {
  const known = layout.boxes.map(tidy);
  layout = JSON.parse(JSON.stringify(props.value));
  const given = layout.boxes.map(tidy);
  drawStage();
  if (!same(given, known)) {
    [boxes, past, future, selected] = [given, [], [], null];
    gesture = draft = nudged = null;
    closeChoice();
  }
  draw();
}

for (const edges of EDGES) {
  frame.appendChild(make("i", "handle " + edges)).dataset.edges = edges;
}
stage.addEventListener("pointerdown", grab);
stage.addEventListener("pointermove", drag);
stage.addEventListener("pointerup", release);
stage.addEventListener("pointercancel", (event) => gesture?.id === event.pointerId && abandon());
stage.addEventListener("dblclick", () => DEEDS.bind());
stage.addEventListener("focusin", (event) => {
  const name = event.target.closest(".box")?.dataset.concept;
  if (name && name !== selected) select(name, false);
});
element.addEventListener("focusout", endNudge);
choice.addEventListener("focusout", (event) => {
  if (event.relatedTarget && !choice.contains(event.relatedTarget)) dismiss();
});
element.addEventListener("keydown", keydown);
element.addEventListener("keyup", (event) => event.key in ARROWS && endNudge());
element.addEventListener("click", click);
watch("value", receive);
receive();
