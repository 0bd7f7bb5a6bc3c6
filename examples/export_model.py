"""Writes a model as another library has it, after that library has computed the same features with it.

    python examples/export_model.py --model_name_or_path demo --to timm --output demo-timm

`--help` lists the arguments; `src/ssl_hub/commands/export.py` says what it does and writes.
"""

from ssl_hub.commands import run_command

if __name__ == "__main__":
    run_command("export")
