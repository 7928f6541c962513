import subprocess
import sys

CODE = """
import sys
from studio.ui.quick_gradio import WithoutStubs
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
WithoutStubs.begin()
import gradio
assert opened, "the hook hears nothing"
assert not [one for one in opened if one.endswith(".pyi")]
with gradio.Blocks() as blocks:
    gradio.Textbox().change(len, None, None)
assert blocks.fns
"""


def test_gradio_comes_without_stubs_and_works():
    subprocess.run([sys.executable, "-c", CODE], check=True)
