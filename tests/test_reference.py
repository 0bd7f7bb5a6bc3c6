"""`run_reference.py` on the cases that are kept here, and that it notices what is off."""

import json
import shutil
from pathlib import Path

import pytest
import run_reference
from safetensors.torch import load_file, save_file

CASES = Path(__file__).parent / "fixtures" / "reference"
NAMES = {
    *("mae_a", "simmim_a", "simclr_a", "simsiam_a", "barlowtwins_a", "swav_a"),
    *(
        "backbone_vit",
        "neck_mae_decoder",
        "neck_linear",
        "neck_mocov2",
        "neck_densecl",
        "neck_densecl_grid",
        "neck_swav",
    ),
    *(f"neck_nonlinear_{of}" for of in ("allbias", "barlow", "byol", "predictor", "simclr", "simsiam", "vit")),
    *("head_mae", "head_mae_normpix", "head_contrastive", "head_latent_predict", "head_cross_correlation"),
    *(
        "head_mocov3",
        "head_swav",
        "loss_mae",
        "loss_cosine",
        "loss_cross_correlation",
        "loss_swav",
        "loss_swav_crops21",
    ),
    *("neck_simmim", "head_simmim", "loss_simmim", "loss_pixel_l1", "loss_pixel_l1_map", "loss_pixel_l2_nomask"),
    *("sinkhorn", "ema_constant", "cosine_ema", "patchify", "pos_embed", "preprocess"),
}


def test_every_case_agrees(capsys):
    assert run_reference.main(CASES) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {name for status, name, *_ in lines if status == "ok"} == NAMES
    assert {path.stem for path in CASES.rglob("*.safetensors")} == NAMES


@pytest.mark.parametrize(
    ("case", "tensor"),
    [
        ("mae_a", "state/backbone.layers.0.attn.qkv.weight"),
        ("mae_a", "output/loss_total"),
        ("simmim_a", "state/backbone.stages.0.downsample.reduction.weight"),
        ("simmim_a", "grad/backbone.stages.0.downsample.reduction.weight.first16"),
        ("parts/head_simmim", "grad/input.pred"),
        ("parts/loss_mae", "grad/input.pred"),
        ("parts/pos_embed", None),
        ("simsiam_a", "state/neck.fc0.weight"),
        ("barlowtwins_a", "after/head.bn.running_mean"),
        ("swav_a", "after/queue.queue"),
        ("parts/neck_swav", "grad/input.small"),
        ("parts/neck_nonlinear_byol", "after/bn0.running_var"),
        ("parts/neck_densecl", "output/eval.dense"),
        ("parts/ema_constant", "after/update2.module.0.weight"),
        ("parts/cosine_ema", "output/momentum"),
        ("parts/sinkhorn", "output/b"),
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


def test_a_configuration_without_counterpart(tmp_path, capsys):
    shutil.copy(CASES / "parts/loss_cosine.safetensors", tmp_path)
    sidecar = json.loads((CASES / "parts/loss_cosine.json").read_text())
    sidecar["mmselfsup_config"]["shift_factor"] = 2.0
    (tmp_path / "loss_cosine.json").write_text(json.dumps(sidecar))
    assert run_reference.main(tmp_path) == 1
    assert "0 cases checked, 0 off, 1 not supported yet: loss_cosine\n" in capsys.readouterr().out
