"""Trains a whole model to classify images, by a published protocol or by your own arguments.

    accelerate launch -m ssl_hub finetune --model_name_or_path out --recipe finetune-vit-base-100e \
      --dataset_name imagenet-1k --eval_split validation --output_dir finetuned
    ssl-hub finetune --model_name_or_path timm/resnet50.a1_in1k --train_dir my_images/train \
      --validation_dir my_images/val --base_learning_rate 0.1 --optimizer sgd --output_dir finetuned

The model is one of ssl_hub, of transformers or of timm. All arguments of transformers' `TrainingArguments` are there.
`output_dir` gets a model that `AutoModelForImageClassification` loads, and `all_results.json`.
"""

from ..classification.arguments import parse_arguments
from ..classification.trainer import build_trainer, run_trainer
from ..printing import set_up_logging


def main(args: list[str]) -> None:
    set_up_logging()
    run_trainer(build_trainer(parse_arguments(args), freeze_backbone=False))
