"""Draws what a masked-image model makes of images whose patches are masked.

    python examples/visualize_reconstruction.py --model_name_or_path demo --dataset_name digits --split test

`--help` lists the arguments; `src/ssl_hub/commands/reconstruct.py` says what it does and writes.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("reconstruct")
