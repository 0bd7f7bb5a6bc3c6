"""Draws what a masked-image model makes of images whose patches are masked.

    python examples/visualize_reconstruction.py --model_name_or_path demo --dataset_name digits --split test

The picture has a column for each image, and the rows: the original, what the model sees of it, what it predicts, and
the same with the visible patches of the original.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("reconstruct")
