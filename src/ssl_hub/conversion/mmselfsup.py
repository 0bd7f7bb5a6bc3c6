"""Checkpoints and configurations of MMSelfSup 1.x (with mmcls 1.0 backbones)."""

import torch

from ..configuration_utils import SSLConfig
from ..models.barlowtwins.configuration_barlowtwins import BarlowTwinsConfig
from ..models.byol.configuration_byol import BYOLConfig
from ..models.cae.configuration_cae import CAEConfig
from ..models.deepcluster.configuration_deepcluster import DeepClusterConfig
from ..models.densecl.configuration_densecl import DenseCLConfig
from ..models.mae.configuration_mae import MAEConfig
from ..models.maskfeat.configuration_maskfeat import MaskFeatConfig
from ..models.moco.configuration_moco import MoCoConfig
from ..models.mocov3.configuration_mocov3 import MoCoV3Config
from ..models.npid.configuration_npid import NPIDConfig
from ..models.odc.configuration_odc import ODCConfig
from ..models.relativeloc.configuration_relativeloc import RelativeLocConfig
from ..models.rotationpred.configuration_rotationpred import RotationPredConfig
from ..models.simclr.configuration_simclr import SimCLRConfig
from ..models.simmim.configuration_simmim import SimMIMConfig
from ..models.simsiam.configuration_simsiam import SimSiamConfig
from ..models.swav.configuration_swav import SwAVConfig
from .backbones import (
    COMPUTED_BY_SWIN,
    MMCLS_BEIT_LAYER,
    MMCLS_MLP,
    MMCLS_SWIN,
    MMCLS_VIT,
    MMCLS_VIT_LAYER,
    RESNET,
    mmcls_vit,
)
from .renaming import FUSED_WITHOUT_KEY_BIAS, SCALAR, TRANSPOSED, TWICE, Layout, Pair, closest, under

BACKBONES = [*RESNET, *MMCLS_VIT]
LINEAR: list[Pair] = [("fc.", "fc.")]
MLP: list[Pair] = [("mlp.{}.", "mlp.{}.")]
DENSE_MLP: list[Pair] = [*MLP, ("mlp2.{}.", "mlp2.{}.")]
NONLINEAR: list[Pair] = [("fc{}.", "fc{}."), ("bn{}.", "bn{}.")]
PREDICTOR = under("head.predictor.", "head.predictor.", NONLINEAR)
CLASSIFIER: list[Pair] = [("head.fc_cls.", "head.classifier.")]
CLASS_WEIGHTS: list[Pair] = [("loss_weight", "memory.class_weights")]


def _student(neck: list[Pair], backbones: list[Pair] = BACKBONES) -> list[Pair]:
    return [*under("backbone.", "backbone.", backbones), *under("neck.", "neck.", neck)]


def _teacher(name: str, neck: list[Pair]) -> list[Pair]:
    return [
        *under(f"{name}.module.0.", "teacher.backbone.", BACKBONES),
        *under(f"{name}.module.1.", "teacher.neck.", neck),
    ]


def _queue(theirs: str, ours: str) -> list[Pair]:
    return [(theirs, f"{ours}.vectors", TRANSPOSED), (f"{theirs}_ptr", f"{ours}.pointer", SCALAR)]


CAE_REGRESSOR_LAYER: list[Pair] = [
    *((f"norm1_{role[0]}_cross.", f"layernorm_{role}.") for role in ("query", "key", "value")),
    ("norm2_cross.", "layernorm_after."),
    *((f"cross_attn.{letter}.weight", f"attention.{letter}_proj.weight") for letter in "qkv"),
    *((f"cross_attn.{letter}_bias", f"attention.{letter}_proj.bias") for letter in "qv"),
    ("cross_attn.proj.", "attention.o_proj."),
    *((f"gamma_{index}_cross", f"lambda_{index}") for index in (1, 2)),
]
CAE_NECK: list[Pair] = [
    ("mask_token", "mask_token"),
    *under("regressors.{}.", "regressor.{}.", [*CAE_REGRESSOR_LAYER, *MMCLS_MLP]),
    # Of MMSelfSup 1.x; MMPretrain's have no bias of the keys.
    ("decoders.{}.attn.qkv.bias", tuple(f"decoder.{{}}.attention.{x}_proj.bias" for x in "qv"), FUSED_WITHOUT_KEY_BIAS),
    *under("decoders.{}.", "decoder.{}.", MMCLS_BEIT_LAYER),
    *((f"norm_{part}.", f"{part}_layernorm.") for part in ("regressor", "decoder")),
    ("head.", "predict_targets."),
]
MAE_NECK: list[Pair] = [
    ("decoder_embed.", "embed."),
    ("mask_token", "mask_token"),
    ("decoder_pos_embed", "position_embeddings"),
    *under("decoder_blocks.{}.", "layers.{}.", MMCLS_VIT_LAYER),
    ("ln1.", "layernorm."),
    ("decoder_pred.", "predict_pixels."),
]
SIMMIM_NECK: list[Pair] = [("decoder.0.", "predict_pixels.")]
SWAV_NECK: list[Pair] = [
    (("projection_neck.1.", "bn."), "projection_neck.1.", TWICE),
    ("projection_neck.{}.", "projection_neck.{}."),
    ("projection_neck.", "projection_neck."),  # a linear one
]

PAIRS: dict[str, list[Pair]] = {
    "BarlowTwins": [*_student(NONLINEAR), ("head.bn.", "head.bn.")],
    "BYOL": [*_student(NONLINEAR), *PREDICTOR, *_teacher("target_net", NONLINEAR)],
    "CAE": [
        *_student(CAE_NECK, mmcls_vit(MMCLS_BEIT_LAYER)),
        *under("teacher.", "teacher.backbone.", mmcls_vit(MMCLS_BEIT_LAYER)),
    ],
    "DeepCluster": [
        *_student([]),
        *CLASSIFIER,
        *CLASS_WEIGHTS,
        ("backbone.sobel_layer.sobel.0.weight", "sobel.grey"),
        ("backbone.sobel_layer.sobel.1.weight", "sobel.gradients"),
    ],
    "DenseCL": [
        *_student(DENSE_MLP),
        *_teacher("encoder_k", DENSE_MLP),
        *_queue("queue", "memory.global_queue"),
        *_queue("queue2", "memory.dense_queue"),
    ],
    "MAE": _student(MAE_NECK),
    "MaskFeat": _student([("fc.", "")]),
    "MoCo": [*_student([*LINEAR, *MLP]), *_teacher("encoder_k", [*LINEAR, *MLP]), *_queue("queue", "memory")],
    "MoCoV3": [*_student(NONLINEAR), *PREDICTOR, *_teacher("momentum_encoder", NONLINEAR)],
    "NPID": [*_student([("fc.", "")]), ("memory_bank.feature_bank", "memory.features")],
    "ODC": [*_student(NONLINEAR), *CLASSIFIER, *CLASS_WEIGHTS, ("memory_bank.centroids", "memory.centroids")],
    "RelativeLoc": [*_student([*LINEAR, ("bn.", "bn.")]), *CLASSIFIER],
    "RotationPred": [*_student([]), *CLASSIFIER],
    "SimCLR": _student(NONLINEAR),
    "SimMIM": _student(SIMMIM_NECK, MMCLS_SWIN),
    "SimSiam": [*_student(NONLINEAR), *PREDICTOR],
    "SwAV": [
        *_student(SWAV_NECK),
        ("head.loss.prototypes.", "head.prototypes."),
        ("head.loss_module.prototypes.", "head.prototypes."),  # as MMPretrain has it
    ],
}

DROPPED = {
    **COMPUTED_BY_SWIN,
    r"(encoder_k|target_net|momentum_encoder)\.steps": "the teacher's count of updates, which the trainer has here",
    r"target_generator\..*": "the tokenizer, which comes from a source of its own",
    r"backbone\.sobel_layer\.sobel\.\d\.bias": "zero",
    r"memory_bank\.multinomial\..*": "the sampler's tables, which give all images the same weight",
}
SPECIALLY_DROPPED = {"SwAV": {r"neck\.bn\..*": "the BatchNorm of neck.projection_neck.1 once more"}}
KEPT_ELSEWHERE = {
    "DeepCluster": tuple(f"memory.{name}" for name in ("centroids", "mean", "projection", "labels")),
    "SwAV": ("memory.",),  # its queue has a file of its own
}
LAYOUTS = [
    # Our model types are their class names in small letters.
    Layout("mmselfsup", name.lower(), pairs, DROPPED | SPECIALLY_DROPPED.get(name, {}), KEPT_ELSEWHERE.get(name, ()))
    for name, pairs in [*PAIRS.items(), ("SimMIM", _student(SIMMIM_NECK, MMCLS_VIT))]
]

# DALL-E's encoder, in pairs with transformers' `FlavaImageCodebook`
_CONVOLUTION = [("w", "weight"), ("b", "bias")]
DALLE: list[Pair] = [
    *under("blocks.input.", "blocks.input.", _CONVOLUTION),
    *under("blocks.output.conv.", "blocks.output.conv.", _CONVOLUTION),
    *under(
        "blocks.group_{}.block_{}.",
        "blocks.group_{}.group.block_{}.",
        [
            *under("id_path.", "id_path.", _CONVOLUTION),
            *(
                pair
                for index in range(1, 5)
                for pair in under(f"res_path.conv_{index}.", f"res_path.path.conv_{index}.", _CONVOLUTION)
            ),
        ],
    ),
]

# mmcls' ResNet: the kind of its blocks, and their numbers
RESNET_DEPTHS = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
}

# mmcls' VisionTransformer: embed_dims, num_layers, num_heads, feedforward_channels
VIT_ARCHS = {
    "s": (768, 8, 8, 2304),
    "small": (768, 8, 8, 2304),
    "b": (768, 12, 12, 3072),
    "base": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "large": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
    "huge": (1280, 32, 16, 5120),
    "deit-t": (192, 12, 3, 768),
    "deit-tiny": (192, 12, 3, 768),
    "deit-s": (384, 12, 6, 1536),
    "deit-small": (384, 12, 6, 1536),
    "deit-b": (768, 12, 12, 3072),
    "deit-base": (768, 12, 12, 3072),
    "mocov3-s": (384, 12, 12, 1536),
    "mocov3-small": (384, 12, 12, 1536),
}

# MMSelfSup's necks: their options besides the sizes, with the defaults of their classes
NECK_OPTIONS = {
    "DenseCLNeck": {"num_grid": None},
    "LinearNeck": {"with_avg_pool": True},
    "MoCoV2Neck": {"with_avg_pool": True},
    "NonLinearNeck": {
        "num_layers": 2,
        "with_bias": False,
        "with_last_bias": False,
        "with_last_bn": True,
        "with_last_bn_affine": True,
        "with_avg_pool": True,
        "vit_backbone": False,
        "norm_cfg": {"type": "SyncBN"},
    },
    "RelativeLocNeck": {"with_avg_pool": True, "norm_cfg": {"type": "BN1d"}},
    "SwAVNeck": {"with_avg_pool": True, "with_l2norm": True, "norm_cfg": {"type": "SyncBN"}},
}
BATCHNORM = {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True, "requires_grad": True}


# mmcls' Swin: embed_dims, depths, num_heads
SWIN_ARCHS = {
    "t": (96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "s": (96, [2, 2, 18, 2], [3, 6, 12, 24]),
    "small": (96, [2, 2, 18, 2], [3, 6, 12, 24]),
    "b": (128, [2, 2, 18, 2], [4, 8, 16, 32]),
    "base": (128, [2, 2, 18, 2], [4, 8, 16, 32]),
    "l": (192, [2, 2, 18, 2], [6, 12, 24, 48]),
    "large": (192, [2, 2, 18, 2], [6, 12, 24, 48]),
}


def convert_state_dict(algorithm: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of an MMSelfSup checkpoint (`checkpoint["state_dict"]`) to ssl_hub's names.

    Args:
        algorithm: MMSelfSup's class name, such as `"MAE"`.
    """
    if algorithm not in PAIRS:
        raise ValueError(f"no conversion of MMSelfSup's {algorithm!r}; there is one for {', '.join(PAIRS)}")
    layout, _ = closest((layout for layout in LAYOUTS if layout.model_type == algorithm.lower()), state_dict)
    return layout.to_ours(state_dict)


def convert_dalle_encoder(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of DALL-E's encoder, MMSelfSup's `dalle_encoder.pth`, to those of `FlavaImageCodebook`."""
    return Layout("mmselfsup", None, DALLE).to_ours(state_dict)


def convert_config(config: dict) -> SSLConfig:
    """Translates the `model` section of an MMSelfSup 1.x configuration, as a plain dict."""
    if config["type"] not in CONFIG_CONVERTERS:
        raise ValueError(
            f"no conversion of MMSelfSup's {config['type']!r}; there is one for {', '.join(CONFIG_CONVERTERS)}"
        )
    return CONFIG_CONVERTERS[config["type"]](config)


def _vit_fields(backbone: dict) -> dict:
    arch = backbone.get("arch", "b")
    if isinstance(arch, str):
        width, depth, heads, mlp_width = VIT_ARCHS[arch]
    else:
        width, depth, heads = arch["embed_dims"], arch["num_layers"], arch["num_heads"]
        mlp_width = arch["feedforward_channels"]
    return {
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": mlp_width,
        "image_size": backbone.get("img_size", 224),
        "patch_size": backbone.get("patch_size", 16),
        "num_channels": backbone.get("in_channels", 3),
        "qkv_bias": backbone.get("qkv_bias", True),
        "layer_norm_eps": 1e-6,
    }


def _swin_fields(backbone: dict) -> dict:
    arch = backbone.get("arch", "tiny")
    if isinstance(arch, str):
        width, depths, heads = SWIN_ARCHS[arch]
    else:
        width, depths, heads = arch["embed_dims"], arch["depths"], arch["num_heads"]
    blocks = backbone.get("stage_cfgs", {}).get("block_cfgs", {})
    return {
        "model_type": "swin",
        "embed_dim": width,
        "depths": depths,
        "num_heads": heads,
        "image_size": backbone.get("img_size", 224),
        "patch_size": backbone.get("patch_size", 4),
        "num_channels": backbone.get("in_channels", 3),
        "window_size": blocks.get("window_size", backbone.get("window_size", 7)),
        "qkv_bias": blocks.get("attn_cfgs", {}).get("qkv_bias", True),
        "drop_path_rate": backbone.get("drop_path_rate", 0.1),
        "use_absolute_embeddings": backbone.get("use_abs_pos_embed", False),
    }


def _resnet_fields(backbone: dict) -> dict:
    layer_type, depths = RESNET_DEPTHS[backbone["depth"]]
    expansion = 1 if layer_type == "basic" else 4
    width = backbone.get("base_channels", 64) * expansion
    return {
        "model_type": "resnet",
        "num_channels": backbone.get("in_channels", 3),
        "embedding_size": backbone.get("stem_channels", 64),
        "hidden_sizes": [width, 2 * width, 4 * width, 8 * width],
        "depths": depths,
        "layer_type": layer_type,
    }


def _joint_embedding_fields(config: dict, *neck_types: str) -> dict:
    """What the configurations of the joint-embedding algorithms share.

    Args:
        neck_types: the necks of which the algorithm has a counterpart.
    """
    backbone = config["backbone"]
    is_vit = backbone["type"] != "ResNet"
    neck = _neck_options(config["neck"], *neck_types)
    for option, value in (("with_avg_pool", not is_vit), ("vit_backbone", is_vit), ("with_l2norm", True)):
        if neck.get(option, value) != value:
            raise ValueError(f"no counterpart of a {neck['type']} with {option}={not value} after a {backbone['type']}")
    fields = {"projection_size": neck["out_channels"]}
    if neck["type"] == "NonLinearNeck":
        fields |= _nonlinear_neck_fields(neck, "projection")
    elif neck.get("hid_channels", 0) > 0:
        fields["projection_hidden_size"] = neck["hid_channels"]
    return {
        "backbone_config": _vit_fields(backbone) if is_vit else _resnet_fields(backbone),
        "zero_init_residual": backbone.get("zero_init_residual", False),
        **fields,
        **_normalisation(config),
    }


def _neck_options(neck: dict, *types: str) -> dict:
    """All options of a neck; refuses one of other types, and options that have no counterpart."""
    if neck["type"] not in types:
        raise ValueError(f"no counterpart of MMSelfSup's {neck['type']} here; there is one of {' or '.join(types)}")
    defaults = NECK_OPTIONS[neck["type"]]
    unknown = neck.keys() - defaults.keys() - {"type", "in_channels", "hid_channels", "out_channels", "init_cfg"}
    if unknown:
        raise ValueError(f"no counterpart of the options {', '.join(sorted(unknown))} of MMSelfSup's {neck['type']}")
    neck = defaults | neck
    norm = BATCHNORM | neck.get("norm_cfg", {"type": "BN"})
    if norm not in [{"type": name, **BATCHNORM} for name in ("BN", "BN1d", "SyncBN")]:
        raise ValueError(f"the norm_cfg of a neck must be BatchNorm with the default options; got {neck['norm_cfg']}")
    return neck


def _nonlinear_neck_fields(neck: dict, role: str) -> dict:
    """The fields of a projector (`role` is `"projection"`) or a predictor (`"predictor"`)."""
    neck = _neck_options(neck, "NonLinearNeck")
    if neck["num_layers"] < 2:
        raise ValueError(
            "no counterpart of a NonLinearNeck with num_layers=1, which in MMSelfSup ends with hid_channels and BatchNorm"
        )
    return {
        f"{role}_hidden_size": neck["hid_channels"],
        f"{role}_num_layers": neck["num_layers"],
        f"{role}_bias": neck["with_bias"],
        f"{role}_last_bias": neck["with_last_bias"],
        f"{role}_last_batchnorm": neck["with_last_bn"],
        f"{role}_last_batchnorm_affine": neck["with_last_bn_affine"],
    }


def _predictor_fields(config: dict) -> dict:
    """The fields of a projector and a predictor, besides what all joint-embedding algorithms share."""
    return {
        **_joint_embedding_fields(config, "NonLinearNeck"),
        **_nonlinear_neck_fields(config["head"]["predictor"], "predictor"),
    }


def _barlowtwins_config(config: dict) -> BarlowTwinsConfig:
    return BarlowTwinsConfig(
        off_diagonal_weight=config["head"]["loss"].get("lambd", 0.0051),
        **_joint_embedding_fields(config, "NonLinearNeck"),
    )


def _byol_config(config: dict) -> BYOLConfig:
    return BYOLConfig(
        teacher_base_momentum=config.get("base_momentum", 0.996),
        **_predictor_fields(config),
    )


def _cae_config(config: dict) -> CAEConfig:
    backbone, neck, tokenizer = config["backbone"], config["neck"], config.get("target_generator", {})
    width = _vit_fields(backbone)["hidden_size"]
    fields = {key: value for key, value in _vit_fields(backbone).items() if key != "qkv_bias"}
    return CAEConfig(
        backbone_config={
            **fields,
            "model_type": "beit",
            "layer_scale_init_value": backbone.get("init_values", 0.1) or 0.0,
            "drop_path_rate": backbone.get("drop_path_rate", 0.0),
        },
        mask_ratio=neck.get("mask_tokens_num", 75) / (fields["image_size"] // fields["patch_size"]) ** 2,
        regressor_num_hidden_layers=neck.get("regressor_depth", 6),
        decoder_num_hidden_layers=neck.get("decoder_depth", 8),
        neck_num_attention_heads=neck.get("num_heads", 12),
        neck_intermediate_size=int(width * neck.get("mlp_ratio", 4)),
        neck_layer_scale_init_value=neck.get("init_values", 0.1) or 0.0,
        cross_attention_bias=neck.get("qkv_bias", True),
        alignment_weight=float(config["head"]["loss"].get("lambd", 2)),
        teacher_momentum=float(config.get("base_momentum", 0.0)),
        target_options={"size": neck.get("num_classes", tokenizer.get("vocab_size", 8192))},
        **_normalisation(config),
    )


def _deepcluster_config(config: dict) -> DeepClusterConfig:
    sobel = config["backbone"]["type"] == "ResNetSobel"
    backbone = {**config["backbone"], "in_channels": 2} if sobel else config["backbone"]
    return DeepClusterConfig(backbone_config=_resnet_fields(backbone), sobel=sobel, **_cluster_fields(config))


def _odc_config(config: dict) -> ODCConfig:
    neck, memory = config["neck"], config["memory_bank"]
    return ODCConfig(
        backbone_config=_resnet_fields(config["backbone"]),
        projection_hidden_size=neck["hid_channels"],
        projection_size=neck["out_channels"],
        memory_momentum=memory.get("momentum", 0.5),
        min_cluster_size=memory.get("min_cluster", 20),
        **_cluster_fields(config),
    )


def _cluster_fields(config: dict) -> dict:
    return {"num_clusters": config["head"]["num_classes"], "weighted_mean": False, **_normalisation(config)}


def _densecl_config(config: dict) -> DenseCLConfig:
    return DenseCLConfig(
        grid_size=config["neck"].get("num_grid"),
        dense_loss_weight=config.get("loss_lambda", 0.5),
        **_queue_fields(config, "DenseCLNeck"),
    )


def _maskfeat_config(config: dict) -> MaskFeatConfig:
    generator = config.get("target_generator", {})
    names = {"num_bins": "nbins", "cell_size": "pool", "gaussian_window": "gaussian_window"}
    return MaskFeatConfig(
        backbone_config=_vit_fields(config["backbone"]),
        target_options={ours: generator[theirs] for ours, theirs in names.items() if theirs in generator},
        **_normalisation(config),
    )


def _moco_config(config: dict) -> MoCoConfig:
    mlp = config["neck"]["type"] == "MoCoV2Neck"
    return MoCoConfig(mlp_projector=mlp, **_queue_fields(config, "MoCoV2Neck", "LinearNeck"))


def _queue_fields(config: dict, *neck_types: str) -> dict:
    return {
        "queue_size": config.get("queue_len", 65536),
        "teacher_momentum": config.get("momentum", 0.999),
        "temperature": config["head"].get("temperature", 0.1),
        **_joint_embedding_fields(config, *neck_types),
    }


def _mocov3_config(config: dict) -> MoCoV3Config:
    head = config["head"]
    return MoCoV3Config(
        temperature=head.get("temperature", 1.0),
        teacher_base_momentum=config.get("base_momentum", 0.99),
        freeze_patch_projection=config["backbone"].get("stop_grad_conv1", False),
        **_predictor_fields(config),
    )


def _npid_config(config: dict) -> NPIDConfig:
    memory = config["memory_bank"]
    return NPIDConfig(
        backbone_config=_resnet_fields(config["backbone"]),
        projection_size=_neck_options(config["neck"], "LinearNeck")["out_channels"],
        num_negatives=config.get("neg_num", 65536),
        ensure_negatives=config.get("ensure_neg", False),
        memory_momentum=memory["momentum"],
        memory_size=memory["length"],
        temperature=config["head"].get("temperature", 0.1),
        **_normalisation(config),
    )


def _relativeloc_config(config: dict) -> RelativeLocConfig:
    return RelativeLocConfig(
        backbone_config=_resnet_fields(config["backbone"]),
        projection_size=_neck_options(config["neck"], "RelativeLocNeck")["out_channels"],
        **_normalisation(config),
    )


def _rotationpred_config(config: dict) -> RotationPredConfig:
    return RotationPredConfig(backbone_config=_resnet_fields(config["backbone"]), **_normalisation(config))


def _simclr_config(config: dict) -> SimCLRConfig:
    return SimCLRConfig(
        temperature=config["head"].get("temperature", 0.1), **_joint_embedding_fields(config, "NonLinearNeck")
    )


def _simmim_config(config: dict) -> SimMIMConfig:
    fields = _swin_fields(config["backbone"])
    image_size = fields["image_size"]
    return SimMIMConfig(
        backbone_config=fields,
        # a matter of the data there: the published one, where it fits
        mask_cell_size=32 if image_size > 32 and image_size % 32 == 0 else fields["patch_size"],
        pad_small_maps=config["backbone"].get("pad_small_map", False),
        **_normalisation(config),
    )


def _simsiam_config(config: dict) -> SimSiamConfig:
    return SimSiamConfig(**_predictor_fields(config))


def _swav_config(config: dict) -> SwAVConfig:
    loss = config["head"]["loss"]
    num_crops = loss.get("num_crops", [2])
    return SwAVConfig(
        mlp_projector=config["neck"].get("hid_channels", 0) > 0,
        num_large_crops=num_crops[0],
        num_small_crops=sum(num_crops[1:]),
        num_prototypes=loss.get("num_prototypes", 3000),
        temperature=loss.get("temperature", 0.1),
        sinkhorn_epsilon=loss.get("epsilon", 0.05),
        sinkhorn_iterations=loss.get("sinkhorn_iterations", 3),
        freeze_prototypes_steps=0,  # a hook's matter there, like the queue
        queue_size=0,
        **_joint_embedding_fields(config, "SwAVNeck"),
    )


def _mae_config(config: dict) -> MAEConfig:
    backbone, neck, head = config["backbone"], config["neck"], config["head"]
    width = neck.get("decoder_embed_dim", 512)
    return MAEConfig(
        backbone_config=_vit_fields(backbone),
        mask_ratio=backbone.get("mask_ratio", 0.75),
        norm_pix_loss=head.get("norm_pix", False),
        decoder_hidden_size=width,
        decoder_num_hidden_layers=neck.get("decoder_depth", 8),
        decoder_num_attention_heads=neck.get("decoder_num_heads", 16),
        decoder_intermediate_size=int(width * neck.get("mlp_ratio", 4)),
        **_normalisation(config),
    )


def _normalisation(config: dict) -> dict:
    preprocessor = config.get("data_preprocessor", {})
    if "mean" not in preprocessor:
        return {}
    return {
        "image_mean": [value / 255 for value in preprocessor["mean"]],
        "image_std": [value / 255 for value in preprocessor["std"]],
    }


CONFIG_CONVERTERS = {
    "BarlowTwins": _barlowtwins_config,
    "BYOL": _byol_config,
    "CAE": _cae_config,
    "DeepCluster": _deepcluster_config,
    "DenseCL": _densecl_config,
    "MAE": _mae_config,
    "MaskFeat": _maskfeat_config,
    "MoCo": _moco_config,
    "MoCoV3": _mocov3_config,
    "NPID": _npid_config,
    "ODC": _odc_config,
    "RelativeLoc": _relativeloc_config,
    "RotationPred": _rotationpred_config,
    "SimCLR": _simclr_config,
    "SimMIM": _simmim_config,
    "SimSiam": _simsiam_config,
    "SwAV": _swav_config,
}
