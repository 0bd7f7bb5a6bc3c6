"""Checkpoints of the authors' own repositories under microsoft."""

import re
from pathlib import Path

import torch
from transformers import BeitConfig

from ..modules.target_generators.vqkd import VQKDTokenizer, tokenizer_fields
from .state_dicts import load_strictly, read_checkpoint, rename_keys

# by our model types
RULES = {
    "simmim": [
        (r"^encoder\.mask_token$", "backbone.embeddings.mask_token"),
        (r"^encoder\.absolute_pos_embed$", "backbone.embeddings.position_embeddings"),
        (r"^encoder\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
        (r"^encoder\.patch_embed\.norm\.", "backbone.embeddings.norm."),
        (r"^encoder\.norm\.", "backbone.layernorm."),
        (r"^encoder\.layers\.", "backbone.encoder.layers."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.attn\.relative_", ".attention.relative_position_bias.relative_"),
        (r"\.attn\.qkv\.", ".attention.qkv."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"^decoder\.0\.", "neck.predict_pixels."),
    ],
}


# VQ-KD's tokenizer, as its authors and as MMSelfSup name it.
TOKENIZER_RULES = [
    (r"^encoder\.(cls_token)$", r"encoder.embeddings.\1"),
    (r"^encoder\.pos_embed$", "encoder.embeddings.position_embeddings"),
    (r"^encoder\.patch_embed\.proj(ection)?\.", "encoder.embeddings.patch_embeddings.projection."),
    (r"^encoder\.(fc_norm|norm|ln1)\.", "encoder.layernorm."),
    (r"^encoder\.blocks\.", "encoder.layers."),
    (r"\.(norm1|ln1)\.", ".layernorm_before."),
    (r"\.(norm2|ln2)\.", ".layernorm_after."),
    (r"\.attn\.([qv])_bias$", r".attention.\1_proj.bias"),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^encode_task_layer\.", "projection."),
    (r"^quantize\.embedding\.weight$", "codebook"),
]


def convert_tokenizer(path: str | Path, output_dir: str | Path) -> None:
    """Turns the file of BEiT v2's tokenizer into a folder that `target_name_or_path` takes for targets of type `vqkd`.

    What the tokenizer was trained with, its decoder and the sizes of its clusters, is left out.

    Args:
        path: a `.pth` or `.safetensors` file of the authors or of MMSelfSup, with a ViT whose heads have 64 channels.

    Raises:
        OSError, ValueError: as `load_foreign_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    state_dict = next((checkpoint[key] for key in ("model", "state_dict") if key in checkpoint), checkpoint)
    training_only = r"(decoder|decode_task_layer|scaling_layer|teacher_model|quantize\.(?!embedding\.weight)).*"
    kept = {key: tensor for key, tensor in state_dict.items() if not re.match(training_only, key)}
    tensors = rename_keys(kept, TOKENIZER_RULES)
    patches, positions = (
        tensors.get(f"encoder.embeddings.{name}")
        for name in ("patch_embeddings.projection.weight", "position_embeddings")
    )
    if patches is None or positions is None or "codebook" not in tensors:
        raise ValueError(f"{path} is no tokenizer of BEiT v2: its keys are {', '.join(list(state_dict)[:5])}, ...")
    hidden_size, patch_size = patches.shape[0], patches.shape[-1]
    config = BeitConfig(
        **tokenizer_fields(),
        hidden_size=hidden_size,
        num_hidden_layers=sum(key.endswith("layernorm_before.weight") for key in tensors),
        num_attention_heads=max(hidden_size // 64, 1),
        intermediate_size=tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        image_size=patch_size * round((positions.shape[1] - 1) ** 0.5),
        patch_size=patch_size,
    )
    config.vocab_size, config.code_size = tensors["codebook"].shape
    tokenizer = VQKDTokenizer(config)
    load_strictly(tokenizer, tensors)
    tokenizer.save_pretrained(output_dir)


def convert_state_dict(model_type: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of a checkpoint of the authors (`checkpoint["model"]`) to ssl_hub's names.

    What is computed from the size of the windows is left out. Windows of the last stages are no larger than the feature
    map there: a Swin-L with windows of 12 at 192 pixels has smaller tables than MMSelfSup's, and does not fit.
    """
    computed = r".*\.(relative_position_index|attn_mask)"
    kept = {key: tensor for key, tensor in state_dict.items() if not re.fullmatch(computed, key)}
    return rename_keys(kept, RULES[model_type])
