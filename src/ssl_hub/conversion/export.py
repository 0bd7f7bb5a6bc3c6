"""Giving a model away: to timm, torchvision, transformers and MMSelfSup, and as a program of ONNX or torch.export.

Whatever is written is read again by the library that it is for, and has to give the features of ours.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    SwinForMaskedImageModeling,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from ..configuration_utils import SSLConfig, num_backbone_channels
from ..data.processing import build_image_processor
from ..modeling_utils import SSLForImageClassification, SSLModel, SSLPreTrainedModel
from ..modules.backbones import backbone_layout, describe, run_backbone
from ..modules.position_embeddings import resize_position_table
from ..pretrained import load_pretrained
from ..printing import name_some
from .backbones import RESNET, TIMM_BEIT, TIMM_SWIN, TIMM_VIT, TORCHVISION_VIT, timm_arguments
from .mmselfsup import RESNET_DEPTHS
from .renaming import Layout, Pair
from .sources import layouts_of, load_foreign_checkpoint, to_theirs
from .verification import TOLERANCE

Outputs = dict[str, torch.Tensor]

_ANY_MODEL = "--to onnx and --to torch_export take any model"


def load_model(name_or_path: str | Path, pooling: str | None = None) -> SSLPreTrainedModel:
    """Loads one of our models, or an image classifier on its backbone, whole.

    Args:
        pooling: `"cls"` or `"mean"`, instead of what it was trained with.

    Raises:
        OSError: there is no such model.
        ValueError: it is none of ours, cannot be loaded, or lacks weights.
    """
    config = load_pretrained(AutoConfig, name_or_path)
    if not isinstance(config, SSLConfig):
        raise ValueError(
            f"{name_or_path} is a {config.model_type!r} of transformers or timm, and what is exported are models of ssl_hub"
        )
    is_classifier = any(name.endswith("ForImageClassification") for name in config.architectures or ())
    if pooling is not None:
        if is_classifier and pooling != config.pooling:
            raise ValueError(
                f"{name_or_path} is a classifier that was trained with pooling {config.pooling!r}: leave it out"
            )
        config.pooling = pooling
    auto_class = AutoModelForImageClassification if is_classifier else AutoModelForPreTraining
    model, info = load_pretrained(auto_class, name_or_path, config=config, output_loading_info=True)
    if lacking := [name for name in info["missing_keys"] if not name.startswith("teacher.")]:
        raise ValueError(
            f"{name_or_path} lacks {name_some(sorted(lacking))}: save the whole model with save_pretrained"
        )
    return model


def export_model(model: SSLPreTrainedModel, to: str, output: str | Path) -> float:
    """Writes a model, in float32, as another library has it.

    A backbone becomes one for images of `config.image_size`, with `config.pooling`; an image classifier takes its
    linear layer along where the library has a place for one.

    Args:
        to: one of `TARGETS`, which say what is written.
        output: the file or the folder; it is there whole, or not at all.

    Returns:
        The largest difference, over two made images, between what the library computes from what was written and what
        the model computes, relative to the largest value if that is above 1: of the features, of the logits of a
        classifier, and of the losses of algorithms that transformers has too. For MMSelfSup 0, as the tensors are
        read again unchanged.

    Raises:
        ValueError: the library has no counterpart, is not installed, or computes something else.
        OSError: `output` is there already, or cannot be written.
    """
    if to not in TARGETS:
        raise ValueError(f"no export to {to!r}; there is one to {', '.join(TARGETS)}")
    target, output = TARGETS[to], Path(output)
    if output.suffix != target.suffix and target.suffix:
        raise ValueError(f"what is exported to {to} is a file whose name ends in {target.suffix}; got {output}")
    if output.exists():
        raise FileExistsError(f"{output} exists already, and nothing is written over: give a new {target.kind}")
    if isinstance(model, SSLForImageClassification) and not target.takes_classifiers:
        raise ValueError(
            f"an image classifier of ssl_hub is not exported to {to}: export the model that it was fine-tuned from, or the "
            "classifier to timm, torchvision, onnx or torch_export"
        )
    model.eval().float()
    size = model.config.image_size
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, model.config.num_channels, size, size, generator=generator)
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.unfinished-") as folder,
        torch.no_grad(),
    ):
        unfinished = Path(folder) / output.name
        difference = target.write(model, pixel_values, unfinished)
        unfinished.rename(output)
    return difference


def _outputs(model: SSLPreTrainedModel, pixel_values: torch.Tensor) -> Outputs:
    outputs = model(pixel_values)
    return {name: outputs[name] for name in ("last_hidden_state", "pooler_output", "logits") if name in outputs}


def _in_double(function: Callable[[nn.Module, torch.Tensor], Outputs], model: nn.Module, *inputs) -> Outputs:
    """What a function makes of a model and tensors in double precision; the model is in float32 again afterwards."""
    try:
        return function(model.double(), *(x.double() for x in inputs))
    finally:
        model.float()


def _largest_difference(ours: Outputs, theirs: Outputs, library: str) -> float:
    """Raises `ValueError` if one is above the tolerance."""
    largest = 0.0
    for name, value in theirs.items():
        expected = ours[name]
        difference = (value.reshape(expected.shape) - expected).abs().max() / expected.abs().max().clamp(min=1)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{library} computes something else of the exported model: its {name} differs by up to {difference:.1e}. "
                "Nothing is written"
            )
        largest = max(largest, difference.item())
    return largest


# Backbones of timm and torchvision


def _check_fields(config: PreTrainedConfig, library: str, **expected) -> None:
    for name, value in expected.items():
        if (given := getattr(config, name)) != value:
            raise ValueError(
                f"{library} has no {config.model_type!r} with {name}={given!r}, only with {value!r}; {_ANY_MODEL}"
            )


def _check_takes_images(model: SSLPreTrainedModel, library: str) -> None:
    channels = num_backbone_channels(model.backbone.config)
    if channels != model.config.num_channels:
        raise ValueError(
            f"the backbone takes {channels} channels that a filter makes of images, and {library} has no such filter; "
            f"{_ANY_MODEL}, and --to transformers gives the backbone alone"
        )


def _check_pooling(model: SSLPreTrainedModel, library: str) -> None:
    if model.config.pooling != "cls":
        is_classifier = isinstance(model, SSLForImageClassification)
        raise ValueError(
            f"{library}'s counterpart of {describe(model.backbone)} gives the class token, and this model is pooled by the "
            f"mean of the patches: {_ANY_MODEL if is_classifier else 'export it with --pooling cls'}"
        )


def _backbone_tensors(model: SSLPreTrainedModel, library: str, pairs: list[Pair]) -> dict[str, torch.Tensor]:
    """The backbone under a library's names, for images of `config.image_size`, without a mask token."""
    tensors = model.backbone.state_dict()
    tensors.pop("embeddings.mask_token", None)
    if (table := tensors.get("embeddings.position_embeddings")) is not None:
        side = model.config.image_size // model.backbone.config.patch_size
        tensors["embeddings.position_embeddings"] = resize_position_table(table, (side, side))
    renamed = Layout(library, None, pairs).to_theirs(tensors)
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def _classifier_tensors(model: SSLForImageClassification, name: str, norm_name: str | None = None) -> dict:
    """The linear layer under a library's name; a BatchNorm in front of it is folded into it.

    Args:
        norm_name: of the LayerNorm in front of it that takes the place of the backbone's last, if there is one.
    """
    norm, classifier = model.config.classifier_norm, model.classifier
    if model.config.classifier_stages is not None or (norm == "layernorm" and norm_name is None):
        what = "stages" if norm != "layernorm" else "a LayerNorm of the pooled features"
        raise ValueError(f"no counterpart of a classifier on {what} of {describe(model.backbone)}; {_ANY_MODEL}")
    weight, bias = classifier.weight, classifier.bias
    if norm == "batchnorm":
        batchnorm = model.classifier_norm
        weight = weight / (batchnorm.running_var + batchnorm.eps).sqrt()
        bias = bias - weight @ batchnorm.running_mean
    tensors = {f"{name}.weight": weight.detach().clone(), f"{name}.bias": bias.detach().clone()}
    if norm == "layernorm":
        tensors |= {f"{norm_name}.{key}": tensor for key, tensor in model.classifier_norm.state_dict().items()}
    return tensors


def _check_resnet(config: PreTrainedConfig, library: str) -> None:
    """Raises `ValueError` unless a ResNet is one of torchvision's kind."""
    _check_fields(
        config,
        library,
        embedding_size=64,
        hidden_act="relu",
        downsample_in_first_stage=False,
        downsample_in_bottleneck=False,
    )


def _resnet_name(config: PreTrainedConfig) -> str:
    architecture = (config.layer_type, list(config.depths))
    known = (depth for depth, each in RESNET_DEPTHS.items() if each == architecture)
    return f"resnet{next(known, 18 if config.layer_type == 'basic' else 50)}"


def _timm_resnet(model: SSLPreTrainedModel):
    config = model.backbone.config
    _check_resnet(config, "timm")
    return _resnet_name(config), timm_arguments(config), RESNET


def _timm_vit(model: SSLPreTrainedModel):
    config = model.backbone.config
    _check_fields(config, "timm", hidden_act="gelu", layer_norm_eps=1e-6)
    arguments = {
        **timm_arguments(config),
        "global_pool": "avg" if model.config.pooling == "mean" else "token",
        # after the mean instead of before it
        "fc_norm": _has_norm_after_mean(model),
    }
    names = {192: "tiny", 384: "small", 1024: "large"}
    return f"vit_{names.get(config.hidden_size, 'base')}_patch16_224", arguments, TIMM_VIT


def _timm_beit(model: SSLPreTrainedModel):
    config = model.backbone.config
    norm_after_mean = config.use_mean_pooling or _has_norm_after_mean(model)
    if not norm_after_mean:
        _check_pooling(model, "timm")
    if config.use_relative_position_bias or config.use_shared_relative_position_bias:
        _check_fields(config, "timm", image_size=model.config.image_size)
    _check_fields(config, "timm", hidden_act="gelu", layer_norm_eps=1e-6)
    arguments = {**timm_arguments(config), "global_pool": "avg" if norm_after_mean else "token"}
    return f"beit_{'large' if config.hidden_size == 1024 else 'base'}_patch16_224", arguments, TIMM_BEIT


def _timm_swin(model: SSLPreTrainedModel):
    config = model.backbone.config
    _check_fields(config, "timm", hidden_act="gelu", layer_norm_eps=1e-5, use_absolute_embeddings=False)
    if hasattr(model.config, "pad_small_maps"):  # timm shifts the windows before it pads, not after it
        _check_fields(model.config, "timm", pad_small_maps=False)
    names = {128: "base", 192: "large"}
    return f"swin_{names.get(config.embed_dim, 'tiny')}_patch4_window7_224", timm_arguments(config), TIMM_SWIN


def _timm_wrapper(model: SSLPreTrainedModel):
    if not backbone_layout(model.backbone).pools:
        _check_pooling(model, "timm")
    config = model.backbone.config
    arguments = {name: value for name, value in (config.model_args or {}).items() if name != "num_classes"}
    return config.architecture, arguments, [("*", "timm_model.*")]


def _has_norm_after_mean(model: SSLPreTrainedModel) -> bool:
    """Whether a classifier's LayerNorm has taken the place of the one at the end of a ViT, see `classifier_norm`."""
    is_classifier = isinstance(model, SSLForImageClassification)
    return is_classifier and model.config.classifier_norm == "layernorm" and model.config.pooling == "mean"


_TIMM_BACKBONES = {
    "resnet": _timm_resnet,
    "vit": _timm_vit,
    "beit": _timm_beit,
    "swin": _timm_swin,
    "timm_wrapper": _timm_wrapper,
}


def _write_timm(model: SSLPreTrainedModel, pixel_values: torch.Tensor, folder: Path) -> float:
    """The folder that `timm.create_model("local-dir:...", pretrained=True)` loads, and from the Hub `"hf-hub:..."`."""
    import timm  # it takes a while to import
    from timm.models import save_for_hf

    config, kind = model.config, model.backbone.config.model_type
    if kind not in _TIMM_BACKBONES:
        raise ValueError(
            f"no counterpart in timm of the backbone {kind!r}; there is one of {', '.join(_TIMM_BACKBONES)}. {_ANY_MODEL}"
        )
    _check_takes_images(model, "timm")
    architecture, arguments, pairs = _TIMM_BACKBONES[kind](model)
    if kind in ("vit", "beit", "swin"):
        arguments["img_size"] = config.image_size
    if kind != "timm_wrapper":
        arguments["in_chans"] = config.num_channels
    tensors = _backbone_tensors(model, "timm", pairs)
    num_classes = 0
    if isinstance(model, SSLForImageClassification):
        num_classes = config.num_labels
    known = timm.get_pretrained_cfg(architecture)
    twin = timm.create_model(
        architecture,
        num_classes=num_classes,
        # As our image processor prepares images; nothing is said of the weights that timm has of this architecture.
        pretrained_cfg={
            "input_size": (config.num_channels, config.image_size, config.image_size),
            "mean": tuple(config.image_mean),
            "std": tuple(config.image_std),
            **{name: getattr(known, name) for name in ("fixed_input_size", "first_conv", "classifier")},
        },
        **arguments,
    )
    if num_classes:
        name = "fc_norm" if kind in ("vit", "beit") and _has_norm_after_mean(model) else None
        tensors |= _classifier_tensors(model, twin.pretrained_cfg["classifier"], name)
    _load(twin, tensors, "timm")
    labels = [config.id2label[index] for index in range(num_classes)]
    save_for_hf(twin, folder, {"label_names": labels} if labels else None, arguments, safe_serialization=True)

    def outputs(network: nn.Module, pixel_values: torch.Tensor) -> Outputs:
        if num_classes:
            return {"logits": network(pixel_values)}
        hidden = network.forward_features(pixel_values)
        pooled = network.forward_head(hidden, pre_logits=True)
        if backbone_layout(model.backbone).channels_last:
            hidden = hidden.permute(0, 3, 1, 2)
        return {"last_hidden_state": hidden, "pooler_output": pooled}

    try:
        twin = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except RuntimeError as error:  # versions before 1.0.31 take a Swin without a classifier for one of its authors
        raise ValueError(
            f"timm {timm.__version__} cannot load what was exported to it: pip install --upgrade timm"
        ) from error
    ours = _in_double(_outputs, model, pixel_values)
    return _largest_difference(ours, _in_double(outputs, twin, pixel_values), "timm")


def _load(twin: nn.Module, tensors: dict[str, torch.Tensor], library: str) -> None:
    try:
        twin.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{library} has no such {type(twin).__name__}: {' '.join(str(error).split())}") from error


def _torchvision_model(model: SSLPreTrainedModel) -> tuple[nn.Module, list[Pair], str]:
    """A network of torchvision with a classifier of `num_labels` classes, the pairs of names, and the classifier's."""
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
    from torchvision.models.vision_transformer import VisionTransformer

    config = model.backbone.config
    if config.model_type == "resnet":
        _check_resnet(config, "torchvision")
        block = BasicBlock if config.layer_type == "basic" else Bottleneck
        widths = [width * block.expansion for width in (64, 128, 256, 512)]
        _check_fields(config, "torchvision", num_channels=3, hidden_sizes=widths)
        return ResNet(block, list(config.depths), num_classes=model.config.num_labels), RESNET, "fc"
    if config.model_type == "vit":
        _check_fields(config, "torchvision", num_channels=3, hidden_act="gelu", layer_norm_eps=1e-6, qkv_bias=True)
        _check_pooling(model, "torchvision")
        network = VisionTransformer(
            image_size=model.config.image_size,
            patch_size=config.patch_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            hidden_dim=config.hidden_size,
            mlp_dim=config.intermediate_size,
            num_classes=model.config.num_labels,
        )
        return network, TORCHVISION_VIT, "heads.head"
    raise ValueError(
        f"no counterpart in torchvision of {describe(model.backbone)}; there is one of 'resnet' and 'vit'. {_ANY_MODEL}"
    )


def _write_torchvision(model: SSLPreTrainedModel, pixel_values: torch.Tensor, file: Path) -> float:
    """The state dict of a ResNet or a ViT of torchvision; without a classifier its last layer is to be an `nn.Identity`."""
    _check_takes_images(model, "torchvision")
    twin, pairs, classifier = _torchvision_model(model)
    tensors = _backbone_tensors(model, "torchvision", pairs)
    is_classifier = isinstance(model, SSLForImageClassification)
    if is_classifier:
        tensors |= _classifier_tensors(model, classifier)
    else:
        twin.set_submodule(classifier, nn.Identity())
    save_file(tensors, file, {"format": "pt", **_preprocessing(model)})
    _load(twin.eval(), load_file(file), "torchvision")
    name = "logits" if is_classifier else "pooler_output"
    theirs = _in_double(lambda network, x: {name: network(x)}, twin, pixel_values)
    return _largest_difference(_in_double(_outputs, model, pixel_values), theirs, "torchvision")


def _image_processor(model: SSLPreTrainedModel) -> BaseImageProcessor:
    return build_image_processor(model.config.image_size, model.config.image_mean, model.config.image_std)


def _preprocessing(model: SSLPreTrainedModel) -> dict[str, str]:
    """The image processor for files that hold more than tensors, as JSON by name."""
    return {"preprocessor_config.json": _image_processor(model).to_json_string()}


# Models of transformers


def _write_transformers(model: SSLModel, pixel_values: torch.Tensor, folder: Path) -> float:
    """The folder of the backbone; in `pretraining/` that of `ViTMAEForPreTraining`, `SwinForMaskedImageModeling` or
    `ViTForMaskedImageModeling`, for an MAE of pixels and a SimMIM."""
    if model.backbone.config.model_type == "cifar_resnet":
        raise ValueError(f"transformers has no counterpart of the backbone 'cifar_resnet'; {_ANY_MODEL}")
    model.backbone.save_pretrained(folder)
    _image_processor(model).save_pretrained(folder)
    twin, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    if lacking := [name for name in info["missing_keys"] if not name.startswith("pooler.")]:
        raise ValueError(
            f"transformers' {type(twin).__name__} has {name_some(sorted(lacking))}, which this backbone has not"
        )
    # What its windows need, see SimMIMConfig; without it the model cannot even be asked what it returns.
    options = {"always_partition": True} if getattr(model.config, "pad_small_maps", False) else {}
    twin._layout = backbone_layout(model.backbone)

    def outputs(network: nn.Module, pixel_values: torch.Tensor) -> Outputs:
        return run_backbone(network, pixel_values, model.config.pooling, **options)

    inputs = model.backbone_input(pixel_values)
    ours = _in_double(_outputs, model, pixel_values)
    difference = _largest_difference(ours, _in_double(outputs, twin.eval(), inputs), "transformers")
    pretraining = _pretraining_model(model)
    if pretraining is None:
        return difference
    _load(pretraining, to_theirs(model, "transformers"), "transformers")
    pretraining.save_pretrained(folder / "pretraining")
    _image_processor(model).save_pretrained(folder / "pretraining")
    pretraining = type(pretraining).from_pretrained(folder / "pretraining").eval()
    return max(difference, _difference_of_losses(model, pretraining, options))


def _pretraining_model(model: SSLModel) -> PreTrainedModel | None:
    """transformers' own model of the same algorithm, if there is one."""
    config, backbone = model.config, model.backbone.config
    if config.model_type == "simmim":
        counterpart = SwinForMaskedImageModeling if backbone.model_type == "swin" else ViTForMaskedImageModeling
        return counterpart(backbone)
    if config.model_type != "mae" or config.target_type != "pixels":
        return None
    fields = {name: value for name, value in backbone.to_dict().items() if name in ViTMAEConfig.__dataclass_fields__}
    own = (
        "decoder_hidden_size",
        "decoder_num_hidden_layers",
        "decoder_num_attention_heads",
        "decoder_intermediate_size",
    )
    fields |= {name: getattr(config, name) for name in (*own, "mask_ratio", "norm_pix_loss")}
    return ViTMAEForPreTraining(ViTMAEConfig(**fields))


def _difference_of_losses(model: SSLModel, twin: PreTrainedModel, options: dict) -> float:
    """Of images of the backbone's size with the same patches masked."""
    backbone = model.backbone.config
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(
        2, backbone.num_channels, backbone.image_size, backbone.image_size, generator=generator
    ).double()
    if model.config.model_type == "mae":
        noise = torch.rand(2, (backbone.image_size // backbone.patch_size) ** 2, generator=generator)
        theirs = twin.double()(pixel_values, noise=noise)
        mask = theirs.mask.bool()
    else:
        with torch.random.fork_rng(devices=[]):
            mask = model.patch_mask(pixel_values, None)
        theirs = twin.double()(pixel_values, bool_masked_pos=mask, **options)
    ours = model.double()(pixel_values, mode="loss", bool_masked_pos=mask)
    model.float()
    return _largest_difference({"loss": ours.loss}, {"loss": theirs.loss}, "transformers")


# Programs


class _Program(nn.Module):
    def __init__(self, model: SSLPreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> Outputs:
        return _outputs(self.model, pixel_values)


def _export_program(model: SSLPreTrainedModel, pixel_values: torch.Tensor) -> torch.export.ExportedProgram:
    """Of batches of any size of images of `config.image_size`."""
    backbone_layout(model.backbone)  # asks the backbone by a forward pass, which is not to be traced
    return torch.export.export(_Program(model), (pixel_values,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _write_torch_export(model: SSLPreTrainedModel, pixel_values: torch.Tensor, file: Path) -> float:
    """What `torch.export.load(file).module()` runs: `pixel_values` to a dict of the features, or of the logits."""
    torch.export.save(_export_program(model, pixel_values), file, extra_files=_preprocessing(model))
    program = torch.export.load(file).module()
    return max(
        _largest_difference(_outputs(model, batch), program(batch), "torch.export")
        for batch in (pixel_values, pixel_values[:1])
    )


def _write_onnx(model: SSLPreTrainedModel, pixel_values: torch.Tensor, folder: Path) -> float:
    """`model.onnx`: `pixel_values` to the features, or to the logits."""
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ValueError(f"an export to ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    import onnxruntime  # not above: it is not among what ssl_hub requires

    names = list(_outputs(model, pixel_values))
    program = torch.onnx.export(
        _export_program(model, pixel_values),
        input_names=["pixel_values"],
        output_names=names,
        dynamo=True,
        verbose=False,
    )
    folder.mkdir()
    program.save(folder / "model.onnx")
    _image_processor(model).save_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in (pixel_values, pixel_values[:1]):
        results = session.run(names, {"pixel_values": batch.numpy()})
        theirs = {name: torch.from_numpy(result) for name, result in zip(names, results, strict=True)}
        largest = max(largest, _largest_difference(_outputs(model, batch), theirs, "onnxruntime"))
    return largest


# MMSelfSup


def _write_mmselfsup(model: SSLModel, pixel_values: torch.Tensor, file: Path) -> float:
    """`{"state_dict": ...}` of the whole algorithm; no tensor is changed."""
    known = {layout.model_type for layout in layouts_of("mmselfsup") if layout.model_type}
    if model.config.model_type not in known:
        raise ValueError(
            f"no counterpart in MMSelfSup of {model.config.model_type!r}; there is one of {', '.join(sorted(known))}"
        )
    torch.save({"state_dict": to_theirs(model, "mmselfsup")}, file)
    twin = AutoModel.from_config(copy.deepcopy(model.config))
    conversion = load_foreign_checkpoint(twin, file, "mmselfsup")
    ours, theirs = model.state_dict(), twin.state_dict()
    read = ours.keys() - set(conversion.new)
    if changed := [name for name in read if not torch.equal(ours[name], theirs[name])]:
        raise ValueError(f"MMSelfSup's names do not keep {name_some(sorted(changed))} as they are. Nothing is written")
    return 0.0


@dataclass(frozen=True)
class Target:
    """What a model is written as.

    Args:
        write: writes a model to a path and says by how much what was written differs from it.
        suffix: of the file; empty for a folder.
        takes_classifiers: whether an image classifier is taken as well.
    """

    write: Callable[[SSLPreTrainedModel, torch.Tensor, Path], float]
    suffix: str = ""
    takes_classifiers: bool = True

    @property
    def kind(self) -> str:
        return f"file *{self.suffix}" if self.suffix else "folder"


TARGETS = {
    "timm": Target(_write_timm),
    "torchvision": Target(_write_torchvision, ".safetensors"),
    "transformers": Target(_write_transformers, takes_classifiers=False),
    "onnx": Target(_write_onnx),
    "torch_export": Target(_write_torch_export, ".pt2"),
    "mmselfsup": Target(_write_mmselfsup, ".pth", takes_classifiers=False),
}
