"""Trains a whole model to classify images, by a published protocol or by your own arguments.

    accelerate launch examples/run_finetune.py --model_name_or_path out --recipe finetune-vit-base-100e \
      --dataset_name imagenet-1k --eval_split validation --output_dir finetuned
    accelerate launch examples/run_finetune.py --model_name_or_path timm/resnet50.a1_in1k --train_dir my_images/train \
      --validation_dir my_images/val --base_learning_rate 0.1 --optimizer sgd --output_dir finetuned

The model is one of ssl_hub, of transformers or of timm. All arguments of transformers' `TrainingArguments` are there:
`--help` lists them. `output_dir` gets a model that `AutoModelForImageClassification` loads, and `all_results.json`.
"""

import sys

from ssl_hub.classification.arguments import parse_arguments
from ssl_hub.classification.trainer import build_trainer, run_trainer
from ssl_hub.printing import printable_lines, set_up_logging


def main():
    set_up_logging()
    arguments = parse_arguments()
    run_trainer(build_trainer(arguments, freeze_backbone=False))


if __name__ == "__main__":
    try:
        main()
    # User errors: a traceback would bury what the message says. Anything else is a bug and keeps its own.
    except (ValueError, OSError) as error:
        sys.exit(f"error: {printable_lines(error)}")
