"""Pretrains a model by a recipe.

    accelerate launch examples/run_pretrain.py --recipe mae-vit-base-300e --dataset_name imagenet-1k --output_dir out
    accelerate launch examples/run_pretrain.py --recipe mae-vit-base-300e --train_dir my_images --output_dir out

`--help` lists the arguments; `src/ssl_hub/commands/pretrain.py` says what it does and writes.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("pretrain")
