"""What a concept's file says of its training, in the words of kohya's trainer and of the model specification.

No times, so that a training that is repeated writes the same file; and no folders of the machine.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from studio.bases import Family
from studio.trainers.inits import size_in_file
from studio.trainers.recipe import Recipe
from studio.trigger_words import TAGS_KEY

_VERSIONS = {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0"}  # as kohya's trainer calls them
_ARCHITECTURES = {"sd15": "stable-diffusion-v1/lora", "sdxl": "stable-diffusion-xl-v1-base/lora"}
_RANKED = ("lora", "b-lora")


def base_name(base: str) -> str:
    """The base's name without the folder that a local one lies in."""
    path = PurePath(base)
    return path.name if path.is_absolute() else base


def shared_metadata(
    recipe: Recipe,
    family: Family,
    *,
    prompts: Mapping[str, Sequence[str]],
    shown: int,
    prediction: str,
    optimizer: str,
    precision: str,
    processes: int,
) -> dict[str, str]:
    """`ss_*` and `modelspec.*` of a training on a picture for each of the `prompts` of each concept, by `processes`.

    `shown` counts pictures as often as their subfolder says. `prediction` is "epsilon" or "v_prediction", `optimizer`
    the full name of its class, `precision` accelerate's word. What kohya's trainer has no word for, as a class picture
    with each picture of a batch, stays in the `studio.*` notes and the recipe.
    """
    size, classes = recipe.resolution, {one.class_word for one in recipe.views}
    ours = {
        "ss_output_name": recipe.name,
        "ss_sd_model_name": base_name(recipe.base),
        "ss_base_model_version": _VERSIONS[family],
        "ss_v2": False,
        "ss_learning_rate": recipe.learning_rate,
        "ss_unet_lr": recipe.learning_rate,
        "ss_text_encoder_lr": recipe.text_learning_rate if recipe.text_rank else None,
        "ss_optimizer": f"{optimizer}(weight_decay={recipe.weight_decay},betas={recipe.betas})",
        "ss_lr_scheduler": _scheduler(recipe),
        "ss_lr_warmup_steps": recipe.warmup_steps,
        "ss_max_train_steps": recipe.steps,
        "ss_steps": recipe.steps,
        "ss_batch_size_per_device": -(-recipe.batch_size // processes),
        "ss_total_batch_size": recipe.batch_size * recipe.gradient_accumulation,
        "ss_gradient_accumulation_steps": recipe.gradient_accumulation,
        "ss_gradient_checkpointing": recipe.gradient_checkpointing,
        "ss_max_grad_norm": recipe.max_grad_norm,
        "ss_resolution": (size, size),
        "ss_enable_bucket": recipe.buckets,
        "ss_flip_aug": recipe.flip,
        "ss_seed": recipe.seed,
        "ss_noise_offset": recipe.noise_offset or None,
        "ss_zero_terminal_snr": recipe.zero_terminal_snr or None,
        "ss_min_snr_gamma": recipe.snr_gamma if recipe.weighting == "min-snr" else None,
        "ss_prior_loss_weight": recipe.prior_weight if recipe.prior_preservation else None,
        "ss_mixed_precision": precision,
        "ss_num_train_images": shown,
        "ss_num_reg_images": len(classes) * recipe.prior_count if recipe.prior_preservation else 0,
        TAGS_KEY: json.dumps({name: _tags(said) for name, said in prompts.items()}),
        **_network(recipe),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _ARCHITECTURES[family],
        "modelspec.implementation": "diffusers",
        "modelspec.title": recipe.name,
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}[prediction],
        "modelspec.trigger_phrase": f"{recipe.trigger} {recipe.class_word}",
    }
    return {key: str(value) for key, value in ours.items() if value is not None}


def _tags(prompts: Sequence[str]) -> dict[str, int]:
    """How often each part of a caption between commas occurs."""
    tags = (tag.strip() for prompt in prompts for tag in prompt.split(","))
    return dict(sorted(Counter(filter(None, tags)).items()))


def _network(recipe: Recipe) -> dict[str, Any]:
    """The module of kohya's world that makes such a network; all but a plain LoRA is LyCORIS's."""
    if recipe.method in _RANKED:
        dropout = recipe.dropout or None
        rank, alpha = size_in_file(recipe)
        sizes = {"ss_network_dim": rank, "ss_network_alpha": alpha, "ss_network_dropout": dropout}
        options = {"dora_wd": recipe.dora, "rs_lora": recipe.rank_stabilised}
        if not any(options.values()):
            return sizes | {"ss_network_module": "networks.lora"}
        return sizes | _lycoris({"algo": "lora"} | {key: "True" for key, on in options.items() if on})
    algorithm = {"krona": "lokr", "oft": "diag-oft"}.get(recipe.method, recipe.method)
    sizes = {"ss_network_dim": recipe.rank, "ss_network_alpha": recipe.alpha}
    return _lycoris({"algo": algorithm}) | (sizes if recipe.method in ("lokr", "loha") else {})


def _lycoris(arguments: dict[str, str]) -> dict[str, Any]:
    return {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(arguments)}


def _scheduler(recipe: Recipe) -> str:
    warm = recipe.schedule == "constant" and recipe.warmup_steps
    return "constant_with_warmup" if warm else recipe.schedule
