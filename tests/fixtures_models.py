"""Tiny random bases of both families in diffusers layout, and tiny random LoRA files for them.

The SDXL one is built like the embedded base: AutoencoderTiny of factor 4, v-prediction, zero terminal SNR, trailing.
The SD1.5 one has an AutoencoderKL and predicts noise. Nothing here uses the studio's own loading or saving.
"""

import json
from pathlib import Path
from typing import Any

import diffusers as typed_diffusers
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from studio.concepts import Concept

diffusers: Any = typed_diffusers  # whose annotations refuse what its code and documentation allow

SENTENCES = [
    "a photo of a red cat on the grass",
    "a sks dog and an ohwx robot at night",
    "two blue houses, one striped mug",
    "a drawing of a fish in watercolor",
]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LENGTH = 24


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer learned from a few sentences."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [word for sentence in SENTENCES for word in sentence.split()]
    learner.train_from_iterator(
        words,
        trainers.BpeTrainer(vocab_size=640, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False),
    )
    vocab = {token: n for n, token in enumerate(sorted({*learner.get_vocab(), *(f"{c}</w>" for c in alphabet)}))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    merges: Any = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def _text_config(tokenizer: Any, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_sdxl(folder: Path, layers: int = 1) -> Path:
    """Save a random SDXL pipeline of about 100 k weights, native size 32 x 32 px, into `folder`."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2, 2),
        transformer_layers_per_block=(1, 1, 2),
        norm_num_groups=4,
        cross_attention_dim=16 + 24,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(_text_config(tokenizer, 16)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, 24)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def build_sd15(folder: Path, layers: int = 1) -> Path:
    """Save a random SD1.5 pipeline of about 100 k weights, native size 16 x 16 px, into `folder`."""
    torch.manual_seed(1)
    tokenizer = tiny_tokenizer()
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=layers,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=16,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(_text_config(tokenizer, 16)).eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def build_lora(base: Path, file: Path, *, rank: int = 2, alpha: int = 4, seed: int = 0, text: bool = False) -> Path:
    """Save a random LoRA for the UNet of the base in `base` (and its text encoders) as diffusers saves one."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    layers, configs = {}, {}
    for part in ("unet", "text_encoder", "text_encoder_2") if text else ("unet",):
        if (model := getattr(pipe, part, None)) is None:
            continue
        targets = ATTENTION if part == "unet" else ["q_proj", "v_proj"]
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
        model.add_adapter(config)
        state = get_peft_model_state_dict(model)
        layers[part] = {key: torch.randn(value.shape, generator=generator) * 0.3 for key, value in state.items()}
        configs[part] = {**config.to_dict(), "target_modules": targets}
    arguments = {f"{part}_lora_layers": state for part, state in layers.items()}
    arguments |= {f"{part}_lora_adapter_metadata": config for part, config in configs.items()}
    type(pipe).save_lora_weights(file.parent, weight_name=file.name, **arguments)
    return file


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder like the embedded base, with random weights."""
    return build_sdxl(tmp_path_factory.mktemp("bases") / "tiny-sdxl")


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the SD1.5 architecture, with random weights."""
    return build_sd15(tmp_path_factory.mktemp("bases") / "tiny-sd15")


@pytest.fixture(scope="session")
def tiny_loras(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRA files for `tiny_sdxl`: the UNet's attention; and that with both text encoders."""
    folder = tmp_path_factory.mktemp("loras")
    return [
        build_lora(tiny_sdxl, folder / "one.safetensors", seed=1),
        build_lora(tiny_sdxl, folder / "two.safetensors", seed=2, rank=3, alpha=3, text=True),
    ]


@pytest.fixture(scope="session")
def tiny_concepts(tiny_loras: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Concept]:
    """milo and rex, with the adapters of `tiny_loras`."""
    found = []
    for file, name, trigger, class_word in zip(
        tiny_loras, ("milo", "rex"), ("sks", "ohwx"), ("cat", "dog"), strict=True
    ):
        folder = tmp_path_factory.mktemp(name)
        (folder / "adapter.safetensors").symlink_to(file)
        found.append(Concept(name, trigger, class_word, "tiny", "sdxl", "lora", folder))
    return found
