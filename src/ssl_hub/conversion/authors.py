"""Checkpoints of the authors' own repositories."""

from .backbones import (
    COMPUTED_BY_SWIN,
    OFFICIAL_SWIN,
    RESNET,
    TIMM_BEIT_LAYER,
    TIMM_VIT,
    TIMM_VIT_LAYER,
    timm_vit,
)
from .renaming import FOLDED_BIAS, SCALAR, TRANSPOSED, Layout, Pair, under


def sequential(theirs: str, ours: str, num_layers: int = 10) -> list[Pair]:
    """An `nn.Sequential` of linear layer, BatchNorm, ReLU, linear layer, ..., which is a `NonLinearNeck` here."""
    kinds = ("fc", "bn")
    return [
        (f"{theirs}{3 * layer + index}.", f"{ours}{kind}{layer}.")
        for layer in range(num_layers)
        for index, kind in enumerate(kinds)
    ]


def folded_bias(theirs: str, ours: str) -> list[Pair]:
    """Of SimSiam's projector: the bias of its third layer keeps its first values, and the BatchNorm after it takes it
    away again."""
    return [((f"{theirs}6.bias", f"{theirs}7.running_mean"), f"{ours}bn2.running_mean", FOLDED_BIAS)]


def _momentum_contrast(neck: list[Pair]) -> list[Pair]:
    encoder = [*under("", "backbone.", RESNET), *under("fc.", "neck.", neck)]
    return [
        *under("module.encoder_q.", "", encoder),
        *under("module.encoder_k.", "teacher.", encoder),
        ("module.queue", "memory.vectors", TRANSPOSED),
        ("module.queue_ptr", "memory.pointer", SCALAR),
    ]


def _mocov3(backbone: list[Pair], projector: str) -> list[Pair]:
    encoder = [*under("", "backbone.", backbone), *sequential(f"{projector}.", "neck.")]
    return [
        *under("module.base_encoder.", "", encoder),
        *under("module.momentum_encoder.", "teacher.", encoder),
        *sequential("module.predictor.", "head.predictor."),
    ]


def mae_decoder(prefix: str = "") -> list[Pair]:
    return under(
        prefix,
        "neck.",
        [
            ("decoder_embed.", "embed."),
            ("mask_token", "mask_token"),
            ("decoder_pos_embed", "position_embeddings"),
            *under("decoder_blocks.{}.", "layers.{}.", TIMM_VIT_LAYER),
            ("decoder_norm.", "layernorm."),
            ("decoder_pred.", "predict_pixels."),
        ],
    )


_CAE_CROSS_ATTENTION: list[Pair] = [
    *((f"norm1_{role[0]}.", f"layernorm_{role}.") for role in ("query", "key", "value")),
    ("norm2_cross.", "layernorm_after."),
    *((f"cross_attn.{letter}.weight", f"attention.{letter}_proj.weight") for letter in "qkv"),
    *((f"cross_attn.{letter}_bias", f"attention.{letter}_proj.bias") for letter in "qv"),
    ("cross_attn.proj.", "attention.o_proj."),
    *((f"mlp_cross.fc{index}.", f"mlp.fc{index}.") for index in (1, 2)),
    *((f"gamma_{index}_cross", f"lambda_{index}") for index in (1, 2)),
]
_CAE_NECK: list[Pair] = [
    *under("regressor_blocks.{}.", "regressor.{}.", _CAE_CROSS_ATTENTION),
    *under("decoder_blocks.{}.", "decoder.{}.", TIMM_BEIT_LAYER),
    ("norm.", "regressor_layernorm."),
    ("norm2.", "decoder_layernorm."),
    ("head.", "predict_targets."),
]
MLP_PROJECTOR: list[Pair] = [("{}.", "mlp.{}.")]
# A layer of 1 x 1 convolutions, `mlp2`, is in DenseCL's projector.
_DENSECL_ENCODER: list[Pair] = [
    *under("0.", "backbone.", RESNET),
    *((f"1.{name}.{{}}.", f"neck.{name}.{{}}.") for name in ("mlp", "mlp2")),
]
LAYOUTS = [
    Layout(
        "authors",
        "barlowtwins",
        [
            *under("module.backbone.", "backbone.", RESNET),
            *sequential("module.projector.", "neck."),
            ("module.bn.", "head.bn."),
        ],
    ),
    Layout(
        "authors",
        "cae",
        [
            *under("encoder.", "backbone.", timm_vit(TIMM_BEIT_LAYER)),
            *under("teacher.", "teacher.backbone.", timm_vit(TIMM_BEIT_LAYER)),
            ("mask_token", "neck.mask_token"),
            *under("pretext_neck.", "neck.", _CAE_NECK),
        ],
    ),
    Layout(
        "authors",
        "densecl",
        [
            *under("encoder_q.", "", _DENSECL_ENCODER),
            *under("encoder_k.", "teacher.", _DENSECL_ENCODER),
            ("queue", "memory.global_queue.vectors", TRANSPOSED),
            ("queue_ptr", "memory.global_queue.pointer", SCALAR),
            ("queue2", "memory.dense_queue.vectors", TRANSPOSED),
            ("queue2_ptr", "memory.dense_queue.pointer", SCALAR),
        ],
        {r"backbone\..*": "the tensors of encoder_q.0 once more"},
    ),
    Layout("authors", "mae", [*mae_decoder(), *under("", "backbone.", TIMM_VIT)]),
    # v1 and v2
    Layout("authors", "moco", _momentum_contrast([("", "fc."), *MLP_PROJECTOR])),
    Layout("authors", "mocov3", _mocov3(RESNET, "fc")),
    Layout("authors", "mocov3", _mocov3(TIMM_VIT, "head")),
    Layout(
        "authors",
        "npid",
        [*under("module.", "backbone.", RESNET), ("module.fc.", "neck."), ("lemniscate.memory", "memory.features")],
        {r"lemniscate\.(?!memory$).*": "the constants and the sampler of the estimate that trained it"},
    ),
    Layout(
        "authors",
        "simmim",
        [*under("encoder.", "backbone.", OFFICIAL_SWIN), ("decoder.0.", "neck.predict_pixels.")],
        COMPUTED_BY_SWIN,
    ),
    Layout(
        "authors",
        "simmim",
        [*under("encoder.", "backbone.", TIMM_VIT), ("decoder.0.", "neck.predict_pixels.")],
    ),
    Layout(
        "authors",
        "simsiam",
        [
            *under("module.encoder.", "backbone.", RESNET),
            *folded_bias("module.encoder.fc.", "neck."),
            *sequential("module.encoder.fc.", "neck."),
            *sequential("module.predictor.", "head.predictor."),
        ],
    ),
    # DeepCluster-v2 and SeLa-v2 have several sets of prototypes.
    Layout(
        "authors",
        "swav",
        [
            *under("module.", "backbone.", RESNET),
            ("module.projection_head.{}.", "neck.projection_neck.{}."),
            ("module.projection_head.", "neck.projection_neck."),  # a linear one
            ("module.prototypes.", "head.prototypes."),
            ("module.prototypes.prototypes0.", "head.prototypes."),
        ],
        {r"module\.prototypes\.prototypes[1-9]\.weight": "a further set of prototypes, and a SwAV has one"},
        kept_elsewhere=("memory.",),
    ),
]
