"""Turns a public checkpoint into one that `AutoModel.from_pretrained` loads.

    python examples/convert_checkpoint.py --checkpoint mae_pretrain_vit_base.pth \
        --recipe mae-vit-base-1600e --output_dir mae-vit-base

Every tensor must find its place, and every place its tensor, but for a file of a backbone alone, or with --encoder_only.
--verify compares features with those of timm's or transformers' own model of the file.
A `.pth` file is read without unpickling objects.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("convert")
