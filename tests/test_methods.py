import dataclasses
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from composing import HALVES, SETTINGS, latents
from test_attaching import snapshot
from training_helpers import tiny_recipe

from studio.errors import UsageError
from studio.events import Step
from studio.pipelines.baselines import Recentred
from studio.pipelines.compose import compose
from studio.pipelines.methods import AS_PUBLISHED, DEFAULT_METHOD, METHODS, find_method
from studio.regions import Layout
from studio.trainers.dreambooth import train_concept

DOCS = Path(__file__).parents[1] / "docs" / "composing.md"


def documented() -> dict[str, list[str]]:
    """The columns of the table of methods, by method."""
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    cells = [[one.strip() for one in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {name.strip("`"): rest for name, *rest in cells if len(rest) == 3}


def test_the_document_has_every_method_as_it_is():
    told = {name: (columns[0], columns[2]) for name, columns in documented().items()}
    assert told == {one.name: (one.does, one.boxes) for one in METHODS.values()}


@pytest.mark.parametrize("name", [name for name, row in documented().items() if re.fullmatch(r"[k\d +]+", row[1])])
def test_every_method_draws_at_the_documented_cost(base, concepts, name):
    settings = dataclasses.replace(SETTINGS, steps=6, count=1)
    found, run = latents(base, concepts, find_method(name).make(), settings, layout=HALVES)
    assert found.isfinite().all()
    assert run.denoiser.rows == 6 * 2 * eval(documented()[name][1], {"k": 2})


@pytest.mark.parametrize("name", [one.name for one in METHODS.values() if one.period is None])
def test_in_a_single_step_adapters_act_too(base, concepts, name):
    settings = dataclasses.replace(SETTINGS, steps=1, count=1)
    for layout in (None, HALVES)[METHODS[name].boxes == "needs" :]:
        found = latents(base, concepts, find_method(name).make(), settings, layout=layout)[0]
        alone = latents(base, concepts, find_method(name).make(), settings, (0.0, 0.0), layout)[0]
        assert (found - alone).abs().max() > 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_the_base_is_as_before_also_after_an_accident(base, concepts, name):
    settings = dataclasses.replace(SETTINGS, steps=6, count=1)
    before, alone = snapshot(base), latents(base, concepts, Recentred(), settings, (0.0, 0.0))[0]
    for last in (1, 4, None):

        def accident(event, last=last):
            if isinstance(event, Step) and event.step == last:
                raise KeyboardInterrupt

        with nullcontext() if last is None else pytest.raises(KeyboardInterrupt):
            compose(base, settings, [(one, 1.0) for one in concepts], find_method(name).make(), accident, HALVES)
        assert snapshot(base) == before
        assert not any("forward" in vars(module) or module._forward_hooks for module in base.unet.modules())
    assert torch.equal(latents(base, concepts, Recentred(), settings, (0.0, 0.0))[0], alone)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_composes_what_krona_trained(base, concepts, tiny_sdxl, home, name):
    krona = {"name": "cleo", "trigger": "ohwx", "method": "krona", "factors": (4, 2), "steps": 2, "learning_rate": 0.05}
    cleo = train_concept(tiny_recipe(tiny_sdxl, home, krona), home)
    settings = dataclasses.replace(SETTINGS, prompt="a <milo> and a <cleo> on the grass", steps=6, count=1)
    layout = Layout({"milo": HALVES.boxes["milo"], "cleo": HALVES.boxes["rex"]})
    with_it, without = (
        latents(base, [concepts[0], cleo], find_method(name).make(), settings, (1.0, strength), layout)[0]
        for strength in (1.0, 0.0)
    )
    assert with_it.isfinite().all()
    assert (with_it - without).abs().max() > 1e-4


def test_the_default_is_a_method():
    assert find_method(DEFAULT_METHOD).name == DEFAULT_METHOD


@pytest.mark.parametrize(("name", "hint"), [("compsite", "Did you mean 'composite'?"), ("x", "Use one of: auto")])
def test_an_unknown_method_is_refused_with_the_nearest(name, hint):
    with pytest.raises(UsageError, match=re.escape(hint)) as error:
        find_method(name)
    assert name in error.value.problem


def test_a_method_that_needs_boxes_needs_one_for_every_concept():
    find_method("regional").check(["milo", "rex"], HALVES, 1)
    with pytest.raises(UsageError, match="needs a box for <bella>"):
        find_method("regional").check(["milo", "bella"], HALVES, 1)


def test_switching_needs_steps():
    find_method("switch").check(["a", "b", "c"], None, 11)
    with pytest.raises(UsageError, match="leave no turn for <c>"):
        find_method("switch").check(["a", "b", "c"], None, 10)


def test_only_methods_that_do_not_look_at_boxes_say_so():
    assert "does not look at boxes" in (find_method("merge").notice(HALVES) or "")
    assert find_method("merge").notice(None) is None
    assert find_method("regional").notice(HALVES) is None


def test_the_names_need_no_torch():
    code = "import studio.pipelines.methods, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_what_is_drawn_as_published_is_the_method_with_other_settings(base, concepts, name):
    ours, theirs = METHODS[name].make(), AS_PUBLISHED[name].make()
    assert type(ours) is type(theirs)
    found, published = (latents(base, concepts, one, layout=HALVES)[0] for one in (ours, theirs))
    assert torch.isfinite(published).all()
    assert not torch.equal(found, published)
