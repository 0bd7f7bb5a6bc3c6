"""Pretrains a model by a recipe.

    accelerate launch examples/run_pretrain.py --recipe mae-vit-base-300e --dataset_name imagenet-1k --output_dir out
    accelerate launch examples/run_pretrain.py --recipe mae-vit-base-300e --train_dir my_images --output_dir out

`--help` lists the arguments; what the command line leaves out comes from the recipe.
"""

import signal
import sys
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.hub.publishing import PublishError
from ssl_hub.printing import printable_lines, set_up_logging
from ssl_hub.training.arguments import parse_arguments
from ssl_hub.training.run_log import NonFiniteLossError
from ssl_hub.training.trainer import SSLTrainer


def main():
    set_up_logging()
    disable_progress_bar()  # the trainer shows one
    recipe, model_args, data_args, args = parse_arguments()

    columns = {"image_column": data_args.image_column_name, "label_column": data_args.label_column_name}
    source = data_args.dataset_name or Path(data_args.train_dir)  # a folder is not looked up on the Hub
    config_name = data_args.dataset_config_name
    train_dataset = load_image_dataset(
        source, data_args.train_split, config_name=config_name, streaming=data_args.streaming, **columns
    )
    eval_dataset = None
    if data_args.validation_dir is not None:
        eval_dataset = load_image_dataset(Path(data_args.validation_dir), **columns)
    elif data_args.eval_split is not None:
        eval_dataset = load_image_dataset(source, data_args.eval_split, config_name=config_name, **columns)

    torch.manual_seed(args.seed)
    model = recipe.build_model(model_args.config_overrides, model_args.model_name_or_path)

    trainer = SSLTrainer(
        model,
        args,
        train_dataset,
        recipe.views,
        eval_dataset,
        recipe.evaluation,
        recipe_name=recipe.name,
        data_args=data_args,
        model_args=model_args,
    )
    trainer.train()


if __name__ == "__main__":
    try:
        main()
    # User errors: a traceback would bury what the message says. Anything else is a bug and keeps its own.
    except (ValueError, OSError, PublishError, NonFiniteLossError) as error:
        sys.exit(f"error: {printable_lines(error)}")
    except KeyboardInterrupt:  # outside the training loop, which saves a checkpoint first
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
