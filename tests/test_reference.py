"""`run_reference.py` on the cases that are kept here, and that it notices what is off."""

import json
import shutil
from pathlib import Path

import pytest
import run_reference
from safetensors.torch import load_file, save_file

CASES = Path(__file__).parent / "fixtures" / "reference"
NAMES = {
    *("mae_a", "simclr_a", "byol_a", "simsiam_a", "barlowtwins_a", "swav_a", "mocov2_a", "mocov3_a", "densecl_a"),
    *("simmim_a", "cae_a"),
    *("deepcluster_a", "odc_a", "sobel", "odc_memory", "reweight", "neck_odc", "neck_avgpool"),
    *("head_cls", "loss_cross_entropy_class_weight"),
    *(
        "backbone_vit",
        "neck_mae_decoder",
        "neck_linear",
        "neck_mocov2",
        "neck_densecl",
        "neck_densecl_grid",
        "neck_swav",
        "neck_swav_linear",
    ),
    *("npid_a", "relativeloc_a", "rotationpred_a", "neck_relative_loc", "simple_memory"),
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
    *("neck_cae", "neck_cae_nobias", "head_cae", "loss_cae", "backbone_dalle"),
    *("hog_default_112", "hog_nbins6_pool4_nogauss"),
    *("lars_all", "lars_exclude", "lars_nomomentum", "mask_generators"),
    *("neck_cls_batchnorm", "head_multi_cls", "layer_decay"),
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
        ("npid_a", "state/memory_bank.feature_bank"),
        ("npid_a", "after/memory_bank.feature_bank"),
        ("relativeloc_a", "output/no_dropout.loss_total"),
        ("relativeloc_a", "after/neck.bn.running_var"),
        ("relativeloc_a", "output/predict.1.head4"),
        ("rotationpred_a", "input/0"),
        ("rotationpred_a", "output/predict.2.head4"),
        ("parts/simple_memory", "after/step1.feature_bank"),
        ("parts/neck_swav", "grad/input.small"),
        ("parts/neck_nonlinear_byol", "after/bn0.running_var"),
        ("parts/neck_densecl", "output/eval.dense"),
        ("parts/ema_constant", "after/update2.module.0.weight"),
        ("parts/cosine_ema", "output/momentum"),
        ("parts/sinkhorn", "output/b"),
        ("cae_a", "state/teacher.layers.0.attn.qkv.weight"),
        ("cae_a", "output/second_step.loss.align"),
        ("parts/neck_cae_nobias", "state/regressors.0.gamma_1_cross"),
        ("parts/backbone_dalle", "state/blocks.group_1.block_1.res_path.conv_1.w"),
        ("parts/hog_nbins6_pool4_nogauss", "output/texture"),
        ("deepcluster_a", "state/head.fc_cls.weight"),
        ("odc_a", "after/update_centroids.centroids"),
        ("odc_a", "output/weighted.loss_total"),
        ("parts/odc_memory", "after/small_clusters.centroids"),
        ("parts/sobel", "output/eval.out"),
        ("parts/reweight", "output/weight"),
        ("parts/lars_exclude", "after/step2.bn.weight"),
        ("parts/neck_cls_batchnorm", "after/bn.running_var"),
        ("parts/head_multi_cls", "grad/fcs.0.weight.norm"),
        ("parts/layer_decay", "output/swin.scale"),
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


def test_another_distribution_of_masks_is_noticed(tmp_path, capsys):
    def change(tensors, sidecar):
        tensors["output/beit.frequency"][7, 7] -= 0.06

    assert run_reference.main(altered_case(tmp_path, "parts/mask_generators", change)) == 1
    assert "beit: a position is masked with another probability" in capsys.readouterr().out


def altered_case(folder, name, change) -> Path:
    """A copy of a case after `change(tensors, sidecar)`."""
    tensors = load_file(CASES / f"{name}.safetensors")
    sidecar = json.loads((CASES / f"{name}.json").read_text())
    change(tensors, sidecar)
    name = name.removeprefix("parts/")
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(sidecar))
    return folder


@pytest.mark.parametrize("name", ["simsiam_a", "simclr_a", "mae_a"])
def test_ten_times_the_recorded_rounding_is_no_difference(tmp_path, name):
    """Another processor rounds otherwise, as far from the exact values as the recorded numbers are."""

    def change(tensors, sidecar):
        exact = sidecar["float64"]
        loss = 1 + 10 * exact["total_rel_diff_to_float32"]
        gradient = 1 + 10 * max(entry["rel_l2_diff"] for entry in exact["grads"].values())
        for key in tensors:
            if key.startswith("output/") and "loss" in key:
                tensors[key] *= loss
            elif key.startswith("grad/"):
                tensors[key] *= gradient
        sidecar["grad_norms"] = {key: norm and norm * gradient for key, norm in sidecar["grad_norms"].items()}

    assert run_reference.main(altered_case(tmp_path, name, change)) == 0


@pytest.mark.parametrize("name", ["simsiam_a", "byol_a", "mae_a", "mocov3_a"])
def test_a_gradient_off_by_a_thousandth_is_noticed(tmp_path, capsys, name):
    def change(tensors, sidecar):
        norms, exact = sidecar["grad_norms"], sidecar["float64"]["grads"]
        parameter = next(key for key, norm in norms.items() if norm and norm > 1e-2 and key not in exact)
        norms[parameter] *= 1.001

    assert run_reference.main(altered_case(tmp_path, name, change)) == 1
    assert f"OFF {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["simsiam_a", "byol_a", "mae_a", "mocov3_a"])
def test_double_precision_is_compared_in_double_precision(tmp_path, capsys, name):
    """A constant in float32 makes a difference of about 1e-8."""

    def change_loss(tensors, sidecar):
        sidecar["float64"]["total"] *= 1 + 1e-9

    def change_gradient(tensors, sidecar):
        next(iter(sidecar["float64"]["grads"].values()))["norm64"] *= 1 + 1e-9

    for change in (change_loss, change_gradient):
        assert run_reference.main(altered_case(tmp_path, name, change)) == 1
        assert f"OFF {name}" in capsys.readouterr().out


def test_integers_are_exact(tmp_path, capsys):
    def change(tensors, sidecar):
        tensors["after/backbone.bn1.num_batches_tracked"] += 1

    assert run_reference.main(altered_case(tmp_path, "simsiam_a", change)) == 1
    assert "OFF simsiam_a" in capsys.readouterr().out


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
