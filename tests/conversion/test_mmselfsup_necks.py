"""Projectors and predictors of any of MMSelfSup's options: built, converted, and computing what plain torch does."""

import pytest
import torch
from torch import nn
from transformers import AutoModel

from ssl_hub import BYOLConfig, MoCoV3Config, SimCLRConfig, SimSiamConfig, SwAVConfig
from ssl_hub.conversion import mmselfsup
from ssl_hub.conversion.state_dicts import load_strictly

RESNET = {"type": "ResNet", "depth": 18, "base_channels": 4, "stem_channels": 4}
VIT_ARCH = {"embed_dims": 32, "num_layers": 1, "num_heads": 2, "feedforward_channels": 64}
VIT = {"type": "MoCoV3ViT", "arch": VIT_ARCH, "img_size": 32, "patch_size": 16}
HIDDEN, PROJECTION, FEATURES = 24, 12, 32
TEACHERS = {"BYOL": "target_net", "MoCoV3": "momentum_encoder"}

# By their names in MMSelfSup: the algorithm, the options of its projector and of its predictor.
VARIANTS = {
    "SimCLR v2": ("SimCLR", {"num_layers": 3, "with_bias": True, "with_last_bias": True}, None),
    "SimCLR without BatchNorm at the end": ("SimCLR", {"with_last_bn": False, "with_last_bias": True}, None),
    "SimSiam for CIFAR-10": (
        *("SimSiam", {"num_layers": 2, "with_last_bn_affine": False}),
        {"with_last_bn": False, "with_last_bias": True},
    ),
    "BYOL": ("BYOL", {"with_bias": True, "with_last_bn": True}, {"num_layers": 3, "with_last_bn_affine": False}),
    "BYOL, class defaults": ("BYOL", {}, {}),
    "Barlow Twins": (
        *("BarlowTwins", {"num_layers": 4, "with_last_bias": True, "with_last_bn": True, "with_last_bn_affine": False}),
        None,
    ),
    "MoCo v3": ("MoCoV3", {"num_layers": 4}, {"num_layers": 3, "with_bias": True, "with_last_bn": False}),
}


class PlainNeck(nn.ModuleDict):
    """MMSelfSup's NonLinearNeck as its documentation has it: fc0, bn0, then ReLU, fc, bn once or more."""

    def __init__(
        self,
        sizes,
        num_layers=2,
        with_bias=False,
        with_last_bias=False,
        with_last_bn=True,
        with_last_bn_affine=True,
    ):
        first, hidden, last = sizes
        super().__init__({"fc0": nn.Linear(first, hidden, bias=with_bias), "bn0": nn.BatchNorm1d(hidden)})
        for index in range(1, num_layers - 1):
            self[f"fc{index}"] = nn.Linear(hidden, hidden, bias=with_bias)
            self[f"bn{index}"] = nn.BatchNorm1d(hidden)
        self[f"fc{num_layers - 1}"] = nn.Linear(hidden, last, bias=with_last_bias)
        if with_last_bn:
            self[f"bn{num_layers - 1}"] = nn.BatchNorm1d(last, affine=with_last_bn_affine)
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, *((0.5, 1.5) if "var" in name else (-0.5, 0.5)))

    def forward(self, x):
        for name, layer in self.items():
            x = layer(x.relu() if name.startswith("fc") and name != "fc0" else x)
        return x


def model_section(algorithm, neck=None, predictor=None, backbone=RESNET):
    """MMSelfSup's `model` section."""
    sizes = {"in_channels": FEATURES, "hid_channels": HIDDEN, "out_channels": PROJECTION}
    pooling = {"with_avg_pool": False, "vit_backbone": True} if backbone is VIT else {}
    head = {"loss": {}}
    if predictor is not None:
        head["predictor"] = {"type": "NonLinearNeck", **sizes, "in_channels": PROJECTION, "with_avg_pool": False}
        head["predictor"] |= predictor
    neck = {"type": "NonLinearNeck", **sizes, **pooling} | (neck or {})
    return {"type": algorithm, "backbone": backbone, "neck": neck, "head": head}


@pytest.mark.parametrize("backbone", [RESNET, VIT], ids=["resnet", "vit"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_variants_compute_what_plain_torch_does(tmp_path, variant, backbone):
    algorithm, neck, predictor = VARIANTS[variant]
    torch.manual_seed(0)
    model = AutoModel.from_config(mmselfsup.convert_config(model_section(algorithm, neck, predictor, backbone)))
    originals = {"neck": PlainNeck((FEATURES, HIDDEN, PROJECTION), **neck)}
    if predictor is not None:
        originals["head.predictor"] = PlainNeck((PROJECTION, HIDDEN, PROJECTION), **predictor)
    if algorithm in TEACHERS:
        originals[f"{TEACHERS[algorithm]}.module.1"] = originals["neck"]
    state = {f"{role}.{key}": t for role, plain in originals.items() for key, t in plain.state_dict().items()}
    new = ("backbone.", "teacher.backbone.", "head.bn.")  # head.bn: Barlow Twins' statistics
    load_strictly(model, mmselfsup.convert_state_dict(algorithm, state), new=new)

    model.train()([torch.randn(4, 3, 32, 32) for _ in range(2)], mode="loss").loss.backward()
    assert all(parameter.grad is not None for parameter in model.neck.parameters())
    load_strictly(model, mmselfsup.convert_state_dict(algorithm, state), new=new)
    model.save_pretrained(tmp_path)
    for ours in (model, AutoModel.from_pretrained(tmp_path)):
        ours = ours.double()
        for role in {"neck", "head.predictor"} & originals.keys():
            plain = originals[role]
            plain.load_state_dict({key: state[f"{role}.{key}"].clone() for key in plain.state_dict()})
            x = torch.randn(6, plain["fc0"].in_features, dtype=torch.float64)
            for training in (True, False):  # in that order: evaluation takes the statistics of the training before it
                output = ours.get_submodule(role).train(training)(x)
                torch.testing.assert_close(output, plain.double().train(training)(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mlp", [True, False])
def test_a_linear_projector_of_swav(mlp):
    neck = {"type": "SwAVNeck", "hid_channels": HIDDEN if mlp else 0}
    model = AutoModel.from_config(mmselfsup.convert_config(model_section("SwAV", neck)))
    linear = nn.Linear(FEATURES, PROJECTION)
    if not mlp:
        state = {f"neck.projection_neck.{key}": tensor for key, tensor in linear.state_dict().items()}
        load_strictly(
            model, mmselfsup.convert_state_dict("SwAV", state), new=("backbone.", "head.", "memory.", "counter.")
        )
        x = torch.randn(6, FEATURES)
        assert torch.equal(model.neck(x), linear(x))
    assert isinstance(model.neck.projection_neck, nn.Sequential if mlp else nn.Linear)
    assert torch.isfinite(model([torch.randn(4, 3, 32, 32) for _ in range(2)], mode="loss").loss)


@pytest.mark.parametrize(
    ("algorithm", "neck", "message"),
    [
        ("SimCLR", {"type": "LinearNeck"}, "no counterpart of MMSelfSup's LinearNeck here; there is one of NonLinearN"),
        ("MoCo", {}, "no counterpart of MMSelfSup's NonLinearNeck here; there is one of MoCoV2Neck or LinearNeck"),
        ("SimCLR", {"with_dropout": True}, "no counterpart of the options with_dropout of MMSelfSup's NonLinearNeck"),
        ("SimCLR", {"num_layers": 1}, "no counterpart of a NonLinearNeck with num_layers=1"),
        ("SimCLR", {"norm_cfg": {"type": "GN"}}, "must be BatchNorm with the default options; got {'type': 'GN'}"),
        ("SimCLR", {"norm_cfg": {"type": "SyncBN", "eps": 1e-3}}, "must be BatchNorm with the default options"),
        (
            "SimCLR",
            {"with_avg_pool": False},
            "no counterpart of a NonLinearNeck with with_avg_pool=False after a ResNet",
        ),
        ("SwAV", {"type": "SwAVNeck", "with_l2norm": False}, "no counterpart of a SwAVNeck with with_l2norm=False"),
        (
            "SwAV",
            {"type": "SwAVNeck", "out_channels": 0},
            "projection_size must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_what_cannot_be_converted(algorithm, neck, message):
    with pytest.raises(ValueError, match=message):
        mmselfsup.convert_config(model_section(algorithm, neck))


def test_a_predictor_that_cannot_be_converted():
    with pytest.raises(ValueError, match="no counterpart of MMSelfSup's LinearNeck here"):
        mmselfsup.convert_config(model_section("BYOL", {}, {"type": "LinearNeck"}))


@pytest.mark.parametrize("name", ["projection_num_layers", "predictor_num_layers", "predictor_hidden_size"])
def test_values_that_cannot_work(name):
    for config_class in (BYOLConfig, SimSiamConfig, MoCoV3Config):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 0"):
            config_class(**{name: 0})
    SimCLRConfig(projection_last_batchnorm=False, projection_last_batchnorm_affine=True)
    assert SwAVConfig().mlp_projector
