"""The configuration of a checkpoint, read from the shapes of its tensors."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig

from ..configuration_utils import SSLConfig

Tensors = Mapping[str, torch.Tensor]

# Numbers of attention heads are in no shape but a Swin's: those of the published sizes, by width. A head has 64 channels
# in all others.
_HEADS = {1280: 16}
_SPECIAL_HEADS = {"mocov3": {384: 12}, "mae decoder": {512: 16}}


def config_from_shapes(model_type: str, tensors: Tensors) -> SSLConfig:
    """The configuration of an algorithm whose tensors have these shapes; what is in no shape has its default.

    Args:
        tensors: a converted state dict, under our names.
    """
    fields = _backbone_fields(model_type, under("backbone.", tensors))
    neck = under("neck.", tensors)
    if "fc0.weight" in neck:
        fields |= _nonlinear_fields("projection", neck)
    fields |= _nonlinear_fields("predictor", under("head.predictor.", tensors))
    backbone = fields["backbone_config"]
    if model_type == "simmim" and (size := backbone.get("image_size")):
        # a matter of the data: the published one, where it fits
        fields["mask_cell_size"] = 32 if size > 32 and size % 32 == 0 else backbone["patch_size"]
    if model_type == "maskfeat" and "weight" in neck:  # 9 bins of 3 colours a cell
        fields["target_options"] = {"cell_size": backbone["patch_size"] // math.isqrt(len(neck["weight"]) // 27)}
    if model_type in _FIELDS:
        fields |= _FIELDS[model_type](tensors)
    known = set(AutoConfig.for_model(model_type).to_dict())
    return AutoConfig.for_model(model_type, **{name: value for name, value in fields.items() if name in known})


def under(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _count(pattern: str, tensors: Tensors) -> int:
    """How many numbers there are at the group of the pattern."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def _rows(tensors: Tensors, **names: str) -> dict[str, Any]:
    """Fields that are the number of rows of a tensor, where it is there."""
    return {field: len(tensors[name]) for field, name in names.items() if name in tensors}


def _heads(kind: str, width: int) -> int:
    return _SPECIAL_HEADS.get(kind, {}).get(width) or _HEADS.get(width) or max(width // 64, 1)


def _backbone_fields(model_type: str, tensors: Tensors) -> dict[str, Any]:
    if "embedder.embedder.convolution.weight" in tensors:
        return {"backbone_config": _resnet_fields(tensors)}
    patches = tensors.get("embeddings.patch_embeddings.projection.weight")
    if patches is None:
        raise ValueError(f"there is neither a ResNet nor a transformer among its {len(tensors)} tensors of a backbone")
    width, channels, patch_size = patches.shape[:3]
    sizes = {"num_channels": channels, "patch_size": patch_size}
    if "encoder.layers.0.blocks.0.layernorm_before.weight" in tensors:
        return {"backbone_config": {**sizes, "embed_dim": width, **_swin_fields(width, tensors)}}
    positions = tensors.get("embeddings.position_embeddings")
    if positions is not None:
        sizes["image_size"] = patch_size * math.isqrt(positions.shape[1] - 1)
    fields = {
        **sizes,
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": _count(r"layers\.(\d+)\.", tensors),
        "num_attention_heads": _heads(model_type, width),
        "intermediate_size": len(tensors["layers.0.mlp.fc1.weight"]),
        "layer_norm_eps": 1e-6,
    }
    if "layers.0.attention.k_proj.weight" in tensors and model_type != "cae":
        fields["qkv_bias"] = "layers.0.attention.q_proj.bias" in tensors
    if model_type == "cae":
        has_scale = "layers.0.lambda_1" in tensors
        fields |= {"model_type": "beit", "layer_scale_init_value": 0.1 if has_scale else 0.0, "drop_path_rate": 0.0}
    return {"backbone_config": fields}


def _resnet_fields(tensors: Tensors) -> dict[str, Any]:
    stem = tensors["embedder.embedder.convolution.weight"]
    stages = range(_count(r"encoder\.stages\.(\d+)\.", tensors))
    bottleneck = "encoder.stages.0.layers.0.layer.2.convolution.weight" in tensors
    return {
        "model_type": "resnet" if stem.shape[-1] == 7 else "cifar_resnet",
        "num_channels": stem.shape[1],
        "embedding_size": stem.shape[0],
        "depths": [_count(rf"encoder\.stages\.{stage}\.layers\.(\d+)\.", tensors) for stage in stages],
        "hidden_sizes": [
            len(tensors[f"encoder.stages.{stage}.layers.0.layer.{2 if bottleneck else 1}.convolution.weight"])
            for stage in stages
        ],
        "layer_type": "bottleneck" if bottleneck else "basic",
    }


def _swin_fields(width: int, tensors: Tensors) -> dict[str, Any]:
    stages = range(_count(r"encoder\.layers\.(\d+)\.blocks\.", tensors))
    name = "encoder.layers.{}.blocks.0.attention.relative_position_bias.relative_position_bias_table"
    tables = [tensors[name.format(stage)] for stage in stages]
    return {
        "model_type": "swin",
        "depths": [_count(rf"encoder\.layers\.{stage}\.blocks\.(\d+)\.", tensors) for stage in stages],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": (math.isqrt(len(tables[0])) + 1) // 2,
        "mlp_ratio": len(tensors["encoder.layers.0.blocks.0.mlp.fc1.weight"]) / width,
        "use_absolute_embeddings": "embeddings.position_embeddings" in tensors,
    }


def _nonlinear_fields(role: str, tensors: Tensors) -> dict[str, Any]:
    """Of a projector (`role` is `"projection"`) or a predictor (`"predictor"`)."""
    last = _count(r"fc(\d+)\.", tensors) - 1
    if last < 1:
        return {}
    return {
        f"{role}_hidden_size": len(tensors["fc0.weight"]),
        f"{role}_num_layers": last + 1,
        f"{role}_bias": "fc0.bias" in tensors,
        f"{role}_last_bias": f"fc{last}.bias" in tensors,
        f"{role}_last_batchnorm": f"bn{last}.running_mean" in tensors,
        f"{role}_last_batchnorm_affine": f"bn{last}.weight" in tensors,
        "projection_size": len(tensors[f"fc{last}.weight"]),
    }


def _moco_fields(tensors: Tensors) -> dict[str, Any]:
    return {
        "mlp_projector": "neck.fc.weight" not in tensors,
        **_rows(
            tensors,
            projection_hidden_size="neck.mlp.0.weight",
            projection_size="neck.fc.weight" if "neck.fc.weight" in tensors else "neck.mlp.2.weight",
            queue_size="memory.vectors",
        ),
    }


def _densecl_fields(tensors: Tensors) -> dict[str, Any]:
    names = {"projection_hidden_size": "neck.mlp.0.weight", "projection_size": "neck.mlp.2.weight"}
    return _rows(tensors, **names, queue_size="memory.global_queue.vectors")


def _swav_fields(tensors: Tensors) -> dict[str, Any]:
    linear = "neck.projection_neck.weight" in tensors
    return {
        "mlp_projector": not linear,
        **_rows(
            tensors,
            projection_hidden_size="neck.projection_neck.0.weight",
            projection_size="neck.projection_neck.weight" if linear else "neck.projection_neck.3.weight",
            num_prototypes="head.prototypes.weight",
        ),
    }


def _cluster_fields(tensors: Tensors) -> dict[str, Any]:
    return {"sobel": "sobel.grey" in tensors, **_rows(tensors, num_clusters="head.classifier.weight")}


def _mae_fields(tensors: Tensors) -> dict[str, Any]:
    if "neck.embed.weight" not in tensors:
        return {}
    width = len(tensors["neck.embed.weight"])
    return {
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": _count(r"neck\.layers\.(\d+)\.", tensors),
        "decoder_num_attention_heads": _heads("mae decoder", width),
        "decoder_intermediate_size": len(tensors["neck.layers.0.mlp.fc1.weight"]),
    }


def _cae_fields(tensors: Tensors) -> dict[str, Any]:
    if "neck.mask_token" not in tensors:
        return {}
    return {
        "regressor_num_hidden_layers": _count(r"neck\.regressor\.(\d+)\.", tensors),
        "decoder_num_hidden_layers": _count(r"neck\.decoder\.(\d+)\.", tensors),
        "neck_num_attention_heads": _heads("cae", tensors["neck.mask_token"].shape[-1]),
        "neck_layer_scale_init_value": 0.1 if "neck.decoder.0.lambda_1" in tensors else 0.0,
        "cross_attention_bias": "neck.regressor.0.attention.q_proj.bias" in tensors,
        "target_options": {"size": len(tensors["neck.predict_targets.weight"])},
        **_rows(tensors, neck_intermediate_size="neck.regressor.0.mlp.fc1.weight"),
    }


_FIELDS = {
    "cae": _cae_fields,
    "deepcluster": _cluster_fields,
    "densecl": _densecl_fields,
    "mae": _mae_fields,
    "moco": _moco_fields,
    "npid": lambda tensors: _rows(tensors, projection_size="neck.weight", memory_size="memory.features"),
    "odc": _cluster_fields,
    "relativeloc": lambda tensors: _rows(tensors, projection_size="neck.fc.weight"),
    "swav": _swav_fields,
}
