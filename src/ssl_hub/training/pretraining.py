"""A pretraining run, from its arguments or in one call."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import find_executable_batch_size, release_memory

from ..data.datasets import load_image_dataset
from ..modeling_utils import SSLModel
from .arguments import Arguments, DataArguments, ModelArguments, PretrainingArguments, build_arguments
from .recipes import Recipe, list_recipes
from .trainer import SSLTrainer

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_HOLD_OUT_STREAM = int.from_bytes(b"hold", "big")  # of random numbers; see `SSLTrainer`
ImageDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset | datasets.DatasetDict


def pretrain(
    recipe: str | os.PathLike | None = None,
    dataset: str | os.PathLike | ImageDataset | None = None,
    *,
    output_dir: str | os.PathLike,
    eval_dataset: datasets.Dataset | None = None,
    **overrides,
) -> SSLModel:
    """Pretrains a model by a recipe or on a folder of images, as `ssl-hub pretrain` does, and returns it.

        model = ssl_hub.pretrain("simclr-digits", output_dir="out", max_train_steps=200)
        model = ssl_hub.pretrain("photos", output_dir="out")

    Args:
        recipe: the name of a recipe, or the path of its YAML file. A folder in its place, or a `dataset` without a recipe,
            has all that is not given chosen to fit the images and the device, and said.
        dataset: what `load_image_dataset` takes: a name, a path, or a dataset in memory; by default the recipe's.
        output_dir: where checkpoints, metrics, the model and its card go.
        eval_dataset: to evaluate on; of a dataset that is named `eval_split` says the same.
        overrides: the other arguments of the command, by their names, such as `num_train_epochs=10`.

    Returns:
        The trained model, in eval mode.

    Raises:
        ValueError: an argument that there is not, or that does not fit.
        NonFiniteLossError, OSError: as [`SSLTrainer.train`].
    """
    values = {**overrides, "output_dir": os.fspath(output_dir)}
    if recipe is not None and dataset is None and recipe not in list_recipes() and os.path.isdir(recipe):
        recipe, dataset = None, recipe
    if recipe is None:
        if not isinstance(dataset, str | os.PathLike) or eval_dataset is not None:
            raise ValueError(
                "without a recipe pretrain takes the path of a folder of images, or the name of a dataset: name a recipe for "
                f"datasets in memory; got {'nothing' if dataset is None else type(dataset).__name__}"
            )
        from .planning import plan_pretraining  # which builds on this file

        return run_pretraining(*plan_pretraining(os.fspath(dataset), **values)).model.eval()
    if isinstance(dataset, str):
        values["dataset_name"] = dataset
    elif isinstance(dataset, os.PathLike):
        values["train_dir"] = os.fspath(dataset)
    elif dataset is not None:
        values["dataset_name"] = "in memory"
    loaded, model_args, data_args, args = build_arguments(os.fspath(recipe), **values)
    in_memory = None
    if values.get("dataset_name") == "in memory":
        in_memory, data_args = dataset, None
    return run_pretraining((loaded, model_args, data_args, args), in_memory, eval_dataset).model.eval()


def run_pretraining(
    arguments: Arguments, train_dataset: ImageDataset | None = None, eval_dataset: datasets.Dataset | None = None
) -> SSLTrainer:
    """Builds a trainer and lets it train; returns it.

    Args:
        arguments: what `build_arguments` returned.
        train_dataset, eval_dataset: see [`build_trainer`].
    """

    def run(recipe: Recipe, model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments):
        trainer = build_trainer(recipe, model_args, data_args, args, train_dataset, eval_dataset)
        trainer.train()
        return trainer

    return with_batch_that_fits(run, arguments)


def with_batch_that_fits(run: Callable[..., Result], arguments: Arguments) -> Result:
    """Calls `run(*arguments)`, with `auto_find_batch_size` again whenever memory runs out: with half the batch, and twice
    the gradient accumulation.

    So an optimizer step, its learning rate and the length of the run stay what they were, and a run that has written
    checkpoints resumes. What memory a try held is freed first.

    Raises:
        ValueError: several processes would not agree on the batch.
    """
    *others, args = arguments
    if not args.auto_find_batch_size:
        return run(*arguments)
    if PartialState().num_processes > 1:
        raise ValueError(
            "--auto_find_batch_size is for one process, as several would wait for the one that ran out of memory: leave it "
            "out, and give --per_device_train_batch_size"
        )
    first = size = args.per_device_train_batch_size

    def halve() -> int:
        nonlocal size
        # A divisor of the first one, so that a step has as many images as before.
        before, size = size, next((each for each in range(size // 2, 0, -1) if first % each == 0), 0)
        if size > 0:
            logger.warning(
                "a batch of %d images does not fit in memory: now %d, in %d forward passes an optimizer step, so that its "
                "%d images and its learning rate stay",
                *(before, size, args.gradient_accumulation_steps * first // size),
                args.gradient_accumulation_steps * first,
            )
        return size

    @find_executable_batch_size(starting_batch_size=first, reduce_batch_size_fn=halve)
    def run_with(batch_size: int) -> Result:
        release_memory()  # only now nothing holds the last try
        if batch_size == first:
            return run(*arguments)
        smaller = args.replace(
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=min(args.per_device_eval_batch_size, batch_size),
            gradient_accumulation_steps=args.gradient_accumulation_steps * first // batch_size,
            resume_from_checkpoint="latest",
        )
        return run(*others, smaller)

    try:
        return run_with()
    except RuntimeError as error:
        if size > 0:
            raise
        raise ValueError("not even one image fits in memory: choose a smaller model or image_size") from error


def count_held_out(num_images: int, share: float) -> int:
    return max(1, round(share * num_images))


def hold_out(dataset: datasets.Dataset, share: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Splits a random part off a dataset, one image at least; returns what is left and the part."""
    num_held_out = count_held_out(len(dataset), share)
    order = np.random.default_rng([seed, _HOLD_OUT_STREAM]).permutation(len(dataset))
    held_out, left = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
    return dataset.select(left), dataset.select(held_out)


def load_images(
    data_args: DataArguments,
    seed: int,
    train_dataset: ImageDataset | None = None,
    eval_dataset: datasets.Dataset | None = None,
) -> tuple[ImageDataset, datasets.Dataset | None]:
    """The images to train on and, if the arguments name any, to evaluate on.

    Args:
        seed: of those that are held out.
        train_dataset, eval_dataset: where one of them is loaded already.
    """
    columns = {"image_column": data_args.image_column_name, "label_column": data_args.label_column_name}
    source = data_args.dataset_name or Path(data_args.train_dir)  # a folder is not looked up on the Hub
    config_name = data_args.dataset_config_name
    if train_dataset is None:
        train_dataset = load_image_dataset(
            source, data_args.train_split, config_name=config_name, streaming=data_args.streaming, **columns
        )
    if eval_dataset is None and data_args.validation_dir is not None:
        eval_dataset = load_image_dataset(Path(data_args.validation_dir), **columns)
    elif eval_dataset is None and data_args.eval_split is not None:
        eval_dataset = load_image_dataset(source, data_args.eval_split, config_name=config_name, **columns)
    elif eval_dataset is None and data_args.train_val_split:
        train_dataset, eval_dataset = hold_out(train_dataset, data_args.train_val_split, seed)
    return train_dataset, eval_dataset


def build_trainer(
    recipe: Recipe,
    model_args: ModelArguments,
    data_args: DataArguments | None,
    args: PretrainingArguments,
    train_dataset: ImageDataset | None = None,
    eval_dataset: datasets.Dataset | None = None,
) -> SSLTrainer:
    """The trainer of what `parse_arguments` returned.

    Args:
        data_args: None for images that have no name.
        train_dataset, eval_dataset: those that `data_args` names, if they are loaded already.
    """
    if train_dataset is None:
        train_dataset, eval_dataset = load_images(data_args, args.seed, eval_dataset=eval_dataset)
    torch.manual_seed(args.seed)
    return SSLTrainer(
        recipe.build_model(model_args.config_overrides, model_args.model_name_or_path),
        args,
        train_dataset,
        recipe.views,
        eval_dataset,
        recipe.evaluation,
        recipe_name=recipe.name,
        data_args=data_args,
        model_args=model_args,
    )
