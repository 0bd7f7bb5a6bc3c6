"""What a run leaves in `backbone/`, for every recipe, read by a process that knows nothing of ssl_hub."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForPreTraining

from ssl_hub.data.processing import build_image_processor
from ssl_hub.hub.model_card import build_model_card
from ssl_hub.hub.publishing import save_for_sharing
from ssl_hub.models.auto import ALGORITHMS
from ssl_hub.training.recipes import list_recipes, load_recipe

torch.set_num_threads(1)

# The same kinds of layers, a few and thin. Fields that a backbone or an algorithm does not have are left out.
VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
SMALLER_BACKBONE = {
    "vit": VIT,
    "beit": VIT,
    "swin": {"image_size": 32, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 2, 1, 1]},
    "cifar_resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "regnet": {},
}
SMALLER = {
    **dict.fromkeys(("projection_hidden_size", "projection_size", "predictor_hidden_size", "num_prototypes"), 16),
    **dict.fromkeys(("decoder_hidden_size", "decoder_num_attention_heads", "decoder_intermediate_size"), 4),
    **dict.fromkeys(("decoder_num_hidden_layers", "regressor_num_hidden_layers", "early_layer"), 1),
    "mask_cell_size": 8,
    "queue_size": 0,
}

LOAD_THEM_ALL = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from transformers import AutoModel
torch.set_num_threads(1)
results = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        model, info = AutoModel.from_pretrained(folder / "backbone", output_loading_info=True)
    except ValueError as error:
        results[folder.name] = str(error)
        continue
    expected = load_file(folder / "features.safetensors")
    with torch.no_grad():
        features = model(expected["pixel_values"], **json.loads((folder / "arguments.json").read_text())).last_hidden_state
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    assert not missing and not info["unexpected_keys"] and not info["mismatched_keys"], (folder.name, info)
    error = (features - expected["features"]).norm() / expected["features"].norm()
    results[folder.name] = error.item()
assert "ssl_hub" not in sys.modules
print(json.dumps(results))
"""


def smaller_config(name):
    recipe = load_recipe(name)
    backbone_config = recipe.build_config().backbone_config
    kind = backbone_config.model_type
    model = {key: SMALLER.get(key, value) for key, value in recipe.model.items() if key != "backbone_config"}
    config_class = type(recipe.build_config())
    fields = {key: value for key, value in SMALLER.items() if key in config_class.__dataclass_fields__}
    if "queue_size" in fields and config_class.model_type != "swav":
        fields["queue_size"] = 64
    backbone = {**backbone_config.to_diff_dict(), "model_type": kind, **SMALLER_BACKBONE[kind]}
    for key in ("out_features", "out_indices"):  # of the layers that are left out
        backbone.pop(key, None)
    fields = {
        **model,
        **fields,
        "backbone_config": backbone,
        "image_size": 32 if "image_size" in SMALLER_BACKBONE[kind] else model.get("image_size"),
    }
    return config_class(**{key: value for key, value in fields.items() if key != "model_type"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What is shared of every algorithm with every backbone of its recipes; a folder named after the first recipe."""
    root, seen = tmp_path_factory.mktemp("recipes"), set()
    for name in list_recipes():
        config = smaller_config(name)
        kind = (config.model_type, config.backbone_config.to_json_string())
        if kind in seen:
            continue
        seen.add(kind)
        torch.manual_seed(0)
        model = AutoModelForPreTraining.from_config(config).eval()
        processor = build_image_processor(32, config.image_mean, config.image_std)
        save_for_sharing(model, processor, root / name)
        pixel_values = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            features = model(pixel_values).last_hidden_state
        tensors = {"pixel_values": model.backbone_input(pixel_values), "features": features.contiguous()}
        save_file(tensors, root / name / "features.safetensors")
        # as the card says
        arguments = {"always_partition": True} if "always_partition=True" in config.backbone_note else {}
        (root / name / "arguments.json").write_text(json.dumps(arguments))
    return root


def needs_ssl_hub(name):
    return load_recipe(name).build_config().backbone_config.model_type == "cifar_resnet"


def test_the_backbone_of_every_recipe_loads_without_ssl_hub(folders):
    process = subprocess.run([sys.executable, "-c", LOAD_THEM_ALL, folders], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout.splitlines()[-1])
    assert {load_recipe(name).model["model_type"] for name in results} == set(ALGORITHMS)
    for name, result in results.items():
        if needs_ssl_hub(name):
            assert "cifar_resnet" in str(result), (name, result)
        else:
            assert result < 1e-5, (name, result)


def test_those_with_a_backbone_of_ssl_hub_say_so(folders):
    for name in list_recipes():
        card = build_model_card(load_recipe(name).build_config(), training_arguments=None, metrics=[], repo_id="me/x")
        block = card.text.split("The backbone alone")[1].split("```")[1]
        assert ("import ssl_hub" in block) == needs_ssl_hub(name), name
        assert ("needs no `ssl_hub`" in card.text) != needs_ssl_hub(name), name
    small = {name for name in list_recipes() if needs_ssl_hub(name)}
    assert small == {name for name in list_recipes() if name.endswith("-resnet18-cifar10")}
    for name in small & {folder.name for folder in folders.iterdir()}:
        loaded, info = AutoModel.from_pretrained(folders / name, subfolder="backbone", output_loading_info=True)
        assert type(loaded).__name__ == "CifarResNetModel" and not info["missing_keys"]
