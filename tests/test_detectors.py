"""What is found is what transformers' own model finds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_models import tiny_tokenizer
from PIL import Image
from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor

from studio.detectors import load_detector
from studio.errors import StudioError, UsageError

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("owl")
    tokenizer = tiny_tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "pad_token_id": 0}
    torch.manual_seed(0)
    config = OwlViTConfig(
        text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=32
    )
    OwlViTForObjectDetection(config).save_pretrained(folder)
    tokenizer.model_max_length = 16
    size = {"height": 32, "width": 32}
    OwlViTProcessor(OwlViTImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return folder


def test_the_likeliest_box_comes_first_in_fractions_of_the_picture(owl: Path):
    found = load_detector(str(owl)).find(PICTURE, "a cat")
    processor: Any = OwlViTProcessor.from_pretrained(owl)
    model = OwlViTForObjectDetection.from_pretrained(owl)
    with torch.no_grad():
        output = model(**processor(text=[["a cat"]], images=PICTURE, return_tensors="pt"))
    best = output.pred_boxes[0, output.logits[0, :, 0].argmax()]
    x, y, width, height = best.tolist()
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    assert found[0].sides == pytest.approx([min(max(one, 0), 1) for one in corners], abs=0.04)  # of whole pixels
    assert len(found) > 1


def test_other_weights_have_another_fingerprint(owl: Path):
    detector = load_detector(str(owl))
    first = detector.weights
    with torch.no_grad():
        next(iter(detector._pipe.model.parameters())).add_(1)
    assert detector.weights != first


def test_what_is_no_detector_is_refused(tmp_path: Path, tiny_sdxl: Path):
    with pytest.raises(StudioError, match="nowhere"):
        load_detector(str(tmp_path / "nowhere"))
    with pytest.raises((StudioError, UsageError), match="text_encoder"):
        load_detector(str(tiny_sdxl / "text_encoder"))
