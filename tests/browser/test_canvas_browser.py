"""The layout canvas in a real browser: mouse, touch, keys, and what the server gets and sends."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio_client import Client
from PIL import Image
from playwright.sync_api import ElementHandle, Page
from watched_pages import Watched

from studio import regions
from studio.ui.canvas import LayoutCanvas, LayoutValue, from_layout
from studio.ui.report import picture_uri

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAMES = ["milo", "rex", "<img src=x onerror=alert(1)>${1+1}{{value}}"]
PICTURE = picture_uri(Image.new("RGB", (3, 2)))
BARE = """() => {
  const stage = document.querySelector(".stage"), { x, y, width, height } = stage.getBoundingClientRect();
  return stage.contains(document.elementFromPoint(x + width / 2, y + height / 2));
}"""
PRESET = regions.Layout({"rex": regions.Box(0.5, 0.5, 1, 1), "milo": regions.Box(0, 0, 0.25, 0.5)})


def _value(layout: regions.Layout | None, names: list[str] = NAMES) -> LayoutValue:
    return from_layout(layout, names, width=600, height=400, labels={"milo": "cat"})


@pytest.fixture(scope="module")
def served(launch: Callable[[gr.Blocks], str]) -> SimpleNamespace:
    received: list[LayoutValue] = []

    def keep(value: LayoutValue) -> str:
        received.append(value)
        return " ".join(box.concept for box in value.boxes)

    with gr.Blocks(title="canvas", analytics_enabled=False) as blocks:
        canvas = LayoutCanvas(_value(None), elem_id="layout")
        kept = gr.Textbox(label="Kept", elem_id="kept")
        canvas.layout_changed(keep, canvas, kept, trigger_mode="multiple", api_name="keep")  # every one of them
        gr.Button("Preset").click(lambda: _value(PRESET), outputs=canvas, show_progress="hidden")
        gr.Button("Same").click(lambda value: value, canvas, canvas, show_progress="hidden")
        gr.Button("Taller").click(
            lambda value: value.model_copy(update={"height": 900, "picture": PICTURE}),
            canvas,
            canvas,
            show_progress="hidden",
        )
        gr.Button("Two").click(lambda: _value(None, NAMES[:2]), outputs=canvas, show_progress="hidden")
    return SimpleNamespace(url=launch(blocks), received=received)


class Hand:
    """What a user does on the canvas of a page, and what came of it."""

    def __init__(self, page: Page, received: list[LayoutValue]) -> None:
        self.page = page
        self.received = received
        page.wait_for_selector(".stage")
        page.wait_for_function("document.querySelector('.hint').textContent !== ''")
        # Until its page is connected, gradio keeps a clear sheet over every component: what touches that is lost.
        page.wait_for_function(BARE)
        received.clear()

    def point(self, x: float, y: float) -> tuple[float, float]:
        frame = self.page.locator(".stage").bounding_box()
        assert frame is not None
        return frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*self.point(*start))
        mouse.down()
        mouse.move(*self.point(*((a + b) / 2 for a, b in zip(start, end, strict=True))))
        mouse.move(*self.point(*end))
        mouse.up()

    def draw(self, start: tuple[float, float], end: tuple[float, float], name: str) -> None:
        self.drag(start, end)
        self.page.locator(".option", has_text=name).click()

    def box(self, name: str) -> ElementHandle:
        found = self.page.query_selector(f'.box[data-concept="{name}"]')
        assert found is not None
        return found

    def labels(self) -> list[str]:
        return [box.get_attribute("aria-label") or "" for box in self.page.query_selector_all(".box")]

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def tool(self, deed: str) -> None:
        self.page.click(f"[data-do={deed}]")

    def layout(self, events: int) -> dict[str, list[float]]:
        """The boxes that the server got last, once it has had exactly `events` events."""
        deadline = time.monotonic() + 10
        while len(self.received) < events and time.monotonic() < deadline:
            self.page.wait_for_timeout(20)
        self.page.wait_for_timeout(80)
        assert len(self.received) == events
        return {box.concept: [round(s, 2) for s in (box.x, box.y, box.w, box.h)] for box in self.received[-1].boxes}


@pytest.fixture
def hand(served: SimpleNamespace, watched: Watched) -> Hand:
    return Hand(watched.open(served.url), served.received)


def _draw_two(hand: Hand) -> None:
    hand.draw((0.1, 0.2), (0.4, 0.8), "milo")
    hand.draw((0.5, 0.2), (0.9, 0.8), "rex")
    hand.layout(2)


def test_a_box_is_drawn_by_mouse_and_bound_with_one_click(hand: Hand) -> None:
    hand.drag((0.1, 0.2), (0.5, 0.8))
    options = hand.page.locator(".option")
    assert options.count() == 3
    assert options.nth(0).inner_text().split("\n") == ["A", "milo", "cat"]
    assert hand.received == []  # not before a concept is bound
    options.nth(0).click()
    assert hand.layout(1) == {"milo": [0.1, 0.2, 0.4, 0.6]}
    assert hand.labels() == ["Box A, milo, left 10 %, top 20 %, width 40 %, height 60 %"]
    assert hand.page.inner_text(".said") == hand.labels()[0] + "."
    assert hand.page.locator("#kept textarea").input_value() == "milo"


def test_the_last_free_concept_is_bound_at_once(hand: Hand) -> None:
    _draw_two(hand)
    hand.drag((0.1, 0.85), (0.3, 0.99))
    assert list(hand.layout(3)) == NAMES
    assert hand.page.locator(".choice").is_hidden()
    assert hand.page.locator(".box .name").nth(2).inner_text() == NAMES[2]  # as text: nothing of it runs


def test_a_draft_that_nobody_binds_is_gone_and_a_tiny_one_is_none(hand: Hand) -> None:
    hand.drag((0.1, 0.2), (0.5, 0.8))
    hand.press("Escape")
    hand.drag((0.1, 0.2), (0.12, 0.22))
    assert hand.page.locator(".draft").count() == 0
    assert hand.page.inner_text(".said") == "Drag further to draw a box."
    assert hand.received == []


def test_drag_moves_and_stops_at_the_edges(hand: Hand) -> None:
    _draw_two(hand)
    hand.drag((0.2, 0.5), (0.3, 0.6))
    assert hand.layout(3)["milo"] == [0.2, 0.3, 0.3, 0.6]
    hand.drag((0.3, 0.6), (0.99, 0.99))
    assert hand.layout(4)["milo"] == [0.7, 0.4, 0.3, 0.6]


HANDLES = {
    "nw": ((0.1, 0.2), (0.2, 0.3), [0.2, 0.3, 0.2, 0.5]),
    "n": ((0.25, 0.2), (0.25, 0.1), [0.1, 0.1, 0.3, 0.7]),
    "ne": ((0.4, 0.2), (0.45, 0.1), [0.1, 0.1, 0.35, 0.7]),
    "e": ((0.4, 0.5), (0.0, 0.5), [0.1, 0.2, 0.03, 0.6]),
    "se": ((0.4, 0.8), (1.2, 1.2), [0.1, 0.2, 0.9, 0.8]),
    "s": ((0.25, 0.8), (0.25, 0.9), [0.1, 0.2, 0.3, 0.7]),
    "sw": ((0.1, 0.8), (0.05, 0.7), [0.05, 0.2, 0.35, 0.5]),
    "w": ((0.1, 0.5), (-0.2, 0.5), [0.0, 0.2, 0.4, 0.6]),
}


def test_each_handle_resizes_its_sides(hand: Hand) -> None:
    hand.draw((0.1, 0.2), (0.4, 0.8), "milo")
    for n, (start, end, expected) in enumerate(HANDLES.values()):
        hand.drag(start, end)
        assert hand.layout(2 * n + 2)["milo"] == expected
        hand.press("Control+z")
        assert hand.layout(2 * n + 3)["milo"] == [0.1, 0.2, 0.3, 0.6]


def test_keys_move_size_stack_remove_and_undo(hand: Hand) -> None:
    _draw_two(hand)
    hand.box("milo").focus()
    hand.press("ArrowRight", "ArrowUp")
    assert hand.layout(4)["milo"] == [0.11, 0.19, 0.3, 0.6]
    hand.press("Shift+ArrowRight", "Shift+ArrowUp")
    assert hand.layout(6)["milo"] == [0.11, 0.19, 0.31, 0.59]
    hand.press("PageUp")
    assert list(hand.layout(7)) == ["rex", "milo"]
    hand.press("ArrowLeft")  # the focus stayed on the box
    assert hand.layout(8)["milo"][0] == 0.1
    hand.press("Control+z", "Control+z")
    assert list(hand.layout(10)) == ["milo", "rex"]
    hand.press("Control+y", "Control+Shift+z")
    assert list(hand.layout(12)) == ["rex", "milo"]
    hand.press("Delete")
    assert list(hand.layout(13)) == ["rex"]
    assert "Box A, milo removed." in hand.page.inner_text(".said")
    hand.press("Backspace")
    assert hand.layout(14) == {}
    hand.press("Control+z")  # with no box left the canvas itself has the focus
    assert list(hand.layout(15)) == ["rex"]


def test_an_arrow_held_down_is_one_gesture(hand: Hand) -> None:
    hand.draw((0.1, 0.2), (0.4, 0.8), "milo")
    for _ in range(5):
        hand.page.keyboard.down("ArrowRight")
    hand.page.keyboard.up("ArrowRight")
    assert hand.layout(2)["milo"][0] == 0.15
    hand.press("Control+z")
    assert hand.layout(3)["milo"][0] == 0.1


def test_tab_goes_through_the_boxes_and_escape_deselects(hand: Hand) -> None:
    _draw_two(hand)
    hand.box("milo").focus()
    hand.press("Tab")
    assert hand.page.evaluate("document.activeElement.dataset.concept") == "rex"
    assert hand.page.locator(".box.selected").get_attribute("data-concept") == "rex"
    hand.press("Escape")
    assert hand.page.locator(".box.selected").count() == 0
    assert hand.page.locator(".frame").is_hidden()


def test_escape_takes_back_a_drag_that_is_going_on(hand: Hand) -> None:
    hand.draw((0.1, 0.2), (0.4, 0.8), "milo")
    hand.page.mouse.move(*hand.point(0.2, 0.5))
    hand.page.mouse.down()
    hand.page.mouse.move(*hand.point(0.5, 0.5))
    assert "left: 40%" in (hand.box("milo").get_attribute("style") or "")
    hand.press("Escape")
    hand.page.mouse.up()
    assert hand.layout(1) == {"milo": [0.1, 0.2, 0.3, 0.6]}
    assert "left: 10%" in (hand.box("milo").get_attribute("style") or "")


def test_enter_asks_for_the_concept_and_a_taken_one_swaps(hand: Hand) -> None:
    _draw_two(hand)
    hand.box("milo").focus()
    hand.press("Enter", "ArrowDown", "Enter")
    swapped = hand.layout(3)
    assert swapped == {"rex": [0.1, 0.2, 0.3, 0.6], "milo": [0.5, 0.2, 0.4, 0.6]}
    assert hand.page.evaluate("document.activeElement.dataset.concept") == "rex"
    hand.press("Enter", "Escape")
    assert hand.page.evaluate("document.activeElement.dataset.concept") == "rex"


def test_a_new_box_for_a_taken_concept_replaces_its_box(hand: Hand) -> None:
    hand.draw((0.1, 0.2), (0.4, 0.8), "milo")
    hand.drag((0.1, 0.85), (0.3, 0.95))
    assert hand.page.locator(".option .note").all_inner_texts() == ["cat · moves here", "", ""]
    hand.page.locator(".option", has_text="milo").click()
    assert hand.layout(2) == {"milo": [0.1, 0.85, 0.2, 0.1]}


def test_double_click_asks_for_the_concept(hand: Hand) -> None:
    _draw_two(hand)
    hand.page.mouse.dblclick(*hand.point(0.2, 0.5))
    assert hand.page.locator(".choice").is_visible()
    hand.page.mouse.click(*hand.point(0.05, 0.05))
    assert hand.page.locator(".choice").is_hidden()
    assert len(hand.received) == 2


def test_buttons_do_all_of_it(hand: Hand) -> None:
    hand.tool("add")
    hand.tool("add")
    first = hand.layout(2)
    assert [box[0] < 0.34 * (n + 1) for n, box in enumerate(first.values())] == [True, True]
    assert first["milo"][0] + first["milo"][2] < first["rex"][0]
    hand.tool("back")
    assert list(hand.layout(3)) == ["rex", "milo"]
    hand.tool("forward")
    hand.tool("bind")
    hand.page.locator(".option").nth(2).click()
    assert list(hand.layout(5)) == ["milo", NAMES[2]]
    hand.tool("remove")
    assert list(hand.layout(6)) == ["milo"]
    hand.tool("undo")
    hand.tool("redo")
    hand.tool("clear")
    assert hand.layout(9) == {}
    assert hand.page.locator("[data-do=clear]").get_attribute("aria-disabled") == "true"
    hand.page.locator("[data-do=clear]").dispatch_event("click")  # Playwright does not click what is disabled
    hand.layout(9)


def test_the_cross_removes_the_selected_box(hand: Hand) -> None:
    _draw_two(hand)
    hand.page.mouse.click(*hand.point(0.2, 0.5))
    hand.page.get_by_role("button", name="Remove box A, milo").click()
    assert list(hand.layout(3)) == ["rex"]


def test_touch_draws_moves_and_binds(served: SimpleNamespace, watched: Watched) -> None:
    page = watched.open(served.url, has_touch=True, viewport={"width": 390, "height": 800})
    hand = Hand(page, served.received)
    _swipe(hand, (0.1, 0.2), (0.6, 0.8))
    page.locator(".option").nth(1).tap()
    assert hand.layout(1) == {"rex": [0.1, 0.2, 0.5, 0.6]}
    _swipe(hand, (0.3, 0.5), (0.4, 0.6))
    assert hand.layout(2) == {"rex": [0.2, 0.3, 0.5, 0.6]}
    assert page.evaluate("window.scrollY") == 0
    page.locator("[data-do=undo]").tap()
    assert hand.layout(3) == {"rex": [0.1, 0.2, 0.5, 0.6]}


def _swipe(hand: Hand, start: tuple[float, float], end: tuple[float, float]) -> None:
    """It comes to rest before the finger is lifted: else it is a fling to the browser, which takes no tap until that is
    over."""
    tool = hand.page.context.new_cdp_session(hand.page)
    ways = [("touchStart", start), ("touchMove", (start[0], end[1])), ("touchMove", end), ("touchMove", end)]
    for kind, spot in ways:
        x, y = hand.point(*spot)
        tool.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        hand.page.wait_for_timeout(120)
    tool.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_a_layout_from_the_server_is_drawn_and_starts_a_new_history(hand: Hand) -> None:
    _draw_two(hand)
    hand.page.get_by_role("button", name="Preset").click()
    hand.page.wait_for_selector('.box[aria-label^="Box A, milo, left 0 %"]')
    assert [label[:10] for label in hand.labels()] == ["Box B, rex", "Box A, mil"]
    assert hand.page.locator("[data-do=undo]").get_attribute("aria-disabled") == "true"
    hand.page.wait_for_timeout(300)
    assert len(hand.received) == 2  # what the server sends is no event
    hand.box("milo").focus()
    hand.press("ArrowRight")
    assert hand.layout(3) == {"rex": [0.5, 0.5, 0.5, 0.5], "milo": [0.01, 0, 0.25, 0.5]}


def test_the_same_boxes_from_the_server_keep_the_history(hand: Hand) -> None:
    _draw_two(hand)
    for button in ("Same", "Taller"):
        hand.page.get_by_role("button", name=button).click()
    hand.page.wait_for_function("document.querySelector('.stage').style.getPropertyValue('--ratio') < 0.7")
    hand.page.wait_for_timeout(300)
    assert len(hand.received) == 2
    hand.tool("undo")
    assert list(hand.layout(3)) == ["milo"]
    assert hand.received[-1].height == 900
    assert hand.page.evaluate("document.querySelector('.picture').naturalWidth") == 3


def test_concepts_that_are_gone_do_not_come_back_by_undo(hand: Hand) -> None:
    _draw_two(hand)
    hand.drag((0.1, 0.85), (0.3, 0.99))
    hand.tool("clear")
    hand.layout(4)
    hand.page.get_by_role("button", name="Two").click()
    hand.page.wait_for_timeout(500)
    hand.tool("undo")
    assert list(hand.layout(5)) == ["milo", "rex"]


def test_programs_get_a_sentence_for_junk_and_a_described_object(served: SimpleNamespace) -> None:
    client = Client(served.url, verbose=False)
    described: Any = client.view_api(return_format="dict", print_info=False)
    assert described["named_endpoints"]["/keep"]["parameters"][0]["type"]["type"] == "object"
    value = _value(PRESET).model_dump()
    assert client.predict(value, api_name="/keep") == "rex milo"
    value["boxes"][0]["x"] = 9e99
    with pytest.raises(Exception, match="Box 1, rex: its left edge should be less than or equal to 1"):
        client.predict(value, api_name="/keep")


def test_the_page_fits_any_width_and_the_choice_stays_on_the_canvas(hand: Hand) -> None:
    hand.tool("add")
    for width in (1440, 1024, 390, 320):
        hand.page.set_viewport_size({"width": width, "height": 900})
        for start, end in (((0.4, 0.1), (0.6, 0.6)), ((0.8, 0.8), (0.99, 0.99))):
            hand.drag(start, end)
            frame, choice = (hand.page.locator(part).bounding_box() for part in (".stage", ".choice"))
            assert frame is not None
            assert choice is not None
            assert frame["x"] <= choice["x"]
            assert choice["x"] + choice["width"] <= frame["x"] + frame["width"] + 1
            assert choice["y"] + choice["height"] <= frame["y"] + frame["height"] + 1
            hand.press("Escape")
        assert hand.page.evaluate("document.documentElement.scrollWidth") <= width
