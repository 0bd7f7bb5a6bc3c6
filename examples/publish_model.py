"""Fills the Hub: converts the checkpoint of a published model, writes its card, and pushes both to `ssl-hub/NAME`.

    python examples/publish_model.py mae-vit-base \
        --checkpoint mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k_20220825-f7569ca2.pth

`--help` lists the arguments; `src/ssl_hub/commands/publish.py` says what it does and writes.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("publish")
