"""The tokenizer of BEiT v2, VQ-KD."""

from pathlib import Path

from transformers import BeitConfig

from ..modules.target_generators.vqkd import VQKDTokenizer, tokenizer_fields
from ..printing import name_some
from .backbones import MLP, MMCLS_MLP, MMCLS_NORMS, TIMM_NORMS, beit_attention
from .renaming import Layout, under
from .state_dicts import load_strictly, read_checkpoint, unwrap

_LAYERS = [
    *TIMM_NORMS,
    *MMCLS_NORMS,
    *beit_attention("attn"),
    *MLP,
    *MMCLS_MLP,
]
# As its authors and as MMSelfSup name it.
TOKENIZER = Layout(
    "BEiT v2",
    None,
    [
        *under(
            "encoder.",
            "encoder.",
            [
                ("cls_token", "embeddings.cls_token"),
                ("pos_embed", "embeddings.position_embeddings"),
                *(
                    (f"patch_embed.{name}.", "embeddings.patch_embeddings.projection.")
                    for name in ("proj", "projection")
                ),
                *((f"{name}.", "layernorm.") for name in ("fc_norm", "norm", "ln1")),
                *under("blocks.{}.", "layers.{}.", _LAYERS),
                *under("layers.{}.", "layers.{}.", _LAYERS),
            ],
        ),
        ("encode_task_layer.{}.", "projection.{}."),
        ("quantize.embedding.weight", "codebook"),
    ],
    {
        r"(decoder|decode_task_layer|scaling_layer|teacher_model|quantize\.(?!embedding\.weight)).*": "only for training it"
    },
)


def convert_tokenizer(path: str | Path, output_dir: str | Path) -> None:
    """Turns the file of BEiT v2's tokenizer into a folder that `target_name_or_path` takes for targets of type `vqkd`.

    What the tokenizer was trained with, its decoder and the sizes of its clusters, is left out.

    Args:
        path: a `.pth` or `.safetensors` file of the authors or of MMSelfSup, with a ViT whose heads have 64 channels.

    Raises:
        OSError, ValueError: as `load_foreign_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    state_dict = unwrap(checkpoint, path)
    if next(TOKENIZER.unknown(state_dict), None) is not None:
        raise ValueError(f"{path} is no tokenizer of BEiT v2: its keys are {name_some(state_dict)}")
    tensors = TOKENIZER.to_ours(state_dict)
    patches, positions = (
        tensors.get(f"encoder.embeddings.{name}")
        for name in ("patch_embeddings.projection.weight", "position_embeddings")
    )
    if patches is None or positions is None or "codebook" not in tensors:
        raise ValueError(f"{path} lacks parts of a tokenizer of BEiT v2: its keys are {name_some(state_dict)}")
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
