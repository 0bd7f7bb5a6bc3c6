"""A pretraining run, from its arguments or in one call."""

import os
from pathlib import Path
from typing import TypeAlias

import datasets
import torch

from ..data.datasets import load_image_dataset
from ..modeling_utils import SSLModel
from .arguments import DataArguments, ModelArguments, PretrainingArguments, build_arguments
from .recipes import Recipe
from .trainer import SSLTrainer

ImageDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset | datasets.DatasetDict


def pretrain(
    recipe: str,
    dataset: str | os.PathLike | ImageDataset | None = None,
    *,
    output_dir: str | os.PathLike,
    eval_dataset: datasets.Dataset | None = None,
    **overrides,
) -> SSLModel:
    """Pretrains a model by a recipe, as `ssl-hub pretrain` does, and returns it.

        model = ssl_hub.pretrain("simclr-digits", output_dir="out", max_train_steps=200)

    Args:
        recipe: the name of a recipe, or the path of its YAML file.
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
    in_memory = None
    if isinstance(dataset, str):
        values["dataset_name"] = dataset
    elif isinstance(dataset, os.PathLike):
        values["train_dir"] = os.fspath(dataset)
    elif dataset is not None:
        in_memory, values["dataset_name"] = dataset, "in memory"
    trainer = build_trainer(*build_arguments(recipe, **values), in_memory, eval_dataset)
    trainer.train()
    return trainer.model.eval()


def build_trainer(
    recipe: Recipe,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: PretrainingArguments,
    train_dataset: ImageDataset | None = None,
    eval_dataset: datasets.Dataset | None = None,
) -> SSLTrainer:
    """The trainer of what `parse_arguments` returned.

    Args:
        train_dataset, eval_dataset: instead of those that `data_args` names.
    """
    if train_dataset is not None:
        data_args = None
    else:
        columns = {"image_column": data_args.image_column_name, "label_column": data_args.label_column_name}
        source = data_args.dataset_name or Path(data_args.train_dir)  # a folder is not looked up on the Hub
        config_name = data_args.dataset_config_name
        train_dataset = load_image_dataset(
            source, data_args.train_split, config_name=config_name, streaming=data_args.streaming, **columns
        )
        if eval_dataset is None and data_args.validation_dir is not None:
            eval_dataset = load_image_dataset(Path(data_args.validation_dir), **columns)
        elif eval_dataset is None and data_args.eval_split is not None:
            eval_dataset = load_image_dataset(source, data_args.eval_split, config_name=config_name, **columns)
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
