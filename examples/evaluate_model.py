"""Evaluates models on a dataset, side by side, and writes a report with pictures.

    python examples/evaluate_model.py --model_name_or_path demo --dataset_name digits --output_dir report
    accelerate launch examples/evaluate_model.py --model_name_or_path demo timm/resnet18.a1_in1k --dataset_name digits \
        --protocols knn,linear,label_free --baselines pixels,untrained --output_dir report

`--help` lists the arguments; `src/ssl_hub/commands/evaluate.py` says what it does and writes.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("evaluate")
