"""The arguments of training a classifier: those of transformers' `TrainingArguments`, and what the protocols need."""

import argparse
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Literal, get_type_hints

from transformers import HfArgumentParser, TrainingArguments

from ..field_types import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Probability,
    ShareBelowOne,
    check_fields,
    check_value,
)
from ..training.recipes import list_yaml_files, read_recipe_file
from .data import LabelledDataArguments


@dataclass
class ClassifierArguments:
    _argument_group_name = "Model"  # in --help

    model_name_or_path: str = field(
        metadata={
            "help": "A folder or a Hub id: of a model of ssl_hub, of a vision model of transformers, of a model of timm "
            "(timm/resnet50.a1_in1k); or the name of an architecture of timm."
        }
    )
    recipe: str | None = field(
        default=None, metadata={"help": "Name of a protocol, or path of a YAML file: defaults of the other arguments."}
    )
    from_scratch: bool = field(default=False, metadata={"help": "Take the architecture without its weights."})
    drop_path_rate: ShareBelowOne | None = field(
        default=None, metadata={"help": "Of stochastic depth, at the last block; by default the model's own."}
    )
    image_size: PositiveInt | None = field(default=None, metadata={"help": "In pixels; by default the model's own."})
    eval_crop_ratio: PositiveShare = field(
        default=0.875, metadata={"help": "Share of the short side of a test image that is kept."}
    )
    pooling: Literal["cls", "mean"] | None = field(
        default=None, metadata={"help": "Of tokens; by default as the model's configuration says."}
    )
    classifier_norm: Literal["batchnorm", "layernorm"] | None = field(
        default=None, metadata={"help": "What comes before the linear layer."}
    )
    classifier_std: NonNegativeFloat = field(
        default=0.01, metadata={"help": "Of the weights that the linear layer starts from."}
    )
    classifier_stages: list[int] | None = field(
        default=None, metadata={"help": "A linear layer on each of these stages of a ResNet: 0 (the stem) to 4."}
    )
    classifier_stage_pooling: Literal["specified", "adaptive"] = field(
        default="specified", metadata={"help": "The published kernels, for 224 pixels, or for images of any size."}
    )

    def __post_init__(self):
        check_fields(self, "--")


@dataclass
class AugmentationArguments:
    _argument_group_name = "Augmentation"  # in --help

    crop_scale_min: PositiveShare = field(
        default=0.08, metadata={"help": "Least share of the image's area in a random crop."}
    )
    hflip: Probability = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    color_jitter: NonNegativeFloat = field(
        default=0.0, metadata={"help": "Strength in brightness, contrast and saturation."}
    )
    lighting: NonNegativeFloat = field(
        default=0.0, metadata={"help": "Deviation of AlexNet's noise along the principal components of colors."}
    )
    auto_augment: str | None = field(
        default=None, metadata={"help": "As timm names it: rand-m9-mstd0.5-inc1 is the RandAugment of the protocols."}
    )
    random_erasing: Probability = field(default=0.0, metadata={"help": "Probability that a rectangle is made noise."})
    interpolation: Literal["bicubic", "bilinear"] = field(default="bicubic", metadata={"help": "Of crops."})
    mixup: NonNegativeFloat = field(
        default=0.0, metadata={"help": "Alpha of Mixup; with CutMix too, a batch gets one of them."}
    )
    cutmix: NonNegativeFloat = field(default=0.0, metadata={"help": "Alpha of CutMix."})

    def __post_init__(self):
        check_fields(self, "--")


@dataclass
class ClassifierTrainingArguments(TrainingArguments):
    """transformers' arguments, with the learning rate by the number of images a step, and the protocols' optimizers."""

    _argument_group_name = "Training"

    base_learning_rate: PositiveFloat | None = field(
        default=None, metadata={"help": "Learning rate for 256 images an optimizer step, scaled by their number."}
    )
    optimizer: Literal["sgd", "lars"] | None = field(
        default=None, metadata={"help": "Instead of --optim: SGD with momentum, or LARS of timm."}
    )
    momentum: Probability = field(default=0.9, metadata={"help": "Of that SGD or LARS."})
    nesterov: bool = field(default=False, metadata={"help": "Nesterov's momentum."})
    layer_decay: PositiveShare | None = field(
        default=None, metadata={"help": "Learning rate of a layer over that of the one above it."}
    )
    head_lr_scale: PositiveFloat = field(default=1.0, metadata={"help": "Factor of the classifier's learning rate."})
    decay_norm_and_bias: bool = field(
        default=False, metadata={"help": "Weight decay of biases, norms, tokens and positions too."}
    )
    lr_milestones: list[float] | None = field(
        default=None, metadata={"help": "Epochs after which the learning rate is multiplied, instead of a schedule."}
    )
    lr_milestone_factor: PositiveFloat = field(default=0.1, metadata={"help": "By what."})

    learning_rate: PositiveFloat | None = field(default=None, metadata={"help": "Instead of --base_learning_rate."})
    # Where the published protocols differ from transformers' defaults.
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "A schedule of transformers."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip the gradient to this norm; 0 for not at all."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss that is not finite ends the run."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "A dataset here has no others."})

    def __post_init__(self):
        if (self.learning_rate is None) == (self.base_learning_rate is None):
            raise ValueError(
                "give either --learning_rate or --base_learning_rate, the one for 256 images a step, which a --recipe sets; "
                f"got {self.learning_rate} and {self.base_learning_rate}"
            )
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            if name in ClassifierTrainingArguments.__annotations__:
                setattr(self, name, check_value(f"--{name}", getattr(self, name), hint))
        super().__post_init__()


PROTOCOLS_PACKAGE = "ssl_hub.classification.recipes"
ARGUMENT_CLASSES = (ClassifierArguments, AugmentationArguments, LabelledDataArguments, ClassifierTrainingArguments)
Arguments = tuple[ClassifierArguments, AugmentationArguments, LabelledDataArguments, ClassifierTrainingArguments]


def list_protocols() -> list[str]:
    """The names of the published protocols that are recipes."""
    return list_yaml_files(PROTOCOLS_PACKAGE)


def load_protocol(name_or_file: str, extended_by: tuple[str, ...] = ()) -> dict:
    """Reads a protocol's arguments by its name, or those of a `.yaml` file; one that `extends` another adds to it.

    Args:
        extended_by: the recipes on the way here, from the first one.
    """
    content = read_recipe_file(name_or_file, PROTOCOLS_PACKAGE, extended_by, " of a classifier")
    if not isinstance(content, dict):
        raise ValueError(f"recipe {name_or_file} must hold arguments by their names, got {content!r}")
    parent = content.pop("extends", None)
    return {**(load_protocol(parent, (*extended_by, name_or_file)) if parent else {}), **content}


def parse_arguments(args: list[str], command: str = "finetune", **defaults) -> Arguments:
    """Parses what follows `ssl-hub finetune` or `probe`; what it leaves out comes from the recipe, then `defaults`, then the classes."""
    parser = HfArgumentParser(
        ARGUMENT_CLASSES,
        prog=f"ssl-hub {command}",
        usage="%(prog)s --model_name_or_path NAME --recipe NAME ... (--help lists the arguments)",
        allow_abbrev=False,
    )
    # The recipe has to be known first, as it says what the defaults of the other arguments are.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--learning_rate", "--learning-rate")
    known = first.parse_known_args(args)[0]
    if known.recipe is not None:
        protocol = load_protocol(known.recipe)
        allowed = sorted({f.name for cls in ARGUMENT_CLASSES for f in fields(cls)})
        for name in protocol:
            if name not in allowed:
                near = get_close_matches(str(name), allowed, n=3)
                raise ValueError(
                    f"recipe {known.recipe} sets {name!r}, which is no argument"
                    + (f"; near it: {', '.join(near)}" if near else "")
                )
        defaults |= protocol
    if known.learning_rate is not None:
        defaults.pop("base_learning_rate", None)
    parser.set_defaults(**defaults)
    return parser.parse_args_into_dataclasses(args)
