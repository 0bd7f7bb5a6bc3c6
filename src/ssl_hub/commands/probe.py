"""Linear evaluation: how well a linear classifier on a model's frozen features tells classes apart.

    accelerate launch -m ssl_hub probe --model_name_or_path out --dataset_name cifar10 --eval_split test \
      --output_dir probe

Without `--augment` the features are extracted once, and classifiers with many learning rates are trained on them at the
same time. The best one on a held-out part of the training set is tested, once. `results.json` says what was found.

    accelerate launch -m ssl_hub probe --augment --model_name_or_path out \
      --recipe linear-resnet50-sgd-100e --dataset_name imagenet-1k --eval_split validation --output_dir probe

With `--augment` the classifier is trained on augmented images as published, by one of the `linear-*` recipes or by
your own arguments, which are those of `finetune`.
"""

import argparse

from ..classification.arguments import parse_arguments
from ..classification.linear_probe import probe_features
from ..classification.trainer import build_trainer, run_trainer
from ..printing import set_up_logging

# Three a decade, on standardised features.
LEARNING_RATES = [round(10 ** (exponent / 3), 6) for exponent in range(-9, 4)]


def main(args: list[str]) -> None:
    set_up_logging()
    parser = argparse.ArgumentParser(prog="ssl-hub probe", add_help=False, allow_abbrev=False)
    parser.add_argument("--augment", action="store_true", help="Train on augmented images, as published.")
    parser.add_argument("--learning_rates", type=float, nargs="+", default=LEARNING_RATES, help="To try at once.")
    parser.add_argument("--held_out", type=float, default=0.2, help="Share of the training images to choose with.")
    own, others = parser.parse_known_args(args)
    if "--help" in others or "-h" in others:
        parser.print_help()
    if own.augment:
        run_trainer(build_trainer(parse_arguments(others, "probe"), freeze_backbone=True))
    else:
        # What is trained here are the probes, by the learning rates above.
        arguments = parse_arguments(
            others, "probe", learning_rate=1.0, num_train_epochs=100, per_device_train_batch_size=256
        )
        probe_features(arguments, own.learning_rates, own.held_out)
