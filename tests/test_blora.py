import pytest
import torch

from studio.adapters import Adapter
from studio.bases import BaseSource, find_base, role_blocks
from studio.blora import half_of, split
from studio.errors import UsageError
from studio.factors import LowRank

CONTENT, STYLE = (f"unet.up_blocks.0.attentions.{n}.transformer_blocks.0.attn1.to_q" for n in (0, 1))
TENTH = "unet.up_blocks.0.attentions.10.proj_in"
WORDS = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def factor(seed: int, alpha: float | None = None) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(3, 8, generator=rng), torch.randn(6, 3, generator=rng), alpha)


def adapter(*layers: str, family: str | None = "sdxl", **parts) -> Adapter:
    return Adapter("one", "", family, {layer: factor(n, 1.5) for n, layer in enumerate(layers)}, **parts)


def test_a_half_is_the_part_as_it_is_and_the_rest_is_named():
    one = adapter(CONTENT, STYLE, TENTH, WORDS)
    content, style = half_of(one, "content"), half_of(one, "style")
    assert content.adapter.factors == {CONTENT: one.factors[CONTENT]}
    assert style.adapter.factors == {STYLE: one.factors[STYLE]}
    assert content.rest == style.rest == (TENTH, WORDS)  # no block of a name that only begins alike
    assert [half.adapter.metadata["studio.role"] for half in (content, style)] == ["content", "style"]
    assert "only approximate: 1 of its layers act, and 2 that are in neither" in (content.notice() or "")


def test_the_halves_of_a_b_lora_leave_nothing_to_say():
    assert half_of(adapter(CONTENT, STYLE), "content").notice() is None
    assert half_of(adapter(STYLE), "style").notice() is None


def test_words_belong_to_the_content():
    one = adapter(CONTENT, STYLE, embeddings={"x": {"clip_l": torch.ones(1, 4)}})
    assert half_of(one, "content").adapter.embeddings == one.embeddings
    style = half_of(one, "style")
    assert not style.adapter.embeddings
    assert "the words x stay with the content" in (style.notice() or "")


def test_other_bases_have_other_blocks():
    blocks = role_blocks(find_base("picturebook"))
    mine = [f"unet.{blocks[role]}.proj_in" for role in ("content", "style")]
    assert half_of(adapter(*mine), "style", blocks).adapter.layers == mine[1:]
    with pytest.raises(UsageError, match=r"none of its 2 layers is in up_blocks\.1\.attentions\.1"):
        half_of(adapter(CONTENT, STYLE), "content", blocks)


def test_what_carries_what_is_known_of_sdxl_and_not_of_others(tiny_sdxl, tiny_sd15):
    sdxl = {"content": "up_blocks.0.attentions.0", "style": "up_blocks.0.attentions.1"}
    assert role_blocks(find_base(str(tiny_sdxl))) == role_blocks(BaseSource("x/y", "x/y", "hub", "sdxl")) == sdxl
    with pytest.raises(UsageError, match=r"Of Stable Diffusion 1\.5 no block is known"):
        role_blocks(find_base(str(tiny_sd15)))


def test_the_embedded_bases_blocks_are_those_that_the_benchmark_found():
    import json
    from pathlib import Path

    follows = json.loads((Path(__file__).parents[1] / "docs/benchmarks/blocks.json").read_text())["follows"]
    alone = {name: row for name, row in follows.items() if "attentions" in name}
    blocks = role_blocks(find_base("picturebook"))
    assert blocks["content"] == max(alone, key=lambda name: alone[name]["kind"])
    assert blocks["style"] == max(alone, key=lambda name: alone[name]["style"])


@pytest.mark.parametrize(("role", "other"), [("content", STYLE), ("style", CONTENT)])
def test_a_half_that_is_missing_is_named_and_what_is_there(role, other):
    with pytest.raises(UsageError, match=f"no {role} half: none of its 1 layers.*; it has 1 of"):
        half_of(adapter(other), role)


def test_split_is_for_sdxl():
    content, style, rest = split(adapter(CONTENT, STYLE, TENTH))
    assert (content.layers, style.layers, rest) == ([CONTENT], [STYLE], (TENTH,))
    assert [part.metadata["studio.family"] for part in (content, style)] == ["sdxl", "sdxl"]
    with pytest.raises(UsageError, match="no style half"):
        split(adapter(CONTENT, family=None))
    with pytest.raises(UsageError, match=r"Stable Diffusion 1\.5"):
        split(adapter(CONTENT, STYLE, family="sd15"))
