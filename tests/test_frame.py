import gradio as gr
import pytest

from studio.errors import UsageError
from studio.jobs import JobStore, Order
from studio.ui.app import build
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
    assert "ZeroDivisionError" in frame._rendered(lambda: 1 / 0, ())
    assert frame._rendered(lambda a: a + 1, (1,)) == 2


def test_every_write_to_the_jobs_is_a_change_whoever_writes(home):
    service = Service(home)
    service.store.jobs()
    seen = [changes(service)]
    for _ in range(3):
        JobStore(home).submit(Order("a", "b", "c:d", {}))
        seen.append(changes(service))
    assert len(set(seen)) == 4
    assert changes(service) == seen[-1]
