"""Evaluates models on a dataset, side by side, and writes a report with pictures.

    python examples/evaluate_model.py --model_name_or_path demo --dataset_name digits --output_dir report
    accelerate launch examples/evaluate_model.py --model_name_or_path demo timm/resnet18.a1_in1k --dataset_name digits \
        --protocols knn,linear,label_free --baselines pixels,untrained --output_dir report

The report is report.md with its pictures, report.html, which is complete in one file, and results.json. The card of one of
our models gets the results too. Features are extracted on all processes and kept in the folder features, so that
an evaluation that was stopped resumes, and one with other protocols begins with them.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("evaluate")
