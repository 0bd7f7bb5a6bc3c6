"""Fills the Hub: converts the checkpoint of a published model, writes its card, and pushes both to `ssl-hub/NAME`.

    python examples/publish_model.py mae-vit-base \
        --checkpoint mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k_20220825-f7569ca2.pth

`ssl_hub.list_models()` says which models there are, and where the file of each is from. Every tensor must find its place,
and every place its tensor; features are compared with those of timm's model of the file, where timm has it under its
names. What is pushed is kept in --output_dir; a push that fails says how to push it later.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("publish")
