"""Extracts the features of a dataset's images, and finds the nearest neighbours of an image among them.

    accelerate launch examples/extract_features.py --model_name_or_path demo --dataset_name digits --output_dir features
    python examples/extract_features.py --model_name_or_path demo --dataset_name digits --output_dir features \
        --neighbors image.png

`--help` lists the arguments; `src/ssl_hub/commands/embed.py` says what it does and writes.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("embed")
