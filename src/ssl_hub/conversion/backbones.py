"""Names of backbones in other code, in pairs with transformers', and what makes up their twins in timm."""

from typing import Any

from transformers import PreTrainedConfig

from .renaming import FUSED, PATCH_MERGING, Layout, Pair, under

# torchvision's and timm's, and of all who build on them. A block holds two or three convolutions.
RESNET: list[Pair] = [
    ("conv1.", "embedder.embedder.convolution."),
    ("bn1.", "embedder.embedder.normalization."),
]
for _stage in range(4):
    for _index in range(3):
        RESNET += under(
            f"layer{_stage + 1}.{{}}.",
            f"encoder.stages.{_stage}.layers.{{}}.",
            [
                (f"conv{_index + 1}.", f"layer.{_index}.convolution."),
                (f"bn{_index + 1}.", f"layer.{_index}.normalization."),
            ],
        )
    RESNET += under(
        f"layer{_stage + 1}.{{}}.downsample.",
        f"encoder.stages.{_stage}.layers.{{}}.shortcut.",
        [("0.", "convolution."), ("1.", "normalization.")],
    )

QKV = tuple(f"attention.{letter}_proj." for letter in "qkv")


def attention(theirs: str) -> list[Pair]:
    """Of self-attention with one layer for queries, keys and values."""
    return [(f"{theirs}.qkv.", QKV, FUSED), (f"{theirs}.proj.", "attention.o_proj.")]


def beit_attention(theirs: str) -> list[Pair]:
    """The same, without a bias of the keys."""
    return [
        (f"{theirs}.qkv.weight", tuple(f"{name}weight" for name in QKV), FUSED),
        *((f"{theirs}.{letter}_bias", f"attention.{letter}_proj.bias") for letter in "qv"),
        (f"{theirs}.proj.", "attention.o_proj."),
    ]


def relative_positions(theirs: str) -> list[Pair]:
    name = "relative_position_bias_table"
    return [(f"{theirs}.{name}", f"attention.relative_position_bias.{name}")]


TIMM_NORMS: list[Pair] = [("norm1.", "layernorm_before."), ("norm2.", "layernorm_after.")]
MLP: list[Pair] = [("mlp.fc1.", "mlp.fc1."), ("mlp.fc2.", "mlp.fc2.")]
MMCLS_NORMS: list[Pair] = [("ln1.", "layernorm_before."), ("ln2.", "layernorm_after.")]
MMCLS_MLP: list[Pair] = [("ffn.layers.0.0.", "mlp.fc1."), ("ffn.layers.1.", "mlp.fc2.")]
LAYER_SCALE: list[Pair] = [("gamma_1", "lambda_1"), ("gamma_2", "lambda_2")]

TIMM_VIT_LAYER = [*TIMM_NORMS, *attention("attn"), *MLP]
MMCLS_VIT_LAYER = [*MMCLS_NORMS, *attention("attn"), *MMCLS_MLP]
# CAE's
TIMM_BEIT_LAYER = [*TIMM_NORMS, *beit_attention("attn"), *MLP, *LAYER_SCALE]
MMCLS_BEIT_LAYER = [*MMCLS_NORMS, *beit_attention("attn"), *MMCLS_MLP, *LAYER_SCALE]

_TOKENS: list[Pair] = [
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("pos_embed", "embeddings.position_embeddings"),
]


def timm_vit(layer: list[Pair]) -> list[Pair]:
    return [
        *_TOKENS,
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        *under("blocks.{}.", "layers.{}.", layer),
        ("norm.", "layernorm."),
    ]


def mmcls_vit(layer: list[Pair]) -> list[Pair]:
    return [
        *_TOKENS,
        ("patch_embed.projection.", "embeddings.patch_embeddings.projection."),
        *under("layers.{}.", "layers.{}.", layer),
        ("ln1.", "layernorm."),
    ]


def _official_swin(first_merging: int) -> list[Pair]:
    """`first_merging` is the stage that the first joining of patches belongs to."""
    layer = [*TIMM_NORMS, *attention("attn"), *relative_positions("attn"), *MLP]
    return [
        ("mask_token", "embeddings.mask_token"),
        ("absolute_pos_embed", "embeddings.position_embeddings"),
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ("patch_embed.norm.", "embeddings.norm."),
        *under("layers.{}.blocks.{}.", "encoder.layers.{}.blocks.{}.", layer),
        *(
            (f"layers.{stage + first_merging}.downsample.{name}.", f"encoder.layers.{stage}.downsample.{name}.")
            for stage in range(3)
            for name in ("reduction", "norm")
        ),
        ("norm.", "layernorm."),
    ]


TIMM_VIT = timm_vit(TIMM_VIT_LAYER)
MMCLS_VIT = mmcls_vit(MMCLS_VIT_LAYER)
TIMM_BEIT: list[Pair] = [
    *under("blocks.{}.", "layers.{}.", relative_positions("attn")),
    ("rel_pos_bias.", "shared_position_bias."),
    ("fc_norm.", "pooler.layernorm."),
    *timm_vit(TIMM_BEIT_LAYER),
]
TORCHVISION_VIT: list[Pair] = [
    ("class_token", "embeddings.cls_token"),
    ("encoder.pos_embedding", "embeddings.position_embeddings"),
    ("conv_proj.", "embeddings.patch_embeddings.projection."),
    *under(
        "encoder.layers.encoder_layer_{}.",
        "layers.{}.",
        [
            ("ln_1.", "layernorm_before."),
            *(
                (f"self_attention.in_proj_{name}", tuple(f"{each}{name}" for each in QKV), FUSED)
                for name in ("weight", "bias")
            ),
            ("self_attention.out_proj.", "attention.o_proj."),
            ("ln_2.", "layernorm_after."),
            ("mlp.0.", "mlp.fc1."),
            ("mlp.3.", "mlp.fc2."),
        ],
    ),
    ("encoder.ln.", "layernorm."),
]
OFFICIAL_SWIN = _official_swin(0)
TIMM_SWIN = _official_swin(1)
MMCLS_SWIN: list[Pair] = [
    ("mask_token", "embeddings.mask_token"),
    ("absolute_pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.projection.", "embeddings.patch_embeddings.projection."),
    ("patch_embed.norm.", "embeddings.norm."),
    *under(
        "stages.{}.blocks.{}.",
        "encoder.layers.{}.blocks.{}.",
        [
            *TIMM_NORMS,
            *attention("attn.w_msa"),
            *relative_positions("attn.w_msa"),
            *MMCLS_MLP,
        ],
    ),
    *(
        (f"stages.{{}}.downsample.{name}.", f"encoder.layers.{{}}.downsample.{name}.", PATCH_MERGING)
        for name in ("reduction", "norm")
    ),
    # The number of the last stage: this is what a Swin of four stages is given on the way back.
    *((f"norm{stage}.", "layernorm.") for stage in (3, 2, 1)),
]
# What a Swin of the authors or of mmcls computes from its size, and saves.
COMPUTED_BY_SWIN = {r".*\.(relative_position_index|attn_mask)": "computed from the size of the windows"}


def _alone(*tables: list[Pair]) -> list[Pair]:
    return [pair for table in tables for pair in under("", "backbone.", table)]


_CLASSIFIER = {r"(fc|head|head\.fc)\.(weight|bias)": "the classifier"}
_RESNET_ALONE = _alone(RESNET)
LAYOUTS = [
    Layout("torchvision", None, _RESNET_ALONE, _CLASSIFIER),
    Layout("torchvision", None, _alone(TORCHVISION_VIT), {r"heads\..*": "the classifier"}),
    Layout("timm", None, _RESNET_ALONE, _CLASSIFIER),
    Layout("timm", None, _alone(TIMM_BEIT), _CLASSIFIER),
    Layout("timm", None, _alone(TIMM_VIT), _CLASSIFIER),
    Layout("timm", None, _alone(TIMM_SWIN), {**_CLASSIFIER, **COMPUTED_BY_SWIN}),
    Layout("authors", None, _alone(OFFICIAL_SWIN), {**_CLASSIFIER, **COMPUTED_BY_SWIN}),
    # What MMSelfSup's tool that extracts the backbone writes, and MMPretrain's classifiers.
    Layout("mmselfsup", None, _alone(MMCLS_VIT)),
    Layout("mmselfsup", None, _alone(MMCLS_SWIN), COMPUTED_BY_SWIN),
    *(
        Layout(
            "mmselfsup",
            None,
            under("backbone.", "backbone.", table),
            {r"head\.(fc|layers)\..*": "the classifier", **COMPUTED_BY_SWIN},
        )
        for table in ([*RESNET, *MMCLS_VIT], MMCLS_SWIN)
    ),
]


def timm_arguments(config: PreTrainedConfig) -> dict[str, Any]:
    """What timm makes its ResNet, ViT, BEiT or Swin with, of the configuration of transformers' one.

    The sizes of the images are left to the caller.
    """
    if config.model_type == "resnet":
        expansion = 1 if config.layer_type == "basic" else 4
        return {"layers": list(config.depths), "channels": [size // expansion for size in config.hidden_sizes]}
    if config.model_type == "swin":
        return {
            "patch_size": config.patch_size,
            "embed_dim": config.embed_dim,
            "depths": list(config.depths),
            "num_heads": list(config.num_heads),
            "window_size": config.window_size,
            "mlp_ratio": config.mlp_ratio,
            "qkv_bias": config.qkv_bias,
        }
    arguments = {
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
    }
    if config.model_type == "vit":
        return {**arguments, "qkv_bias": config.qkv_bias}
    return {
        **arguments,
        "init_values": config.layer_scale_init_value or None,
        "use_abs_pos_emb": config.use_absolute_position_embeddings,
        "use_rel_pos_bias": config.use_relative_position_bias,
        "use_shared_rel_pos_bias": config.use_shared_relative_position_bias,
    }
