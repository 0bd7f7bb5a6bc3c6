"""The arguments of pretraining, named as in transformers' `TrainingArguments` and its `*_no_trainer` examples."""

import argparse
import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields, make_dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, get_type_hints

from transformers import HfArgumentParser, SchedulerType

from ..field_types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Probability,
    Seed,
    ShareBelowOne,
    check_fields,
)

# Recipes and evaluators take seconds to import, for which --help and a misspelt argument should not wait.
if TYPE_CHECKING:
    from .recipes import Recipe

# Where and how a run is logged, evaluated, saved and shared: of its arguments those that do not change what it trains.
_NOT_IDENTITY = (
    *("output_dir", "resume_from_checkpoint", "logging_steps", "report_to", "checkpointing_steps", "save_total_limit"),
    *(
        "eval_steps",
        "evaluation",
        "keep_best",
        "knn_max_samples",
        "per_device_eval_batch_size",
        "dataloader_num_workers",
    ),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "recipe_length", "auto_find_batch_size"),
)


@dataclass
class ModelArguments:
    recipe: str = field(metadata={"help": "Name of a recipe, or path of its YAML file: model, views and defaults."})
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Changes to the recipe's model: name=value,backbone_config.name=value,..."},
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Start from these weights: a folder or a Hub id of the recipe's algorithm, or of a plain backbone. "
            "'none' starts from scratch."
        },
    )

    def __post_init__(self):
        if self.model_name_or_path == "none":
            self.model_name_or_path = None
        check_fields(self, "--")


@dataclass
class DataArguments:
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub name, saved dataset, parquet file or folder, or 'digits', which needs no network."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    train_dir: str | None = field(default=None, metadata={"help": "Folder of images, with or without class folders."})
    validation_dir: str | None = field(
        default=None, metadata={"help": "Folder of images in class folders for the kNN evaluation."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to evaluate on, kNN if it has labels; by default a sample of training images, without kNN."
        },
    )
    train_val_split: ShareBelowOne = field(
        default=0.0,
        metadata={"help": "Share of the training images to hold out and evaluate on, where no split is named."},
    )
    image_column_name: str | None = field(default=None, metadata={"help": "Found by its type when not given."})
    label_column_name: str | None = field(default=None, metadata={"help": "Found by its type when not given."})
    streaming: bool = field(default=False, metadata={"help": "Read the dataset while training; needs max_train_steps."})

    def __post_init__(self):
        check_fields(self, "--")
        if (self.dataset_name is None) == (self.train_dir is None):
            raise ValueError(
                "give either --dataset_name (a Hub name, a parquet file, 'digits', ...) or --train_dir (a folder of "
                f"images); got {self.dataset_name} and {self.train_dir}"
            )
        if self.streaming and self.train_val_split:
            raise ValueError(
                f"--train_val_split {self.train_val_split} needs to know all images, and --streaming does not: leave one of "
                "them out"
            )


@dataclass
class PretrainingArguments:
    output_dir: str = field(metadata={"help": "Where checkpoints, metrics and the model go."})
    seed: Seed = field(default=0, metadata={"help": "Of weights, order, views and masks."})

    num_train_epochs: PositiveFloat = field(default=100.0, metadata={"help": "Passes over the dataset."})
    max_train_steps: PositiveInt | None = field(default=None, metadata={"help": "Optimizer steps, instead of epochs."})
    per_device_train_batch_size: PositiveInt = field(
        default=256, metadata={"help": "Images a process and forward pass."}
    )
    gradient_accumulation_steps: PositiveInt = field(default=1, metadata={"help": "Forward passes an optimizer step."})
    auto_find_batch_size: bool = field(
        default=False,
        metadata={
            "help": "Halve a batch that does not fit in memory, and double gradient_accumulation_steps. On one process."
        },
    )

    base_learning_rate: PositiveFloat = field(
        default=1.5e-4, metadata={"help": "Learning rate for 256 images an optimizer step; scaled by their number."}
    )
    learning_rate: PositiveFloat | None = field(
        default=None, metadata={"help": "Learning rate, instead of the scaled one."}
    )
    lr_scheduler_type: SchedulerType = field(default="cosine", metadata={"help": "A schedule of transformers."})
    min_lr_rate: Probability = field(
        default=0.0, metadata={"help": "Where cosine_with_min_lr ends, as a share of the learning rate."}
    )
    lr_milestones: str | None = field(
        default=None,
        metadata={"help": "Epochs, by comma, after which the learning rate is multiplied by a factor, instead."},
    )
    lr_milestone_factor: PositiveFloat = field(default=0.1, metadata={"help": "That factor."})
    warmup_epochs: NonNegativeFloat = field(default=0.0, metadata={"help": "Epochs of linear warm-up."})
    warmup_steps: NonNegativeInt | None = field(default=None, metadata={"help": "Steps of warm-up, instead of epochs."})
    optim: Literal["adamw", "sgd", "lars"] = field(default="adamw", metadata={"help": "Optimizer."})
    weight_decay: NonNegativeFloat = field(default=0.05, metadata={"help": "Not of biases, norms and tokens."})
    weight_decay_end: NonNegativeFloat | None = field(
        default=None, metadata={"help": "Where the weight decay goes by a cosine over the run; constant by default."}
    )
    decay_norm_and_bias: bool = field(
        default=False,
        metadata={"help": "Treat biases, norms and tokens as all others: weight decay, LARS' adaptation."},
    )
    norm_and_bias_lr_scale: NonNegativeFloat = field(
        default=1.0, metadata={"help": "Factor of the learning rate of biases, norms and tokens."}
    )
    sgd_momentum: ShareBelowOne = field(default=0.9, metadata={"help": "Of SGD and LARS."})
    adam_beta1: ShareBelowOne = field(default=0.9, metadata={"help": "Of AdamW."})
    adam_beta2: ShareBelowOne = field(default=0.95, metadata={"help": "Of AdamW."})
    adam_epsilon: PositiveFloat = field(default=1e-8, metadata={"help": "Of AdamW."})
    max_grad_norm: NonNegativeFloat | None = field(default=None, metadata={"help": "Clip the gradient to this norm."})

    mixed_precision: Literal["no", "fp16", "bf16"] | None = field(
        default=None, metadata={"help": "Autocast: no, fp16 or bf16; by default what accelerate was told."}
    )
    loss_chunk_size: PositiveInt | None = field(
        default=None,
        metadata={
            "help": "Images whose activations are held at once, for large contrastive batches: the exact gradient of the "
            "whole batch for one more forward pass. BatchNorm sees a chunk."
        },
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory, more computation."})
    torch_compile: bool = field(default=False, metadata={"help": "Compile the model."})
    dataloader_num_workers: NonNegativeInt = field(default=0, metadata={"help": "Worker processes that load images."})
    augment_on_device: bool = field(
        default=False,
        metadata={"help": "Render the views on the accelerator, a batch at a time; workers decode only."},
    )
    cache_images: Literal["no", "memory", "device"] = field(
        default="no",
        metadata={
            "help": "Decode every image once and keep it as 8 bits, in main memory or on the accelerator, where the views "
            "are rendered then. Each process keeps all of them."
        },
    )

    logging_steps: PositiveInt = field(default=50, metadata={"help": "Steps between two lines of metrics.jsonl."})
    report_to: str = field(default="none", metadata={"help": "Trackers of Accelerate, by comma: tensorboard, wandb."})
    eval_steps: PositiveInt | None = field(
        default=None, metadata={"help": "Steps between evaluations; only before and after training by default."}
    )
    per_device_eval_batch_size: PositiveInt = field(
        default=256, metadata={"help": "Images a process in the evaluation."}
    )
    evaluation: str | None = field(
        default=None,
        metadata={"help": "Evaluators, instead of the recipe's, as YAML: '[{type: knn, k: 20}, {type: label_free}]'."},
    )
    knn_max_samples: NonNegativeInt | None = field(
        default=None,
        metadata={"help": "Training images in the bank of the kNN evaluation, a fixed random sample; 0 for all."},
    )
    eval_crop_ratio: PositiveShare = field(
        default=0.875, metadata={"help": "Share of the short side that evaluation keeps; travels with the model."}
    )
    checkpointing_steps: str = field(default="epoch", metadata={"help": "Steps between checkpoints, or 'epoch'."})
    save_total_limit: PositiveInt | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    keep_best: str | None = field(
        default=None,
        metadata={
            "help": "A metric of the run's evaluation, such as rankme: the checkpoint of the best evaluation is kept "
            "besides. What is shared at the end is the last one all the same."
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "A checkpoint folder, or 'latest': the last whole one of output_dir, if there is any."},
    )

    push_to_hub: bool = field(default=False, metadata={"help": "Share the model on the Hub at the end."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Such as me/mae-vit-base; output_dir's name."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Whether a new repository is private."})

    # The recipe's own (max_train_steps, num_train_epochs), if its is the warm-up too; not an option.
    recipe_length: tuple[int | None, float] | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        for name in ("checkpointing_steps", "lr_milestones"):  # what YAML may make a number of
            if type(getattr(self, name)) in (int, float):
                setattr(self, name, str(getattr(self, name)))
        check_fields(self, "--")
        if self.weight_decay_end is not None and self.weight_decay == 0:
            raise ValueError(
                f"--weight_decay_end is where a positive --weight_decay goes; got {self.weight_decay_end} from 0"
            )
        if self.lr_milestones and not re.fullmatch(r"\d+(\.\d+)?(,\s*\d+(\.\d+)?)*", self.lr_milestones):
            raise ValueError(f"--lr_milestones must be epochs such as '60,80', got {self.lr_milestones!r}")
        if self.checkpointing_steps != "epoch" and (
            not self.checkpointing_steps.isdecimal() or int(self.checkpointing_steps) < 1
        ):
            raise ValueError(
                f"--checkpointing_steps must be a number of steps or 'epoch', got {self.checkpointing_steps!r}"
            )

        if self.keep_best is not None:
            from ..evaluation.evaluators import check_metric

            try:
                check_metric(self.keep_best)
            except ValueError as error:
                raise ValueError(f"--keep_best: {error}") from error
            if self.eval_steps is None:
                raise ValueError(
                    f"--keep_best {self.keep_best} compares the evaluations of a run, and this one is evaluated at its end "
                    "only: give --eval_steps"
                )
        if self.evaluation is not None:
            from ..evaluation.evaluators import build_evaluators
            from .recipes import read_yaml

            try:
                build_evaluators(read_yaml(self.evaluation))
            except ValueError as error:
                raise ValueError(f"--evaluation {self.evaluation!r}: {error}") from error

    def replace(self, **values) -> "PretrainingArguments":
        """A copy with other values, and the same `recipe_length`."""
        changed = replace(self, **values)
        changed.recipe_length = self.recipe_length
        return changed

    def identity(self) -> dict:
        """What a resumed run has to have in common with the first one to end like it, as JSON."""
        names = [f.name for f in fields(self) if f.name not in _NOT_IDENTITY]
        return {name: getattr(self, name) for name in names} | {
            "lr_scheduler_type": SchedulerType(self.lr_scheduler_type).value
        }


Arguments = tuple["Recipe", ModelArguments, DataArguments, PretrainingArguments]
_CLASSES = (ModelArguments, DataArguments, PretrainingArguments)


# The first argument of each group that `--help` shows; it has the others up to the next one.
_GROUPS = {
    "recipe": "Model",
    "dataset_name": "Data",
    "output_dir": "Run",
    "num_train_epochs": "Length and batch",
    "base_learning_rate": "Optimizer",
    "mixed_precision": "Speed and memory",
    "logging_steps": "Logging",
    "eval_steps": "Evaluation",
    "checkpointing_steps": "Checkpoints",
    "push_to_hub": "Sharing",
}


def parse_arguments(args: list[str]) -> Arguments:
    """The arguments of a run by a recipe, of what follows `ssl-hub pretrain`; see [`build_arguments`]."""
    return build_arguments(**parse_given(args))


def parse_given(args: list[str]) -> dict:
    """What the words after `ssl-hub pretrain` say, by name, and nothing that they leave out.

    Returns:
        Arguments of `build_arguments`, and where they were given `images`, the word without a name, and `dry_run`.
    """
    parser, words = _build_parser(), [word for word in args if word not in ("-h", "--help")]
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False  # what is not given is not there
    given = vars(parser.parse_args(words))
    if len(words) < len(args):
        _print_help(given.get("recipe"))
        parser.exit()
    if "images" not in given and "recipe" not in given:
        parser.error("give a folder of images, or --recipe, the name of a recipe or the path of its YAML file")
    if "images" not in given and "output_dir" not in given:
        parser.error("give --output_dir, where checkpoints, metrics and the model go")
    return given


def _print_help(recipe: str | None) -> None:
    """With the defaults of a recipe, if there is one."""
    parser = _build_parser()
    if recipe is not None:
        from .recipes import load_recipe

        parser.set_defaults(**_recipe_defaults(load_recipe(recipe), has_images=False))
    for action in parser._actions:
        if action.default is None:
            action.default = argparse.SUPPRESS  # says nothing
    parser.print_help()


def _build_parser() -> HfArgumentParser:
    groups: list[tuple[str, list]] = []
    for cls in _CLASSES:
        for each in fields(cls):
            if each.name in _GROUPS:
                groups.append((_GROUPS[each.name], []))
            if each.init:
                groups[-1][1].append(each)
    types = {name: hint for cls in _CLASSES for name, hint in get_type_hints(cls).items()}
    classes = [
        make_dataclass(
            title.title().replace(" ", ""),
            [(f.name, types[f.name], field(default=f.default, metadata=f.metadata)) for f in members],
            namespace={"_argument_group_name": title},
        )
        for title, members in groups
    ]
    parser = HfArgumentParser(
        classes,
        prog="ssl-hub pretrain",
        usage="%(prog)s FOLDER ...\n       %(prog)s --recipe NAME ... (--help lists the arguments)",
        description="Pretrains a model on a folder of images, chosen to fit them and the device; or by a recipe. What the "
        "command line leaves out comes from the recipe, and then is as shown here.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "images",
        metavar="FOLDER",
        nargs="?",
        help="Images, in class folders or not, perhaps in train/ and test/; or what --dataset_name takes. All that is not "
        "given is chosen to fit them, and said.",
    )
    parser.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="Say what would be done and how long it takes, and end there.",
    )
    return parser


def build_arguments(recipe: str, **values) -> Arguments:
    """The same of values by name, for callers in Python."""
    from .recipes import load_recipe

    names = {f.name: cls for cls in _CLASSES for f in fields(cls) if f.init}
    for name in values:
        if name not in names:
            near = get_close_matches(name, sorted(names), n=3)
            raise ValueError(f"there is no argument {name!r}" + (f"; near it: {', '.join(near)}" if near else ""))
    loaded = load_recipe(recipe)
    has_images = values.get("train_dir") is not None
    every = _recipe_defaults(loaded, has_images) | values | {"recipe": recipe}
    model_args, data_args, training_args = (
        cls(**{name: value for name, value in every.items() if names[name] is cls}) for cls in _CLASSES
    )
    _note_length(training_args, loaded, values.keys())
    return loaded, model_args, data_args, training_args


def _recipe_defaults(recipe: "Recipe", has_images: bool) -> dict:
    names = {f.name for cls in _CLASSES for f in fields(cls)}
    for name in recipe.training:
        if name not in names:
            near = get_close_matches(str(name), sorted(names), n=3)
            raise ValueError(
                f"recipe {recipe.name} sets {name!r}, which is no training argument"
                + (f"; near it: {', '.join(near)}" if near else "")
            )
    defaults = dict(recipe.training)
    if has_images:  # the user's images take the place of the recipe's dataset
        for name in ("dataset_name", "eval_split"):
            defaults.pop(name, None)
    return defaults


def _note_length(args: PretrainingArguments, recipe: "Recipe", given: Collection[str]) -> None:
    """Lets the warm-up of a recipe follow the length of the run, unless it was given."""
    if not {"warmup_steps", "warmup_epochs"} & set(given):
        epochs = recipe.training.get("num_train_epochs", PretrainingArguments.num_train_epochs)
        args.recipe_length = (recipe.training.get("max_train_steps"), epochs)
