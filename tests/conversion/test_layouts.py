"""The tables of names: read both ways, and against names written out by hand."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from ssl_hub.conversion.shapes import config_from_shapes
from ssl_hub.conversion.sources import LAYOUTS, layouts_of, recognise, to_theirs
from ssl_hub.registry import ALGORITHMS

TRANSFORMER = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
BACKBONES = {
    "resnet": {"model_type": "resnet", "depths": [2, 1, 1, 1], "hidden_sizes": [8, 12, 16, 20], "embedding_size": 8},
    "vit": {"model_type": "vit", "num_attention_heads": 2, **TRANSFORMER},
    "beit": {"model_type": "beit", "num_attention_heads": 2, **TRANSFORMER},
    "swin": {
        **{"model_type": "swin", "image_size": 32, "patch_size": 2, "embed_dim": 8, "window_size": 2},
        **{"depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    },
}
PROJECTOR = {"projection_hidden_size": 6, "projection_size": 4}
FIELDS = {
    "barlowtwins": PROJECTOR,
    "byol": {**PROJECTOR, "predictor_hidden_size": 5},
    "cae": {
        **{"regressor_num_hidden_layers": 2, "decoder_num_hidden_layers": 2, "neck_num_attention_heads": 2},
        **{"neck_intermediate_size": 24, "target_options": {"size": 7}},
    },
    "deepcluster": {"num_clusters": 5, "sobel": False},
    "densecl": {**PROJECTOR, "queue_size": 6},
    "mae": {
        **{"decoder_hidden_size": 8, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2},
        "decoder_intermediate_size": 12,
    },
    "maskfeat": {"target_options": {"cell_size": 4}},
    "moco": {**PROJECTOR, "queue_size": 6},
    "mocov3": {**PROJECTOR, "predictor_hidden_size": 5},
    "npid": {"projection_size": 4, "memory_size": 9},
    "odc": {**PROJECTOR, "num_clusters": 5, "memory_size": 9},
    "relativeloc": {"projection_size": 4},
    "simclr": PROJECTOR,
    "simmim": {"mask_cell_size": 4},
    "simsiam": {**PROJECTOR, "predictor_hidden_size": 5},
    "swav": {**PROJECTOR, "num_prototypes": 5, "queue_size": 4},
}
# Of the algorithms that are published with another backbone, or with two.
BACKBONES_OF = {
    "cae": ["beit"],
    "mae": ["vit"],
    "maskfeat": ["vit"],
    "mocov3": ["resnet", "vit"],
    "simmim": ["swin", "vit"],
}


def build(model_type: str, backbone: str, **fields):
    """A tiny model with every tensor random."""
    config = AutoConfig.for_model(
        model_type, backbone_config=BACKBONES[backbone], **{**FIELDS.get(model_type, {}), **fields}
    )
    model = AutoModel.from_config(config)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    if model_type == "swav":  # lightly has none in front of the BatchNorm
        model.neck.projection_neck[0].bias.data.zero_()
    return model


CASES = [
    (source, model_type, backbone)
    for source, model_type in dict.fromkeys((layout.source, layout.model_type) for layout in LAYOUTS)
    if model_type is not None
    for backbone in BACKBONES_OF.get(model_type, ["resnet"])
]


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("source", "model_type", "backbone"), CASES)
def test_names_are_read_both_ways(source, model_type, backbone):
    model = build(model_type, backbone)
    theirs = to_theirs(model, source)
    layout = recognise(theirs, source, model_type)
    assert (layout.source, layout.model_type) == (source, model_type)
    ours = layout.to_ours(theirs)
    kept = {name: x for name, x in model.state_dict().items() if not name.startswith(layout.kept_elsewhere)}
    assert_same(ours, kept)
    assert_same(layout.to_theirs(ours), theirs)
    try:
        assert recognise(theirs, source).model_type == model_type
    except ValueError as error:  # as BYOL's and MoCo v3's names are the same in solo-learn
        assert f"{source} ({model_type})" in str(error)


def test_all_of_mmselfsups_algorithms_are_there():
    theirs = {layout.model_type for layout in layouts_of("mmselfsup")} - {None}
    assert theirs == set(ALGORITHMS) - {"beitv1", "beitv2"}


@pytest.mark.parametrize(
    ("source", "backbone"),
    [
        *(("torchvision", backbone) for backbone in ("resnet", "vit")),
        *(("timm", backbone) for backbone in ("resnet", "vit", "beit", "swin")),
    ],
)
def test_backbones_are_read_both_ways(source, backbone):
    model = build("simclr", backbone)
    theirs = to_theirs(model, source)
    ours = recognise(theirs, source, "simclr").to_ours(theirs)
    assert_same(ours, {name: x for name, x in model.state_dict().items() if name.startswith("backbone.")})


def test_what_has_no_counterpart():
    with pytest.raises(ValueError, match=r"has no counterpart in torchvision \(a backbone alone\)"):
        to_theirs(build("simclr", "beit"), "torchvision")
    with pytest.raises(ValueError, match="no conversion of 'byol' from transformers; there is one of mae, simmim"):
        to_theirs(build("byol", "resnet"), "transformers")


@pytest.mark.parametrize(("source", "model_type", "backbone"), [case for case in CASES if case[0] == "mmselfsup"])
def test_configurations_are_read_from_shapes(source, model_type, backbone):
    model = build(model_type, backbone)
    theirs = to_theirs(model, source)
    layout = recognise(theirs, source, model_type)
    config = config_from_shapes(model_type, layout.to_ours(theirs))
    missing = ("teacher.", "memory.", *layout.kept_elsewhere)
    shapes, own = (
        {name: x.shape for name, x in each.state_dict().items() if not name.startswith(missing)}
        for each in (AutoModel.from_config(config), model)
    )
    assert shapes.items() >= own.items()
