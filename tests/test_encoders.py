"""What is loaded encodes as its own library does."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip as typed_open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from studio.encoders import load_clip, load_dino
from studio.errors import StudioError, UsageError
from studio.metrics import clip_score

open_clip: Any = typed_open_clip

PICTURES = [Image.fromarray(np.random.default_rng(n).integers(0, 255, (40, 30, 3), dtype=np.uint8)) for n in range(3)]
WORDS = ["a red cat", "a mug at night", "two dogs"]
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {
        "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    folder.mkdir()
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**TINY).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def direct(name: str, weights: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors by open_clip alone."""
    model, prepare = open_clip.create_model_from_pretrained(name, weights)
    with torch.no_grad():
        images = model.eval().encode_image(torch.stack([prepare(one) for one in PICTURES]))
        texts = model.encode_text(open_clip.get_tokenizer(name)(WORDS))
    return tuple(one / one.norm(dim=1, keepdim=True) for one in (images, texts))


def test_a_folder_encodes_as_open_clip_does(tiny_clip: Path):
    clip = load_clip(str(tiny_clip))
    images, texts = direct(f"local-dir:{tiny_clip}", None)
    torch.testing.assert_close(clip.images(PICTURES), images, atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.texts(WORDS), texts, atol=1e-6, rtol=0)
    assert clip.name == "tiny"
    assert [tuple(layer.shape) for layer in clip.maps(PICTURES, 2)] == [(3, 32, 4, 4)] * 2


@pytest.mark.slow
def test_a_file_of_a_known_architecture_scores_as_open_clip_does(tmp_path: Path):
    torch.manual_seed(0)
    file = tmp_path / "random.safetensors"
    save_file(open_clip.create_model("ViT-B-32").state_dict(), file)
    clip = load_clip(f"ViT-B-32={file}")
    images, texts = direct("ViT-B-32", str(file))
    expected = (100 * (images * texts).sum(1)).clamp(min=0)
    torch.testing.assert_close(clip_score(clip.images(PICTURES), clip.texts(WORDS)), expected, atol=1e-6, rtol=0)


def test_a_dino_of_transformers_gives_its_class_token(tmp_path: Path):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    model = Dinov2Model(config).eval()
    processor = BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        token = model(**processor(images=PICTURES, return_tensors="pt")).last_hidden_state[:, 0]
    found = load_dino(str(tmp_path)).images(PICTURES)
    assert torch.nn.functional.cosine_similarity(found, token).min() > 0.999  # resizing may differ by a rounding


def test_a_dino_of_timm_gives_what_it_pools(tmp_path: Path):
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    file = tmp_path / "tiny.safetensors"
    save_file(model.state_dict(), file)
    prepare: Any = create_transform(**resolve_data_config(model.pretrained_cfg))
    with torch.no_grad():
        expected = model(torch.stack([prepare(one) for one in PICTURES]))
    found = load_dino(f"timm:vit_tiny_patch16_224={file}").images(PICTURES)
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("nowhere", "names no CLIP"),
        ("ViT-B-33=x.safetensors", "(?s)no architecture 'ViT-B-33'.*ViT-B-32"),
        ("ViT-B-32=/not/there.safetensors", "no file"),
        ("ViT-B-32/laion3b", "no pretrained ViT-B-32 'laion3b'"),
    ],
)
def test_what_is_not_there_is_named(where: str, words: str):
    with pytest.raises(UsageError, match=words):
        load_clip(where)


def test_weights_of_another_architecture_are_refused(tiny_clip: Path, tmp_path: Path):
    shutil.copytree(tiny_clip, tmp_path / "wrong")
    save_file({"visual.proj": torch.zeros(3, 3)}, tmp_path / "wrong" / "open_clip_model.safetensors")
    with pytest.raises(StudioError, match="could not be loaded"):
        load_clip(str(tmp_path / "wrong"))


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="open_clip_config"):
        load_clip(str(tmp_path))
    with pytest.raises(StudioError, match="could not be loaded"):
        load_dino(str(tmp_path))
    with pytest.raises(UsageError, match="no architecture"):
        load_dino("timm:vit_tinny_patch16_224")
