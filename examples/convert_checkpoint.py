"""Turns a public checkpoint into one that `AutoModel.from_pretrained` loads.

    python examples/convert_checkpoint.py --checkpoint mae_pretrain_vit_base.pth \
        --recipe mae-vit-base-1600e --output_dir mae-vit-base

`--help` lists the arguments; `src/ssl_hub/commands/convert.py` says what it does and writes.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("convert")
