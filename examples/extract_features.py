"""Extracts the features of a dataset's images, and finds the nearest neighbours of an image among them.

    accelerate launch examples/extract_features.py --model_name_or_path demo --dataset_name digits --output_dir features
    python examples/extract_features.py --model_name_or_path demo --dataset_name digits --output_dir features \
        --neighbors image.png

The model is one of ours, or any of transformers or timm. The folder is read by `datasets.load_from_disk` and has the
columns file_name, index, label, readable and embedding. An extraction that was stopped resumes when it is started again;
one that is complete is not repeated.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("embed")
