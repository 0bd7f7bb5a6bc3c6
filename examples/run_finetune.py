"""Trains a whole model to classify images, by a published protocol or by your own arguments.

    accelerate launch examples/run_finetune.py --model_name_or_path out --recipe finetune-vit-base-100e \
      --dataset_name imagenet-1k --eval_split validation --output_dir finetuned
    accelerate launch examples/run_finetune.py --model_name_or_path timm/resnet50.a1_in1k --train_dir my_images/train \
      --validation_dir my_images/val --base_learning_rate 0.1 --optimizer sgd --output_dir finetuned

`--help` lists the arguments; `src/ssl_hub/commands/finetune.py` says what it does and writes.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("finetune")
