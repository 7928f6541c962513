from typing import Any

import gradio as gr
import pytest

from studio.errors import UsageError
from studio.jobs import JobStore, Order
from studio.ui import page_compose, page_evaluate, page_jobs, page_stylize
from studio.ui.app import build
from studio.ui.form_parts import own_number, stop_button
from studio.ui.frame import Frame, changes
from studio.ui.service import Service


@pytest.fixture
def frame(home):
    with gr.Blocks():
        return Frame(Service(home), gr.Textbox(), gr.Textbox())


@pytest.mark.filterwarnings("error::UserWarning")
def test_the_pages_are_built_without_a_warning(home):
    assert build(Service(home))


def test_a_refusal_reaches_the_page_with_its_remedy_escaped_and_without_the_place_on_the_disk(frame, home):
    @frame.speaking
    def refuse(name):
        raise UsageError(f"There is no <{name}> in {home.root}.", "Look again.")

    with pytest.raises(gr.Error, match=r"^'There is no &lt;milo&gt; in the state folder\. Look again\.'$"):
        refuse(name="milo")


def test_a_fault_is_not_silent(frame, home, caplog):
    @frame.speaking
    def fail():
        return (home.root / "nothing").read_text()

    with pytest.raises(gr.Error, match=r"FileNotFoundError: .* &#x27;the state folder/nothing&#x27;"):
        fail()
    assert f"{home.root}/nothing" in caplog.text


def test_a_part_that_fails_takes_only_itself_along(frame):
    with gr.Blocks():
        text, button = gr.HTML(), gr.Button("Cancel")
    for component in (text, button):
        frame.watch(component, lambda number: 1 / number, frame.job)
    (of_text, of_button), given = frame._watchers, (0,)
    assert "ZeroDivisionError" in frame._rendered(of_text, given)
    assert frame._rendered(of_button, given) == gr.skip()  # a message would be its label
    assert frame._rendered(of_text, (1,)) == 1


@pytest.mark.parametrize("page", [page_compose, page_stylize, page_evaluate, page_jobs])
def test_a_job_that_is_gone_is_no_fault(home, page):
    with gr.Blocks():
        frame = Frame(Service(home), gr.Textbox(), gr.Textbox())
        page.build(frame)
    for watcher in frame._watchers:
        watcher.render(*["99", *(one.value for one in watcher.inputs[1:])][: len(watcher.inputs)])


@pytest.mark.parametrize(
    ("page", "kind"), [(page_compose, "compose"), (page_stylize, "stylize"), (page_evaluate, "evaluate")]
)
def test_a_page_that_is_loaded_again_shows_its_job(home, page, kind):
    with gr.Blocks():
        frame = Frame(Service(home), gr.Textbox(), gr.Textbox())
        page.build(frame)
    frame.service.store.submit(Order(kind, "t", "m:f", {}))
    assert any("state-waiting" in str(watcher.render("")) for watcher in frame._watchers if len(watcher.inputs) == 1)


def test_what_is_cancelled_is_what_is_shown_whatever_began_meanwhile(home):
    service = Service(home)
    first = service.store.submit(Order("compose", "t", "m:f", {}))
    with gr.Blocks() as blocks:
        frame, number = Frame(service, gr.Textbox(), gr.Textbox()), gr.Textbox()
        stop_button(frame, number, lambda job: own_number(service, job, "compose"), "stop")
    told, visible = (watcher.render("") for watcher in frame._watchers)
    assert (told, visible["visible"]) == (str(first.id), True)
    other = service.store.submit(Order("compose", "t", "m:f", {}))
    assert own_number(service, "", "compose") == other.id
    cancel: Any = next(one.fn for one in blocks.fns.values() if one.name == "cancel")
    cancel(told)
    assert (service.store.job(first.id).final, service.store.job(other.id).final) == (True, False)
    service.store.forget(first.id)
    with pytest.raises(gr.Error, match="There is no job"):
        cancel(told)


def test_every_write_to_the_jobs_is_a_change_whoever_writes(home):
    service = Service(home)
    service.store.jobs()
    seen = [changes(service)]
    for _ in range(3):
        JobStore(home).submit(Order("a", "b", "c:d", {}))
        seen.append(changes(service))
    assert len(set(seen)) == 4
    assert changes(service) == seen[-1]


def test_the_page_of_jobs_acts_on_the_job_that_it_shows_and_on_no_other(home):
    service = Service(home)
    other, ended = (service.store.submit(Order("compose", name, "m:f", {})).id for name in ("other", "ended"))
    for one in (other, ended):
        service.store.cancel(one)
    with gr.Blocks() as blocks:
        frame = Frame(service, gr.Textbox(), gr.Textbox())
        page_jobs.build(frame)
    seen = frame._watchers[0].render("")
    assert seen == str(ended)
    acts: list[Any] = [one.fn for one in blocks.fns.values() if one.name == "act"]
    cancel, *_, forget = acts
    after = forget(seen)
    assert after == seen
    assert "no longer" in page_jobs._view(frame, after, 0.9)
    assert frame._watchers[0].render(after) == ""
    for act in (forget, cancel):
        with pytest.raises(gr.Error, match="There is no job"):
            act(seen)
    with pytest.raises(gr.Error, match="No job is chosen"):
        forget("")
    assert [one.id for one in service.store.jobs()] == [other]
