import gradio as gr
import pytest

from studio.errors import UsageError
from studio.jobs import JobStore, Order
from studio.ui.frame import _rendered, changes, speaking
from studio.ui.service import Service


def test_a_refusal_reaches_the_page_with_its_remedy_and_escaped():
    @speaking
    def refuse(name):
        raise UsageError(f"There is no <{name}>.", "Look again.")

    with pytest.raises(gr.Error, match=r"There is no &lt;milo&gt;\. Look again\."):
        refuse(name="milo")


def test_a_fault_is_not_silent(caplog):
    @speaking
    def fail():
        return 1 / 0

    with pytest.raises(gr.Error, match="ZeroDivisionError"):
        fail()
    assert "ZeroDivisionError" in caplog.text


def test_a_part_that_fails_takes_only_itself_along():
    assert "ZeroDivisionError" in _rendered(lambda: 1 / 0, ())
    assert _rendered(lambda a: a + 1, (1,)) == 2


def test_every_write_to_the_jobs_is_a_change_whoever_writes(home):
    service = Service(home)
    service.store.jobs()
    seen = [changes(service)]
    for _ in range(3):
        JobStore(home).submit(Order("a", "b", "c:d", {}))
        seen.append(changes(service))
    assert len(set(seen)) == 4
    assert changes(service) == seen[-1]
