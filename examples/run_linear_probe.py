"""Linear evaluation: how well a linear classifier on a model's frozen features tells classes apart.

    accelerate launch examples/run_linear_probe.py --model_name_or_path out --dataset_name cifar10 --eval_split test \
      --output_dir probe

Without `--augment` the features are extracted once, and classifiers with many learning rates are trained on them at the
same time. The best one on a held-out part of the training set is tested, once. `results.json` says what was found.

    accelerate launch examples/run_linear_probe.py --augment --model_name_or_path out \
      --recipe linear-resnet50-sgd-100e --dataset_name imagenet-1k --eval_split validation --output_dir probe

With `--augment` the classifier is trained on augmented images as published, by one of the `linear-*` recipes or by
your own arguments, which are those of `run_finetune.py`.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("probe")
