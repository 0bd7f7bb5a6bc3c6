"""The checks of single modules, losses and functions, by the kind of part: see run_reference.py."""

import numpy as np
import torch
from reference_case import Case
from torch import nn
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from ssl_hub import CAEConfig, DenseCLConfig, MoCoConfig, ODCConfig, SwAVConfig, SwAVModel
from ssl_hub.classification.optimization import layer_ids
from ssl_hub.configuration_utils import BackboneConfig
from ssl_hub.conversion import mmselfsup
from ssl_hub.conversion.state_dicts import load_strictly
from ssl_hub.data.processing import Normalize
from ssl_hub.data.views import Draws
from ssl_hub.data.views.mask import build_mask
from ssl_hub.lifecycle import cosine_ramp
from ssl_hub.modeling_utils import BackboneForImageClassification
from ssl_hub.models.barlowtwins.modeling_barlowtwins import BarlowTwinsHead
from ssl_hub.models.cae.modeling_cae import CAENeck, alignment_loss
from ssl_hub.models.deepcluster.modeling_deepcluster import Sobel
from ssl_hub.models.densecl.modeling_densecl import DenseCLNeck
from ssl_hub.models.mae.modeling_mae import MAEDecoder, MAEHead, MAEViTModel
from ssl_hub.models.moco.modeling_moco import MoCoNeck
from ssl_hub.models.mocov3.modeling_mocov3 import batch_contrast
from ssl_hub.models.odc.modeling_odc import ODCNeck
from ssl_hub.models.relativeloc.modeling_relativeloc import RelativeLocNeck
from ssl_hub.models.simmim.modeling_simmim import SimMIMHead, SimMIMNeck
from ssl_hub.models.swav.modeling_swav import SwAVNeck, sinkhorn
from ssl_hub.modules.backbones import build_backbone
from ssl_hub.modules.clustering import cluster_weights
from ssl_hub.modules.heads import ClassifierHead, PredictorHead, StageClassifier
from ssl_hub.modules.losses import (
    contrastive_loss,
    cosine_loss,
    normalize,
    reconstruction_loss,
    target_loss,
    weighted_cross_entropy,
)
from ssl_hub.modules.masking import aligned_patch_mask, blockwise_patch_mask, patchify, unpatchify
from ssl_hub.modules.memories import InstanceMemory, OnlineClusterMemory
from ssl_hub.modules.necks import NonLinearNeck
from ssl_hub.modules.position_embeddings import sincos_position_embedding_2d
from ssl_hub.modules.target_generators.hog import HOGTargets, hog
from ssl_hub.modules.teachers import MomentumTeacher
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.optimization import build_optimizer


class UnsupportedCaseError(Exception):
    """ssl_hub has no counterpart of this configuration of a part."""


def check_module(case: Case, module: nn.Module, run, convert=lambda state: state) -> None:
    """A module in training and in evaluation: its outputs, every gradient, and its state after the training call.

    Args:
        run: called with the inputs by their names; returns the output, or a dict of outputs by their names.
        convert: renames a state dict.
    """
    load_strictly(module.to(case.dtype), convert(case.under("state/")))
    inputs = {name: tensor for name, tensor in case.under("input/").items() if not name.startswith("cotangent.")}
    for mode in ("eval", "train"):
        module.train(mode == "train")
        variables = {name: tensor.clone().requires_grad_(tensor.is_floating_point()) for name, tensor in inputs.items()}
        outputs = run(**variables)
        outputs = outputs if isinstance(outputs, dict) else {"out": outputs}
        for name, output in outputs.items():
            case.compare("features" if output.ndim else "losses", output, case[f"output/{mode}.{name}"])
    # the gradient of a loss, or the given one of any other output
    gradients = [case[f"input/cotangent.{name}"] if output.ndim else None for name, output in outputs.items()]
    torch.autograd.backward(list(outputs.values()), gradients)
    for name, expected in case.under("grad/input.").items():
        case.compare("gradients", variables[name].grad[: len(expected)], expected)
    case.compare_gradients(module, convert)
    state = module.state_dict()
    for name, expected in convert(case.under("after/")).items():
        case.compare_state(name, state[name], expected)


def pooled(features: torch.Tensor) -> torch.Tensor:
    """A neck of the original takes a feature map and pools it itself."""
    return features if features.ndim == 2 else features.mean(dim=(2, 3))


def nonlinear_neck(fields: dict) -> NonLinearNeck:
    return NonLinearNeck(
        fields["in_channels"],
        fields["hid_channels"],
        fields["out_channels"],
        fields.get("num_layers", 2),
        bias=fields.get("with_bias", False),
        last_bias=fields.get("with_last_bias", False),
        last_batchnorm=fields.get("with_last_bn", True),
        last_batchnorm_affine=fields.get("with_last_bn_affine", True),
    )


def projector_fields(case: Case) -> dict:
    return {
        "projection_hidden_size": case.config.get("hid_channels", 1),
        "projection_size": case.config["out_channels"],
    }


def check_nonlinear_neck(case: Case) -> None:
    neck = nonlinear_neck(case.config)
    # a ViT gives a map and its class token, which is projected
    check_module(case, neck, lambda x=None, patch=None, cls=None: neck(pooled(x) if cls is None else cls))


def check_moco_neck(case: Case) -> None:
    config = MoCoConfig(mlp_projector=case.config["type"] == "MoCoV2Neck", **projector_fields(case))
    neck = MoCoNeck(config, case.config["in_channels"])
    check_module(case, neck, lambda x: neck(pooled(x)))


def check_densecl_neck(case: Case) -> None:
    config = DenseCLConfig(grid_size=case.config.get("num_grid"), **projector_fields(case))
    channels = case.config["in_channels"]
    neck = DenseCLNeck(config, channels, channels)
    names = ("global", "dense", "pooled_dense")
    check_module(case, neck, lambda x: dict(zip(names, neck(pooled(x), x), strict=True)))


def check_swav_neck(case: Case) -> None:
    """One map for each resolution of crops."""
    linear = case.config["hid_channels"] == 0
    fields = {"projection_size": case.config["out_channels"]} if linear else projector_fields(case)
    neck = SwAVNeck(SwAVConfig(mlp_projector=not linear, **fields), case.config["in_channels"])

    def convert(state):  # the same BatchNorm is there under two names
        return {name.replace("bn.", "projection_neck.1."): tensor for name, tensor in state.items()}

    def run(**maps):
        projections = neck(torch.cat([pooled(x) for x in maps.values()]))
        return normalize(projections) if case.config.get("with_l2norm", True) else projections

    check_module(case, neck, run, convert)


class FixedDropout(nn.Module):
    """Dropout in training with recorded choices, none in evaluation."""

    def __init__(self, keep: torch.Tensor, p: float):
        super().__init__()
        self.keep, self.p = keep, p

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * self.keep / (1 - self.p) if self.training else features


def check_relative_loc_neck(case: Case) -> None:
    neck = RelativeLocNeck(2 * case.config["in_channels"], case.config["out_channels"], dropout=0.5)
    neck.dropout = FixedDropout(case["random/dropout_keep"], p=0.5)
    check_module(case, neck, lambda x: neck(pooled(x)))


def check_simple_memory(case: Case) -> None:
    fields = case.sidecar["fields"]
    memory = InstanceMemory(fields["length"], fields["feat_dim"], fields["momentum"])
    memory.load_state_dict({"features": case["state/feature_bank"]})
    for step in range(sum(key.endswith(".idx") for key in case.under("input/step"))):
        memory.update(case[f"input/step{step}.idx"], case[f"input/step{step}.feature"])
        case.compare("features", memory.features, case[f"after/step{step}.feature_bank"])


def compare_memory(case: Case, memory: nn.Module, stage: str) -> None:
    names = {"feature_bank": memory.features, "label_bank": memory.labels, "centroids": memory.centroids}
    for name, buffer in names.items():
        if f"after/{stage}{name}" in case:
            case.compare("features", buffer, case[f"after/{stage}{name}"])


def check_odc_neck(case: Case) -> None:
    fields = case.config
    config = ODCConfig(projection_hidden_size=fields["hid_channels"], projection_size=fields["out_channels"])
    neck = ODCNeck(config, fields["in_channels"])
    neck.drop = FixedDropout(case["random/dropout_keep"], config.dropout)
    check_module(case, neck, lambda x: neck(pooled(x)))


def check_avgpool_neck(case: Case) -> None:
    if case.config.get("output_size", 1) != 1:
        raise UnsupportedCaseError
    check_module(case, nn.Module(), lambda x: pooled(x)[..., None, None])


def check_sobel(case: Case) -> None:
    sobel = Sobel()

    def convert(state):
        renamed = {f"backbone.sobel_layer.{name}": tensor for name, tensor in state.items()}
        state = mmselfsup.convert_state_dict("DeepCluster", renamed)
        return {name.removeprefix("sobel."): tensor for name, tensor in state.items()}

    check_module(case, sobel, lambda x: sobel(x), convert)


def check_cls_head(case: Case) -> None:
    head = ClassifierHead(case.config["in_channels"], case.config["num_classes"])
    labels = case.tensors.pop("input/label")

    def run(x):
        logits = head(pooled(x))
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}

    check_module(
        case, head, run, lambda state: {n.replace("fc_cls.", "classifier."): tensor for n, tensor in state.items()}
    )


def check_class_weights(case: Case) -> None:
    """The original's own mean, divided by the number of rows."""
    target, weights = case.tensors.pop("input/target"), case.tensors.pop("input/weight")
    scale = case.config.get("loss_weight", 1.0)
    check_module(case, nn.Module(), lambda logits: scale * weighted_cross_entropy(logits, target, weights, False))


def check_reweight(case: Case) -> None:
    weights = cluster_weights(case["input/histogram"], case.sidecar["fields"]["power"])
    case.compare("features", weights, case["output/weight"])


def check_odc_memory(case: Case) -> None:
    fields = case.sidecar["fields"]
    memory = OnlineClusterMemory(fields["num_classes"], fields["feat_dim"], fields["momentum"])
    memory.start(fields["length"])
    memory.features.copy_(normalize(case["input/init_feature"]))
    memory.labels.copy_(case["input/init_label"])
    memory.update_centroids()
    compare_memory(case, memory, "init.")
    ratio = memory.update(case["input/idx"], case["input/feature"])
    case.compare("losses", ratio, case["output/change_ratio"])
    compare_memory(case, memory, "update.")
    memory.update_centroids()
    compare_memory(case, memory, "centroids.")
    memory.rebuild_small_clusters(fields["min_cluster"])
    compare_memory(case, memory, "small_clusters.")


def check_contrastive_head(case: Case) -> None:
    check_module(case, nn.Module(), lambda pos, neg: contrastive_loss(pos, neg, case.config["temperature"]))


def check_latent_predict_head(case: Case) -> None:
    head = PredictorHead(nonlinear_neck(case.config["predictor"]))
    check_module(case, head, lambda input, target: cosine_loss(head(input), target))


def check_mocov3_head(case: Case) -> None:
    temperature = case.config["temperature"]
    if case.config["loss"].get("loss_weight", 1.0) != 2 * temperature:
        raise UnsupportedCaseError
    head = PredictorHead(nonlinear_neck(case.config["predictor"]))
    check_module(case, head, lambda base_out, momentum_out: batch_contrast(head(base_out), momentum_out, temperature))


def check_cosine_loss(case: Case) -> None:
    """Ours stops the gradient into the target, where the original leaves that to whoever calls it."""
    plain = case.config.get("shift_factor", 0.0) == 0.0 and case.config.get("scale_factor", 1.0) == 1.0
    if not plain or "input/mask" in case:
        raise UnsupportedCaseError
    case.tensors.pop("grad/input.target", None)
    check_module(case, nn.Module(), lambda pred, target: cosine_loss(pred, target))


def check_cross_correlation_head(case: Case) -> None:
    head = BarlowTwinsHead(case.config["in_channels"])

    def run(input, target):
        on_diagonal, off_diagonal = head(input, target)
        return on_diagonal + case.config["loss"]["lambd"] * off_diagonal

    check_module(case, head, run)


def check_cross_correlation_loss(case: Case) -> None:
    """The original's loss takes the matrix, which here the head makes: of projections with that very matrix."""
    size = len(case["input/matrix"])
    head = BarlowTwinsHead(size)
    head.bn = nn.Identity()

    def run(matrix):
        on_diagonal, off_diagonal = head(size * torch.eye(size), matrix)
        return on_diagonal + case.config["lambd"] * off_diagonal

    check_module(case, head, run)


def check_swav_loss(case: Case) -> None:
    """The head or its loss alone: from projections, those of a crop one after the other."""
    fields = case.config.get("loss", case.config)
    num_crops = sum(fields["num_crops"])
    assigned = fields.get("crops_for_assign", [0, 1])
    if assigned != list(range(len(assigned))):
        raise UnsupportedCaseError
    model = SwAVModel(
        SwAVConfig(
            backbone_config={"model_type": "resnet", "depths": [1], "hidden_sizes": [8]},
            projection_size=fields["feat_dim"],
            num_large_crops=len(assigned),
            num_small_crops=num_crops - len(assigned),
            num_prototypes=fields["num_prototypes"],
            temperature=fields.get("temperature", 0.1),
            sinkhorn_epsilon=fields.get("epsilon", 0.05),
            sinkhorn_iterations=fields.get("sinkhorn_iterations", 3),
            queue_size=0,
        )
    )

    def run(x):
        model.head.normalize_prototypes()
        return model._swapped_prediction(x.unflatten(0, (num_crops, -1)), model.head.prototypes.weight)

    def convert(state):
        return {name.removeprefix("loss."): tensor for name, tensor in state.items()}

    check_module(case, model.head, run, convert)


def check_sinkhorn(case: Case) -> None:
    for name, fields in case.sidecar["fields"].items():
        scores, epsilon = case[f"input/{name}"], fields["epsilon"]
        # Ours are similarities of unit vectors; the original minds an underflow, which takes far smaller ones.
        if (scores / epsilon).exp().sum(dim=0).min() > 0:
            case.compare("features", sinkhorn(scores, epsilon, fields["iterations"]), case[f"output/{name}"])


def check_constant_ema(case: Case) -> None:
    check_updates(case, lambda update: case.sidecar["fields"]["momentum"])


def check_cosine_ema(case: Case) -> None:
    fields = case.sidecar["fields"]
    for setting, expected in zip(fields["settings"], case["output/momentum"], strict=True):
        if setting["end"] == 1:  # where ours always ends
            momenta = [cosine_ramp(setting["base"], 1.0, step / setting["max_iters"]) for step in case["input/steps"]]
            case.compare("schedule", torch.tensor(momenta), expected)
    run = fields["run"]
    check_updates(case, lambda update: cosine_ramp(run["base"], 1.0, update / run["max_iters"]))


def check_updates(case: Case, momentum) -> None:
    """The first update is a copy. Statistics of BatchNorm, which the original copies always, are the teacher's own."""
    width, size = case["input/source0.0.weight"].shape
    student = nn.ModuleDict({"module": nn.Sequential(nn.Linear(size, width), nn.BatchNorm1d(width))})
    teacher = MomentumTeacher(module=student["module"])
    for update in range(sum(key.endswith(".0.weight") for key in case.under("input/source"))):
        student["module"].load_state_dict(case.under(f"input/source{update}."))
        teacher.follow(student, momentum(update) if update > 0 else 0.0)
        for name, parameter in teacher.named_parameters():
            case.compare_state(name, parameter, case[f"after/update{update}.{name}"])


def check_resnet(case: Case) -> None:
    def convert(state):
        state = mmselfsup.convert_state_dict("SimCLR", {f"backbone.{key}": tensor for key, tensor in state.items()})
        return {key.removeprefix("backbone."): tensor for key, tensor in state.items()}

    neck = {"type": "NonLinearNeck", "in_channels": 1, "hid_channels": 1, "out_channels": 1}
    config = mmselfsup.convert_config({"type": "SimCLR", "backbone": case.config, "neck": neck, "head": {}})
    backbone = build_backbone(config.backbone_config)
    # the first map is that before the max-pooling, which a transformers model does not return
    stem = []
    backbone.embedder.embedder.register_forward_hook(lambda module, args, output: stem.append(output))

    def run(x):
        hidden_states = backbone(x, output_hidden_states=True).hidden_states
        return {str(stage): output for stage, output in enumerate([stem[-1], *hidden_states[1:]])}

    check_module(case, backbone, run, convert)


def check_mae_decoder(case: Case) -> None:
    fields = case.config
    side = int(fields["num_patches"] ** 0.5) * fields["patch_size"]
    config = mmselfsup.convert_config(
        {
            "type": "MAE",
            "backbone": {
                "arch": {
                    "embed_dims": fields["embed_dim"],
                    "num_layers": 1,
                    "num_heads": 1,
                    "feedforward_channels": fields["embed_dim"],
                },
                "img_size": side,
                "patch_size": fields["patch_size"],
            },
            "neck": fields,
            "head": {},
        }
    )
    decoder = MAEDecoder(config.decoder_config(), fields["embed_dim"], 3 * fields["patch_size"] ** 2)

    def convert(state):
        state = mmselfsup.convert_state_dict("MAE", {f"neck.{key}": tensor for key, tensor in state.items()})
        return {key.removeprefix("neck."): tensor for key, tensor in state.items()}

    load_strictly(decoder, convert(case.under("state/")))
    latent, ids_restore = case["input/latent"].requires_grad_(), case["input/ids_restore"]
    # row `restore < V` of the shuffled sequence belongs to that patch
    visible = ids_restore.argsort(dim=1)[:, : latent.shape[1] - 1]
    grid_size = 2 * (int(fields["num_patches"] ** 0.5),)
    output = decoder(latent, visible, grid_size)
    (output * case["input/cotangent.out"]).sum().backward()
    case.compare("features", output, case["output/train.out"])
    case.compare("gradients", latent.grad, case["grad/input.latent"])
    case.compare_gradients(decoder, convert)


def check_mae_head(case: Case) -> None:
    """The head, from images; the loss alone, from patches."""
    head = MAEHead(case.config.get("patch_size", 1), case.config.get("norm_pix", False))

    def run(pred, target, mask):
        # the loss alone comes with patches, which are an image a pixel a patch
        return head(pred, target if target.ndim == 4 else target.transpose(1, 2)[..., None], mask)

    check_module(case, head, run)


def check_simmim_neck(case: Case) -> None:
    fields = case.config
    neck = SimMIMNeck(fields["in_channels"], fields["encoder_stride"], num_channels=3)

    def convert(state):
        return {name.replace("decoder.0.", "predict_pixels."): tensor for name, tensor in state.items()}

    check_module(case, neck, lambda x: neck(x), convert)


def check_simmim_head(case: Case) -> None:
    """The head, which has a mask of patches; the loss alone has one of pixels."""
    head = SimMIMHead(case.config.get("patch_size", 1))
    mask = case.tensors.pop("input/mask").flatten(1)
    check_module(case, head, lambda pred, target: head(pred, target, mask))


def check_pixel_loss(case: Case) -> None:
    power = {"L1": 1, "L2": 2}[case.config["criterion"]]
    is_image = case["input/pred"].ndim == 4
    if "input/mask" in case and (case.config.get("channel") or 1) != (case["input/pred"].shape[1] if is_image else 1):
        raise UnsupportedCaseError

    def run(pred, target, mask=None):
        mask = mask if is_image or mask is None else mask[..., None]
        return reconstruction_loss(pred, target, mask, power=power)

    case.tensors.pop("grad/input.mask", None)
    check_module(case, nn.Module(), run)


def check_vit(case: Case) -> None:
    fields = mmselfsup.convert_config(
        {"type": "MAE", "backbone": {**case.config, "type": "MAEViT"}, "neck": {"decoder_num_heads": 8}, "head": {}}
    ).backbone_config
    model = MAEViTModel(fields).train()

    def convert(state):
        state = mmselfsup.convert_state_dict("MAE", {f"backbone.{key}": tensor for key, tensor in state.items()})
        return {key.removeprefix("backbone."): tensor for key, tensor in state.items()}

    load_strictly(model, convert(case.under("state/")))
    images = case["input/x"].requires_grad_()
    outputs = model(images, output_hidden_states=True)
    objective = 0.0
    for layer in case.config["out_indices"]:
        last = layer == fields.num_hidden_layers - 1
        tokens = outputs.last_hidden_state if last else outputs.hidden_states[layer + 1]
        expected = case[f"output/train.{layer}.patch"]
        patches = tokens[:, 1:].transpose(1, 2).reshape(expected.shape)
        case.compare("features", tokens[:, 0], case[f"output/train.{layer}.cls"])
        case.compare("features", patches, expected)
        objective = objective + (tokens[:, 0] * case[f"input/cotangent.{layer}.cls"]).sum()
        objective = objective + (patches * case[f"input/cotangent.{layer}.patch"]).sum()
    objective.backward()
    case.compare("gradients", images.grad[:1], case["grad/input.x"])
    case.compare_gradients(model, convert)


def dalle_encoder(fields: dict, state: dict) -> FlavaImageCodebook:
    """The encoder of a case, as MMSelfSup's fields and tensors describe it."""
    codebook = FlavaImageCodebook(
        FlavaImageCodebookConfig(
            hidden_size=fields.get("n_hid", 256),
            num_blocks_per_group=fields.get("n_blk_per_group", 2),
            vocab_size=fields.get("vocab_size", 8192),
        )
    )
    load_strictly(codebook, mmselfsup.convert_dalle_encoder(state))
    return codebook


def check_dalle_encoder(case: Case) -> None:
    codebook = dalle_encoder(case.config, case.under("state/")).requires_grad_()
    check_module(case, codebook, lambda x: codebook(x), mmselfsup.convert_dalle_encoder)


def check_cae_neck(case: Case) -> None:
    fields = case.config
    width = fields["embed_dims"]
    config = mmselfsup.convert_config(
        {
            "type": "CAE",
            "backbone": {
                "arch": {
                    "embed_dims": width,
                    "num_layers": 1,
                    "num_heads": fields["num_heads"],
                    "feedforward_channels": width,
                }
            },
            "neck": fields,
            "head": {"loss": {}},
        }
    )
    depths = config.regressor_num_hidden_layers, config.decoder_num_hidden_layers
    neck = CAENeck(config.neck_config(), *depths, fields["num_classes"], config.cross_attention_bias)

    def convert(state):
        state = mmselfsup.convert_state_dict("CAE", {f"neck.{key}": tensor for key, tensor in state.items()})
        return {key.removeprefix("neck."): tensor for key, tensor in state.items()}

    def run(x_unmasked, pos_embed_masked, pos_embed_unmasked):
        logits, latent = neck(x_unmasked, pos_embed_unmasked, pos_embed_masked)
        return {"logits": logits, "latent_pred": latent}

    check_module(case, neck, run, convert)


def check_cae_loss(case: Case) -> None:
    """The head, from the tokenizer's logits of all patches, or the loss alone, from tokens."""
    weight = case.config.get("loss", case.config)["lambd"]

    def run(logits, latent_pred, latent_target, target=None, logits_target=None, mask=None):
        if target is None:
            target = logits_target.argmax(dim=1).flatten(1)[mask.bool()]
        return {
            "main": target_loss(logits, target.long()),
            "align": weight * alignment_loss(latent_pred, latent_target),
        }

    check_module(case, nn.Module(), run)


def check_hog(case: Case) -> None:
    """Where no gradient of a cell lies on the edge between two bins: which one it falls into is rounding."""
    fields = case.sidecar["fields"]
    settings = {"num_bins": fields["nbins"], "cell_size": fields["pool"], "gaussian_window": fields["gaussian_window"]}
    patch_size = fields["image_size"] // 14
    generator = HOGTargets(CAEConfig(target_type="hog", target_options=settings), patch_size)
    for name, images in case.under("input/").items():
        robust = case[f"output/{name}.robust"].bool()
        expected = case[f"output/{name}.cells"]
        cells = hog(images, **settings)
        case.compare("features", cells * robust[:, :, None], expected * robust[:, :, None])
        # the same cells, in the order of the tokens
        tokens, cells_a_side = case[f"output/{name}"], patch_size // fields["pool"]
        robust = robust[:, :, None].expand(expected.shape).flatten(1, 2).float()
        robust = nn.functional.pixel_unshuffle(robust, cells_a_side).flatten(2).transpose(1, 2)
        case.compare("features", generator(images) * robust, tokens * robust)


def check_position_embedding(case: Case) -> None:
    for name, (height, width, dim, temperature, cls_token) in case.sidecar["fields"]["cases"].items():
        if height == width:  # the original's order of a non-square grid does not fit any sequence of patches
            table = sincos_position_embedding_2d(height, dim, cls_token=cls_token, temperature=temperature)
            case.compare("features", table, case[f"output/{name}"])


def check_patchify(case: Case) -> None:
    for name, patch_size in case.sidecar["fields"].items():
        patches = patchify(case[f"input/{name}"], patch_size)
        case.compare("features", patches, case[f"output/{name}.patchify"])
        target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        case.compare("features", target, case[f"output/{name}.target_normpix"])
        image = unpatchify(case[f"input/{name}.tokens"], patch_size, 3)
        case.compare("features", image, case[f"output/{name}.unpatchify"])


def check_preprocess(case: Case) -> None:
    mean, std = ([value / 255 for value in case.sidecar["fields"][key]] for key in ("mean", "std"))
    normalize = Normalize(mean, std)
    for view in (0, 1):
        case.compare("features", normalize(case[f"input/raw.{view}"].flip(1)), case[f"output/selfsup.{view}"])
    case.compare("features", normalize(case["input/raw.0"]), case["output/selfsup_rgb.0"])


# by the part's type, and by its name where it has none
def check_lars(case: Case) -> None:
    """Three steps at a constant learning rate: the original multiplies it into the momentum, timm at the update.

    With exclusions, those of the original are what has no weight decay: vectors, which start from 1 or 0.
    """
    fields = case.sidecar["fields"]
    model = nn.ModuleDict({"backbone": nn.Identity(), "fc": nn.Linear(5, 6), "bn": nn.BatchNorm1d(6)}).to(case.dtype)
    model.parameter_rules = ()
    args = PretrainingArguments(
        output_dir="",
        optim="lars",
        learning_rate=fields["lr"],
        weight_decay=fields["weight_decay"],
        sgd_momentum=fields["momentum"],
        decay_norm_and_bias=not fields["exclude"],
    )
    model.load_state_dict(case.under("state/"), strict=False)
    optimizer = build_optimizer(model, args, global_batch_size=256)
    for step in range(3):
        for name, gradient in case.under(f"input/step{step}.grad.").items():
            model.get_parameter(name).grad = gradient
        optimizer.step()
        for name, expected in case.under(f"after/step{step}.").items():
            case.compare("parameters", model.get_parameter(name), expected)


def check_masks(case: Case) -> None:
    """Statistics of many masks; two samples of `samples` masks differ by chance, in no position by five deviations."""
    torch.manual_seed(0)
    for name, fields in case.sidecar["fields"].items():
        expected, samples = case[f"output/{name}.frequency"], fields["samples"]
        rows, columns = expected.shape
        if "num_masking_patches" in fields:
            count, smallest = fields["num_masking_patches"], fields["min_num_patches"]
            drawn = [blockwise_patch_mask(samples, rows, columns, count, torch.device("cpu"), smallest)]
            if rows == columns:
                options = {"kind": "blockwise", "patch": 1, "count": count, "min_num_patches": smallest}
                view_mask = build_mask(options, "mask", rows)
                drawn.append(torch.from_numpy(view_mask.draw(Draws(0, np.arange(samples)))))
        else:
            count, cell, patch = fields["count"], fields["mask_patch_size"], fields["model_patch_size"]
            drawn = [aligned_patch_mask(samples, rows, columns, count, torch.device("cpu"), cell // patch)]
            options = {"kind": "aligned", "patch": patch, "cell": cell, "ratio": fields["mask_ratio"]}
            view_mask = build_mask(options, "mask", fields["input_size"])
            drawn.append(torch.from_numpy(view_mask.draw(Draws(0, np.arange(samples)))))
        for masks in drawn:
            case.compare("features", masks.sum(dim=1), torch.full((samples,), count))
            frequency = masks.unflatten(1, (rows, columns)).double().mean(dim=0)
            deviation = (2 * expected * (1 - expected) / samples).sqrt().clamp(min=1e-3)
            if ((frequency - expected).abs() > 5 * deviation).any():
                raise AssertionError(f"{name}: a position is masked with another probability")


def check_classifier_batchnorm(case: Case) -> None:
    """What comes before the linear layer in MAE's linear evaluation."""
    width = case.config["input_features"]
    backbone = {"model_type": "vit", "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BackboneForImageClassification(BackboneConfig(backbone_config=backbone, classifier_norm="batchnorm"))

    def convert(state):
        return {name.removeprefix("bn."): tensor for name, tensor in state.items()}

    check_module(case, model.classifier_norm, lambda patch, cls: model.classifier_norm(cls), convert)


def check_stage_classifier(case: Case) -> None:
    stages = case.config["in_indices"]
    channels = {stage: case[f"input/{stage}"].shape[1] for stage in stages}
    head = StageClassifier(channels, case.config["num_classes"], case.config["pool_type"])

    def run(**maps):
        logits = head([maps[str(stage)] for stage in stages])
        return {str(stage): logits[:, i] for i, stage in enumerate(stages)}

    check_module(case, head, run, lambda state: {n.replace("fcs.", "classifiers."): x for n, x in state.items()})


def check_layer_decay(case: Case) -> None:
    for name in ("vit", "vit_nodecay", "swin"):
        settings = case.sidecar[name]
        ids, num_layers = layer_ids(settings["names_in_order"])
        scales = torch.tensor([settings["rate"] ** (num_layers - 1 - each) for each in ids])
        case.compare("schedule", scales, case[f"output/{name}.scale"])


PARTS = {
    "CAEHead": check_cae_loss,
    "CAELoss": check_cae_loss,
    "CAENeck": check_cae_neck,
    "AvgPool2dNeck": check_avgpool_neck,
    "ClsBatchNormNeck": check_classifier_batchnorm,
    "ClsHead": check_cls_head,
    "CosineSimilarityLoss": check_cosine_loss,
    "ContrastiveHead": check_contrastive_head,
    "CrossCorrelationLoss": check_cross_correlation_loss,
    "DALL-E": check_dalle_encoder,
    "DenseCLNeck": check_densecl_neck,
    "HOGGenerator": check_hog,
    "LatentCrossCorrelationHead": check_cross_correlation_head,
    "LatentPredictHead": check_latent_predict_head,
    "LinearNeck": check_moco_neck,
    "MAEPretrainDecoder": check_mae_decoder,
    "MAEPretrainHead": check_mae_head,
    "MAEReconstructionLoss": check_mae_head,
    "MultiClsHead": check_stage_classifier,
    "MoCoV2Neck": check_moco_neck,
    "MoCoV3Head": check_mocov3_head,
    "NonLinearNeck": check_nonlinear_neck,
    "ODCNeck": check_odc_neck,
    "RelativeLocNeck": check_relative_loc_neck,
    "PixelReconstructionLoss": check_pixel_loss,
    "ResNet": check_resnet,
    "SimMIMHead": check_simmim_head,
    "SimMIMNeck": check_simmim_neck,
    "SimMIMReconstructionLoss": check_simmim_head,
    "Sobel": check_sobel,
    "SwAVHead": check_swav_loss,
    "SwAVLoss": check_swav_loss,
    "SwAVNeck": check_swav_neck,
    "cosine_ema": check_cosine_ema,
    "ema_constant": check_constant_ema,
    "lars_all": check_lars,
    "lars_exclude": check_lars,
    "lars_nomomentum": check_lars,
    "layer_decay": check_layer_decay,
    "mask_generators": check_masks,
    "mmcls.CrossEntropyLoss": check_class_weights,
    "mmcls.VisionTransformer": check_vit,
    "odc_memory": check_odc_memory,
    "patchify": check_patchify,
    "pos_embed": check_position_embedding,
    "preprocess": check_preprocess,
    "reweight": check_reweight,
    "simple_memory": check_simple_memory,
    "sinkhorn": check_sinkhorn,
}
