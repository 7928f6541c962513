import pytest
import torch

from studio.pipelines.random_bases import SHAPES, base_around, copy_of, inputs_of, random_lora, random_unet

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", ["sdxl-tenth", "sd15-tenth"])
def test_a_shape_is_a_base_that_predicts_and_takes_adapters(shape):
    unet, family = random_unet(shape, CPU, torch.float32), shape.split("-")[0]
    twin = copy_of(unet)
    with torch.no_grad():
        found = [one(**inputs_of(one, 2))[0] for one in (unet, twin)]
    assert torch.equal(*found)
    base = base_around(twin, family)
    assert base.family == family
    assert base.unet is twin
    lora = random_lora(base, 4, seed=0)
    assert len(lora.factors) == {"sdxl": 560, "sd15": 128}[family]


@pytest.mark.parametrize(("shape", "millions"), [("sdxl", 2567), ("sd15", 859)])
def test_full_shapes_have_the_published_number_of_weights(shape, millions):
    unet = random_unet(shape, torch.device("meta"), torch.float32)
    assert sum(one.numel() for one in unet.parameters()) // 10**6 == millions
    layers = [name for name, _ in unet.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    assert len(layers) == {"sdxl": 560, "sd15": 128}[shape]


def test_weights_do_not_depend_on_what_was_drawn_before():
    torch.manual_seed(5)
    first, second = (random_unet("sd15-tenth", CPU, torch.float32).conv_in.weight for _ in range(2))
    assert torch.equal(first, second)
    assert SHAPES["sd15"]["sample_size"] == 64
