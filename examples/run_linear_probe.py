"""Linear evaluation: how well a linear classifier on a model's frozen features tells classes apart.

    accelerate launch examples/run_linear_probe.py --model_name_or_path out --dataset_name cifar10 --eval_split test \
      --output_dir probe

    accelerate launch examples/run_linear_probe.py --augment --model_name_or_path out \
      --recipe linear-resnet50-sgd-100e --dataset_name imagenet-1k --eval_split validation --output_dir probe

`--help` lists the arguments; `src/ssl_hub/commands/probe.py` says what it does and writes.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("probe")
