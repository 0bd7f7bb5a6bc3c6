"""Names of other code written out by hand, from its public sources: what the tables must make of them."""

import pytest
import torch

from ssl_hub.conversion.renaming import closest
from ssl_hub.conversion.sources import layouts_of

QKV = "backbone.layers.2.attention.{}_proj.weight"
QKV_WEIGHTS = " ".join(QKV.format(letter) for letter in "qkv")
RESNET = {
    "conv1.weight": "embedder.embedder.convolution.weight",
    "bn1.running_var": "embedder.embedder.normalization.running_var",
    "layer1.0.conv1.weight": "encoder.stages.0.layers.0.layer.0.convolution.weight",
    "layer2.3.bn3.num_batches_tracked": "encoder.stages.1.layers.3.layer.2.normalization.num_batches_tracked",
    "layer4.0.downsample.0.weight": "encoder.stages.3.layers.0.shortcut.convolution.weight",
    "layer4.0.downsample.1.bias": "encoder.stages.3.layers.0.shortcut.normalization.bias",
}
TIMM_VIT = {
    "cls_token": "backbone.embeddings.cls_token",
    "pos_embed": "backbone.embeddings.position_embeddings",
    "patch_embed.proj.bias": "backbone.embeddings.patch_embeddings.projection.bias",
    "blocks.11.norm1.weight": "backbone.layers.11.layernorm_before.weight",
    "blocks.2.attn.qkv.weight": QKV_WEIGHTS,
    "blocks.2.attn.proj.bias": "backbone.layers.2.attention.o_proj.bias",
    "blocks.2.norm2.bias": "backbone.layers.2.layernorm_after.bias",
    "blocks.2.mlp.fc1.weight": "backbone.layers.2.mlp.fc1.weight",
    "norm.weight": "backbone.layernorm.weight",
}
MAE_DECODER = {
    "decoder_embed.weight": "neck.embed.weight",
    "mask_token": "neck.mask_token",
    "decoder_pos_embed": "neck.position_embeddings",
    "decoder_blocks.7.attn.proj.weight": "neck.layers.7.attention.o_proj.weight",
    "decoder_norm.bias": "neck.layernorm.bias",
    "decoder_pred.bias": "neck.predict_pixels.bias",
}
OFFICIAL_SWIN = {
    "patch_embed.proj.weight": "backbone.embeddings.patch_embeddings.projection.weight",
    "patch_embed.norm.weight": "backbone.embeddings.norm.weight",
    "layers.2.blocks.5.attn.relative_position_bias_table": "backbone.encoder.layers.2.blocks.5.attention."
    "relative_position_bias.relative_position_bias_table",
    "layers.2.blocks.5.attn.proj.weight": "backbone.encoder.layers.2.blocks.5.attention.o_proj.weight",
    "layers.3.blocks.1.norm2.weight": "backbone.encoder.layers.3.blocks.1.layernorm_after.weight",
    "norm.bias": "backbone.layernorm.bias",
}


def at(theirs: str, ours: str, names: dict[str, str]) -> dict[str, str]:
    return {
        " ".join(theirs + name for name in key.split()): " ".join(ours + name for name in value.split())
        for key, value in names.items()
    }


# (source, algorithm): theirs: ours; several with a space between
NAMES = {
    ("mmselfsup", "barlowtwins"): {
        **at("backbone.", "backbone.", RESNET),
        "neck.fc0.weight": "neck.fc0.weight",
        "neck.bn1.bias": "neck.bn1.bias",
        "head.bn.running_mean": "head.bn.running_mean",
    },
    ("mmselfsup", "byol"): {
        **at("target_net.module.0.", "teacher.backbone.", RESNET),
        "target_net.module.1.bn0.weight": "teacher.neck.bn0.weight",
        "head.predictor.fc1.weight": "head.predictor.fc1.weight",
    },
    ("mmselfsup", "cae"): {
        "backbone.layers.2.attn.qkv.weight": QKV_WEIGHTS,
        "backbone.layers.2.attn.v_bias": "backbone.layers.2.attention.v_proj.bias",
        "backbone.layers.2.gamma_1": "backbone.layers.2.lambda_1",
        "teacher.ln1.weight": "teacher.backbone.layernorm.weight",
        "neck.regressors.5.norm1_k_cross.weight": "neck.regressor.5.layernorm_key.weight",
        "neck.regressors.5.cross_attn.q_bias": "neck.regressor.5.attention.q_proj.bias",
        "neck.regressors.5.gamma_2_cross": "neck.regressor.5.lambda_2",
        "neck.decoders.1.attn.qkv.bias": "neck.decoder.1.attention.q_proj.bias neck.decoder.1.attention.v_proj.bias",
        "neck.decoders.1.ffn.layers.0.0.bias": "neck.decoder.1.mlp.fc1.bias",
        "neck.norm_regressor.weight": "neck.regressor_layernorm.weight",
        "neck.head.weight": "neck.predict_targets.weight",
        "target_generator.blocks.input.w": "",
    },
    ("mmselfsup", "deepcluster"): {
        "head.fc_cls.weight": "head.classifier.weight",
        "loss_weight": "memory.class_weights",
        "backbone.sobel_layer.sobel.1.weight": "sobel.gradients",
        "backbone.sobel_layer.sobel.1.bias": "",
    },
    ("mmselfsup", "densecl"): {
        "neck.mlp2.0.weight": "neck.mlp2.0.weight",
        "encoder_k.module.1.mlp.2.bias": "teacher.neck.mlp.2.bias",
        "queue": "memory.global_queue.vectors",
        "queue2_ptr": "memory.dense_queue.pointer",
        "encoder_k.steps": "",
    },
    ("mmselfsup", "mae"): {
        "backbone.patch_embed.projection.weight": "backbone.embeddings.patch_embeddings.projection.weight",
        "backbone.layers.2.attn.qkv.weight": QKV_WEIGHTS,
        "backbone.layers.2.ffn.layers.1.bias": "backbone.layers.2.mlp.fc2.bias",
        "backbone.ln1.bias": "backbone.layernorm.bias",
        "neck.decoder_blocks.0.ln2.bias": "neck.layers.0.layernorm_after.bias",
        "neck.ln1.bias": "neck.layernorm.bias",
    },
    ("mmselfsup", "maskfeat"): {
        "neck.fc.weight": "neck.weight",
        "backbone.mask_token": "backbone.embeddings.mask_token",
    },
    ("mmselfsup", "moco"): {"neck.fc.bias": "neck.fc.bias", "queue": "memory.vectors", "queue_ptr": "memory.pointer"},
    ("mmselfsup", "mocov3"): {
        "momentum_encoder.module.0.pos_embed": "teacher.backbone.embeddings.position_embeddings",
        "momentum_encoder.module.1.fc2.weight": "teacher.neck.fc2.weight",
        "head.predictor.bn1.running_var": "head.predictor.bn1.running_var",
        "momentum_encoder.steps": "",
    },
    ("mmselfsup", "npid"): {
        "neck.fc.weight": "neck.weight",
        "memory_bank.feature_bank": "memory.features",
        "memory_bank.multinomial.prob": "",
    },
    ("mmselfsup", "odc"): {"memory_bank.centroids": "memory.centroids", "neck.bn0.running_var": "neck.bn0.running_var"},
    ("mmselfsup", "relativeloc"): {"neck.fc.weight": "neck.fc.weight", "neck.bn.weight": "neck.bn.weight"},
    ("mmselfsup", "rotationpred"): {"head.fc_cls.bias": "head.classifier.bias"},
    ("mmselfsup", "simclr"): {"neck.bn1.weight": "neck.bn1.weight"},
    ("mmselfsup", "simmim"): {
        "backbone.stages.0.blocks.1.attn.w_msa.relative_position_bias_table": "backbone.encoder.layers.0.blocks.1."
        "attention.relative_position_bias.relative_position_bias_table",
        "backbone.stages.2.downsample.reduction.weight": "backbone.encoder.layers.2.downsample.reduction.weight",
        "backbone.norm3.weight": "backbone.layernorm.weight",
        "neck.decoder.0.bias": "neck.predict_pixels.bias",
        "backbone.stages.0.blocks.1.attn.w_msa.relative_position_index": "",
    },
    ("mmselfsup", "simsiam"): {"head.predictor.bn0.weight": "head.predictor.bn0.weight"},
    ("mmselfsup", "swav"): {
        "neck.projection_neck.3.weight": "neck.projection_neck.3.weight",
        "neck.projection_neck.1.weight": "neck.projection_neck.1.weight",
        "neck.bn.weight": "",
        "head.loss_module.prototypes.weight": "head.prototypes.weight",  # MMPretrain's
    },
    ("authors", "barlowtwins"): {
        **at("module.backbone.", "backbone.", RESNET),
        "module.projector.0.weight": "neck.fc0.weight",
        "module.projector.4.running_mean": "neck.bn1.running_mean",
        "module.bn.running_var": "head.bn.running_var",
    },
    ("authors", "cae"): {
        "encoder.blocks.2.attn.qkv.weight": QKV_WEIGHTS,
        "encoder.blocks.2.attn.q_bias": "backbone.layers.2.attention.q_proj.bias",
        "encoder.norm.weight": "backbone.layernorm.weight",
        "teacher.blocks.0.gamma_2": "teacher.backbone.layers.0.lambda_2",
        "mask_token": "neck.mask_token",
        "pretext_neck.regressor_blocks.3.norm1_q.weight": "neck.regressor.3.layernorm_query.weight",
        "pretext_neck.regressor_blocks.3.cross_attn.k.weight": "neck.regressor.3.attention.k_proj.weight",
        "pretext_neck.regressor_blocks.3.mlp_cross.fc2.bias": "neck.regressor.3.mlp.fc2.bias",
        "pretext_neck.decoder_blocks.3.attn.v_bias": "neck.decoder.3.attention.v_proj.bias",
        "pretext_neck.norm2.bias": "neck.decoder_layernorm.bias",
    },
    ("authors", "densecl"): {
        **at("encoder_q.0.", "backbone.", RESNET),
        "encoder_k.1.mlp.2.weight": "teacher.neck.mlp.2.weight",
        "encoder_q.1.mlp2.0.bias": "neck.mlp2.0.bias",
        "queue2": "memory.dense_queue.vectors",
        "backbone.conv1.weight": "",
    },
    ("authors", "mae"): {**TIMM_VIT, **MAE_DECODER},
    ("authors", "moco"): {
        **at("module.encoder_q.", "backbone.", RESNET),
        "module.encoder_q.fc.0.weight": "neck.mlp.0.weight",
        "module.encoder_k.fc.bias": "teacher.neck.fc.bias",
        "module.queue": "memory.vectors",
        "module.queue_ptr": "memory.pointer",
    },
    ("authors", "mocov3"): {
        **at("module.base_encoder.", "", TIMM_VIT),
        "module.base_encoder.head.6.weight": "neck.fc2.weight",
        "module.momentum_encoder.head.4.bias": "teacher.neck.bn1.bias",
        "module.predictor.4.running_var": "head.predictor.bn1.running_var",
    },
    ("authors", "npid"): {
        **at("module.", "backbone.", RESNET),
        "module.fc.weight": "neck.weight",
        "lemniscate.memory": "memory.features",
        "lemniscate.params": "",
    },
    ("authors", "simmim"): {
        **at("encoder.", "", OFFICIAL_SWIN),
        "encoder.mask_token": "backbone.embeddings.mask_token",
        "encoder.layers.0.downsample.norm.weight": "backbone.encoder.layers.0.downsample.norm.weight",
        "decoder.0.weight": "neck.predict_pixels.weight",
        "encoder.layers.0.blocks.1.attn_mask": "",
    },
    ("authors", "simsiam"): {
        "module.encoder.fc.6.weight": "neck.fc2.weight",
        "module.encoder.fc.6.bias module.encoder.fc.7.running_mean": "neck.bn2.running_mean",
        "module.encoder.fc.7.running_var": "neck.bn2.running_var",
        "module.predictor.3.bias": "head.predictor.fc1.bias",
    },
    ("authors", "swav"): {
        **at("module.", "backbone.", RESNET),
        "module.projection_head.1.running_mean": "neck.projection_neck.1.running_mean",
        "module.prototypes.prototypes0.weight": "head.prototypes.weight",  # DeepCluster-v2's
        "module.prototypes.prototypes1.weight": "",
    },
    ("transformers", "mae"): {
        "vit.layers.2.attention.q_proj.weight": "backbone.layers.2.attention.q_proj.weight",
        "decoder.decoder_layers.1.mlp.fc1.bias": "neck.layers.1.mlp.fc1.bias",
        "decoder.decoder_pos_embed": "neck.position_embeddings",
    },
    ("transformers", "simmim"): {
        "swin.layernorm.bias": "backbone.layernorm.bias",
        "decoder.0.bias": "neck.predict_pixels.bias",
    },
    ("torchvision", None): {**at("", "backbone.", RESNET), "fc.weight": ""},
    ("timm", None): {
        **OFFICIAL_SWIN,
        "layers.1.downsample.reduction.weight": "backbone.encoder.layers.0.downsample.reduction.weight",
        "head.fc.weight": "",
    },
    ("solo-learn", "byol"): {
        **at("backbone.", "backbone.", RESNET),
        **at("momentum_encoder.", "teacher.backbone.", RESNET),
        "momentum_projector.3.bias": "teacher.neck.fc1.bias",
        "predictor.1.weight": "head.predictor.bn0.weight",
        "classifier.weight": "",
    },
    ("solo-learn", "barlowtwins"): {"projector.6.bias": "neck.fc2.bias"},
    ("solo-learn", "mae"): {**at("backbone.", "", TIMM_VIT), **at("decoder.", "", MAE_DECODER)},
    ("solo-learn", "moco"): {"momentum_projector.2.weight": "teacher.neck.mlp.2.weight", "queue": ""},
    ("solo-learn", "mocov3"): {"momentum_backbone.norm.bias": "teacher.backbone.layernorm.bias"},
    ("solo-learn", None): {"projector.2.weight": ""},
    ("solo-learn", "simsiam"): {"projector.6.bias projector.7.running_mean": "neck.bn2.running_mean"},
    ("solo-learn", "swav"): {"prototypes.weight_g prototypes.weight_v": "head.prototypes.weight"},
    ("lightly", "barlowtwins"): {"projection_head.layers.6.bias": "neck.fc2.bias"},
    ("lightly", "byol"): {
        **at("teacher_backbone.", "teacher.backbone.", RESNET),
        "backbone.4.0.conv1.weight": "backbone.encoder.stages.0.layers.0.layer.0.convolution.weight",
        "projection_head_momentum.layers.1.bias": "teacher.neck.bn0.bias",
        "prediction_head.layers.3.bias": "head.predictor.fc1.bias",
        "online_classifier.linear.weight": "",
    },
    ("lightly", "densecl"): {"projection_head_local.layers.0.weight": "neck.mlp2.0.weight"},
    ("lightly", "mae"): {
        **at("backbone.vit.", "", TIMM_VIT),
        **at("decoder.", "", MAE_DECODER),
        "backbone.mask_token": "",
    },
    ("lightly", "moco"): {
        "query_backbone.layer1.0.bn1.weight": "backbone.encoder.stages.0.layers.0.layer.0.normalization.weight",
        "projection_head.layers.2.bias": "teacher.neck.mlp.2.bias",
    },
    ("lightly", "simclr"): {"projection_head.layers.4.weight": "neck.bn1.weight"},
    ("lightly", "simsiam"): {"projection_head.layers.7.running_var": "neck.bn2.running_var"},
    ("lightly", "swav"): {"prototypes.heads.0.weight": "head.prototypes.weight", "prototypes.heads.0.bias": ""},
    ("lightly-train", "simclr"): {
        **at("embedding_model.model_wrapper._features.", "backbone.", RESNET),
        "projection_head.layers.1.running_mean": "neck.bn0.running_mean",
    },
    ("lightly-train", "densecl"): {
        "query_encoder.embedding_model.model_wrapper._model.norm.weight": "backbone.layernorm.weight",
        "key_encoder.global_projection_head.layers.2.bias": "teacher.neck.mlp.2.bias",
        "memory_bank.bank": "",
    },
    ("vissl", "swav"): {
        **at("trunk._feature_blocks.", "backbone.", RESNET),
        "heads.0.projection_head.3.bias": "neck.projection_neck.3.bias",
        "heads.0.prototypes0.weight": "head.prototypes.weight",
        "heads.0.prototypes1.weight": "",
    },
    ("vissl", "moco"): {"heads.1.clf.0.bias": "neck.mlp.2.bias"},
    ("vissl", "barlowtwins"): {"heads.0.clf.3.weight": "neck.fc1.weight"},
    ("stable-pretraining", "byol"): {
        **at("backbone.student.", "backbone.", RESNET),
        "projector.teacher.0.weight": "teacher.neck.fc0.weight",
        "predictor.3.weight": "head.predictor.fc1.weight",
        "callbacks_modules.linear_probe.weight": "",
    },
    ("stable-pretraining", "simclr"): {"projector.4.running_mean": "neck.bn1.running_mean"},
    ("byol-pytorch", "byol"): {
        **at("online_encoder.net.", "backbone.", RESNET),
        "target_encoder.projector.3.weight": "teacher.neck.fc1.weight",
        "online_predictor.0.bias": "head.predictor.fc0.bias",
        "net.conv1.weight": "",
    },
    ("PyTorch-BYOL", "byol"): {
        "online_network_state_dict.encoder.0.weight": "backbone.embedder.embedder.convolution.weight",
        "target_network_state_dict.projetion.net.1.bias": "teacher.neck.bn0.bias",
    },
}


@pytest.mark.parametrize(("source", "model_type"), NAMES)
def test_names_by_hand(source, model_type):
    names = NAMES[source, model_type]
    theirs = {
        name: torch.zeros(1) if name.endswith("ptr") else torch.zeros(12, 12) for key in names for name in key.split()
    }
    layouts = [layout for layout in layouts_of(source, model_type) if layout.model_type == model_type]
    layout, left_over = closest(layouts, theirs)
    assert left_over == []
    assert set(layout.to_ours(theirs)) == {name for ours in names.values() for name in ours.split()}
    for key, ours in names.items():  # a name becomes these, and no others
        assert list(layout.to_ours({name: theirs[name] for name in key.split()})) == ours.split()
        assert ours or all(layout.reason_to_drop(name) for name in key.split())
