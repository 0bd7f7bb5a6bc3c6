"""Pretrains a model by a recipe.

    accelerate launch -m ssl_hub pretrain --recipe mae-vit-base-300e --dataset_name imagenet-1k --output_dir out
    ssl-hub pretrain --recipe mae-vit-base-300e --train_dir my_images --output_dir out

What the command line leaves out comes from the recipe.
"""

from transformers.utils.logging import disable_progress_bar

from ..printing import set_up_logging
from ..training.arguments import parse_arguments
from ..training.pretraining import run_pretraining


def main(args: list[str]) -> None:
    set_up_logging()
    disable_progress_bar()  # the trainer shows one
    run_pretraining(parse_arguments(args))
