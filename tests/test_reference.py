"""`run_reference.py` on the cases of MAE, and that it notices what is off."""

import shutil
from pathlib import Path

import pytest
import run_reference
from safetensors.torch import load_file, save_file

CASES = Path(__file__).parent / "fixtures" / "reference"
PARTS = {
    *("backbone_vit", "neck_mae_decoder", "head_mae", "head_mae_normpix", "loss_mae"),
    *("patchify", "pos_embed", "preprocess"),
}


def test_every_case_agrees(capsys):
    assert run_reference.main(CASES) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    checked = {name for status, name, *_ in lines if status == "ok"}
    assert {"mae_a", *PARTS} <= checked


@pytest.mark.parametrize(
    ("case", "tensor"),
    [
        ("mae_a", "state/backbone.layers.0.attn.qkv.weight"),
        ("mae_a", "output/loss_total"),
        ("parts/loss_mae", "grad/input.pred"),
        ("parts/pos_embed", None),
    ],
)
def test_a_changed_tensor_is_noticed(tmp_path, capsys, case, tensor):
    name = case.split("/")[-1]
    shutil.copy(CASES / f"{case}.json", tmp_path)
    tensors = load_file(CASES / f"{case}.safetensors")
    tensor = tensor or next(key for key in tensors if key.startswith("output/"))
    tensors[tensor] = tensors[tensor] * 1.001 + 0.001
    save_file(tensors, tmp_path / f"{name}.safetensors")
    assert run_reference.main(tmp_path) == 1
    assert f"OFF {name}" in capsys.readouterr().out


def test_a_case_that_cannot_be_run_is_off(tmp_path, capsys):
    shutil.copy(CASES / "mae_a.json", tmp_path)
    tensors = load_file(CASES / "mae_a.safetensors")
    del tensors["state/backbone.cls_token"]
    save_file(tensors, tmp_path / "mae_a.safetensors")
    assert run_reference.main(tmp_path) == 1
    assert "missing (1): backbone.embeddings.cls_token" in capsys.readouterr().out


def test_no_supported_case(tmp_path, capsys):
    assert run_reference.main(tmp_path) == 1
    shutil.copy(CASES / "mae_a.safetensors", tmp_path / "other.safetensors")
    (tmp_path / "other.json").write_text('{"algorithm": "Other"}')
    assert run_reference.main(tmp_path) == 1
    assert "1 not supported yet: other\nno supported case in" in capsys.readouterr().out
