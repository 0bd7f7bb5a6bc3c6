"""The published models: their table, their cards, and the way of each from its checkpoint through the Hub to a user."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from loopback_hub import client_environment, loopback_hub, use_hub
from PIL import Image
from transformers import AutoModelForPreTraining, HfArgumentParser

from ssl_hub import list_models
from ssl_hub.classification.arguments import ARGUMENT_CLASSES, list_protocols
from ssl_hub.commands import publish as publish_command
from ssl_hub.commands.embed import ExtractionArguments
from ssl_hub.conversion.sources import layouts_of, to_theirs
from ssl_hub.data.processing import build_image_processor
from ssl_hub.hub.models import model_info
from ssl_hub.hub.published_card import build_published_card
from ssl_hub.hub.publishing import PublishError
from ssl_hub.registry import ALGORITHMS
from ssl_hub.training.arguments import DataArguments, ModelArguments, PretrainingArguments
from ssl_hub.training.recipes import Recipe, list_recipes, load_recipe

REPOSITORY = Path(__file__).parents[2]
MODELS = list_models()
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
# Of whatever fields a configuration, or its backbone's, has of these.
TINY = {
    "image_size": 32,
    "projection_size": 8,
    "projection_hidden_size": 16,
    "predictor_hidden_size": 16,
    "queue_size": 16,
    "num_clusters": 8,
    "num_prototypes": 8,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "regressor_num_hidden_layers": 1,
    "neck_num_attention_heads": 2,
    "neck_intermediate_size": 32,
    "mask_cell_size": 16,
}
TINY_BACKBONE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_sizes": [16, 16, 16, 32],
    "embed_dim": 8,
    "num_heads": [1, 1, 2, 2],
}
TINY_BACKBONES = {
    "resnet": {"depths": [1, 1, 1, 1]},
    "swin": {"patch_size": 2, "depths": [1, 1, 1, 1], "window_size": 2},
}


def tiny_config(recipe_name):
    """The configuration of a recipe, with the kinds of all parts and none of the sizes."""
    recipe = load_recipe(recipe_name)
    config = recipe.build_config()
    tiny_backbone = TINY_BACKBONE | TINY_BACKBONES.get(config.backbone_config.model_type, {})
    changes = {name: value for name, value in TINY.items() if name in {field.name for field in fields(config)}}
    for field in fields(config.backbone_config):
        if field.name in tiny_backbone:
            changes[f"backbone_config.{field.name}"] = tiny_backbone[field.name]
    return recipe.build_config(",".join(f"{name}={value}" for name, value in changes.items()))


TINY_CONFIGS = {model.recipe: tiny_config(model.recipe) for model in MODELS}


def made_checkpoint(published, folder):
    """A file as the published one, with a tiny model in it, and that model."""
    torch.manual_seed(0)
    model = AutoModelForPreTraining.from_config(TINY_CONFIGS[published.recipe]).eval()
    if published.algorithm == "NPID":  # whose file holds a vector for every image
        model.begin_run(8)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand_like(tensor)  # not what an initialisation would give
    key = "state_dict" if published.key_format == "mmselfsup" else "model"
    path = folder / published.source_file
    torch.save({"meta": {"epoch": 1}, key: to_theirs(model, published.key_format)}, path)
    return path, model


def publish(monkeypatch, *words):
    """Runs `ssl-hub publish` with the sizes of the made file."""
    monkeypatch.setattr(Recipe, "build_config", lambda self: TINY_CONFIGS[self.name])
    publish_command.main([*map(str, words)])


# The table


def test_every_algorithm_with_a_public_checkpoint_has_a_model():
    # No conversion reads the checkpoints of the two BEiTs.
    published = {load_recipe(model.recipe).model["model_type"] for model in MODELS}
    assert published == ALGORITHMS.keys() - {"beitv1", "beitv2"}


@each_model
def test_what_the_table_names_exists(model):
    assert model_info(model.name) is model
    assert model.recipe in list_recipes()
    assert {result.recipe for result in model.results} - {""} <= set(list_protocols())
    config = load_recipe(model.recipe).build_config()
    assert any(layout.model_type == config.model_type for layout in layouts_of(model.key_format, config.model_type))
    assert model.paper.arxiv_id in config.paper
    assert model.paper.title in config.paper or model.algorithm == "MoCo v2"  # a paper of its own
    assert model.source_url.startswith("https://") and re.search(r"\.pth(\.tar)?$", model.source_file)


def test_a_name_that_does_not_exist():
    with pytest.raises(ValueError, match="no published model 'mae-vit-bsae'; near it: mae-vit-base, "):
        model_info("mae-vit-bsae")
    with pytest.raises(ValueError, match="no published model 'x'; the models are barlowtwins-resnet50, "):
        model_info("x")


# The cards


def test_the_folder_holds_a_card_for_each():
    assert {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "model_cards").glob("*.md")} == {
        model.card for model in MODELS
    }


@each_model
def test_card(model):
    config = load_recipe(model.recipe).build_config()
    card = ModelCard.load(REPOSITORY / model.card)
    written = build_published_card(model, config)
    assert card.content == written.content, "run python model_cards/write_cards.py"
    data = card.data.to_dict()
    assert set(data) == {"datasets", "library_name", "license", "pipeline_tag", "tags"}
    assert data["library_name"] == "ssl_hub" and data["datasets"] == ["ILSVRC/imagenet-1k"]
    assert data["license"] in ("apache-2.0", "mit", "cc-by-nc-4.0")
    assert data["license"] == "apache-2.0" or model.key_format == "authors"
    assert {"self-supervised-learning", config.model_type, f"arxiv:{model.paper.arxiv_id}"} <= set(data["tags"])
    assert f"[{model.source_file}]({model.source_url})" in card.text
    for title in ("How to use", "Source", "Published results", "Limits", "Citation"):
        assert f"\n## {title}\n" in card.text
    assert "None of it has been repeated" in " ".join(card.text.split())
    assert len(card.content.splitlines()) < 110


@each_model
def test_commands_of_the_card(model):
    parsers = {
        "embed": HfArgumentParser(ExtractionArguments),
        "finetune": HfArgumentParser(ARGUMENT_CLASSES),
        "pretrain": HfArgumentParser([ModelArguments, DataArguments, PretrainingArguments]),
    }
    (commands,) = re.findall(r"```bash\n(.*?)```", (REPOSITORY / model.card).read_text(), re.DOTALL)
    for command in commands.replace("\\\n", "").splitlines():
        program, name, *words = shlex.split(command)
        assert program == "ssl-hub"
        assert parsers[name].parse_args(words).model_name_or_path == model.repo_id


# From a checkpoint through the Hub to a user

SNIPPETS = """
import json, sys
import torch
torch.set_num_threads(1)
features = {}
for name, blocks in json.loads(sys.stdin.read()).items():
    for block in blocks:
        names = {}
        exec(block, names)
        if "features" in names:
            features[name] = names["features"].detach()
        else:
            assert type(names["backbone"]).__module__.startswith("transformers."), name
torch.save(features, "features.pt")
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """All published models, tiny, on the Hub under their names: the address, the folder, and the models they came from."""
    folder = tmp_path_factory.mktemp("published")
    models = {}
    with loopback_hub(folder) as endpoint, pytest.MonkeyPatch.context() as monkeypatch:
        use_hub(endpoint, folder, monkeypatch)
        monkeypatch.chdir(folder)
        for each in MODELS:
            path, models[each.name] = made_checkpoint(each, folder)
            publish(monkeypatch, each.name, "--checkpoint", path)
        yield endpoint, folder, models


def test_the_snippets_of_all_cards(published):
    endpoint, folder, models = published
    Image.effect_noise((40, 50), 60).save(folder / "image.jpg")
    blocks = {
        each.name: re.findall(r"```python\n(.*?)```", (REPOSITORY / each.card).read_text(), re.DOTALL)
        for each in MODELS
    }
    assert all('from_pretrained("ssl-hub/' in code for each in blocks.values() for code in each)
    environment = client_environment(endpoint, folder / "user", token=None)
    command = [sys.executable, "-c", SNIPPETS]
    done = subprocess.run(
        command, input=json.dumps(blocks), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    features = torch.load(folder / "features.pt", weights_only=True)
    assert features.keys() == models.keys()
    for name, model in models.items():
        config = model.config
        image_processor = build_image_processor(config.image_size, config.image_mean, config.image_std)
        pixel_values = image_processor(
            Image.open(folder / "image.jpg").convert("RGB"), return_tensors="pt"
        ).pixel_values
        with torch.no_grad():
            torch.testing.assert_close(
                features[name],
                model(pixel_values).pooler_output,
                rtol=1e-5,
                atol=1e-5,
                msg=lambda m, n=name: f"{n}: {m}",
            )


def test_what_is_pushed(published):
    _, folder, _ = published
    for each in MODELS:
        names = HfApi().list_repo_files(each.repo_id)
        assert {"README.md", "config.json", "model.safetensors", "backbone/model.safetensors"} <= set(names)
        card = build_published_card(each, TINY_CONFIGS[each.recipe])
        assert (folder / each.name / "README.md").read_text() == card.content


def test_a_dry_run_needs_no_hub(tmp_path, monkeypatch, capsys):
    each = model_info("simclr-resnet50")
    path, _ = made_checkpoint(each, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    publish(monkeypatch, each.name, "--checkpoint", path, "--output_dir", tmp_path / "out", "--dry_run")
    recognised, compared, written = capsys.readouterr().out.splitlines()
    assert recognised == "recognised: mmselfsup (simclr)" and written == f"the model is in {tmp_path / 'out'}"
    assert re.fullmatch(r"largest difference from the features of the original: \d\.\de[+-]\d+", compared)
    assert "ssl-hub/simclr-resnet50" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(FileExistsError, match="nothing is written over"):
        publish(monkeypatch, each.name, "--checkpoint", path, "--output_dir", tmp_path / "out", "--dry_run")


def test_a_push_that_fails_keeps_the_model(tmp_path, monkeypatch):
    each = model_info("simclr-resnet50")
    path, _ = made_checkpoint(each, tmp_path)
    words = (each.name, "--checkpoint", path, "--output_dir", tmp_path / "out")
    with loopback_hub(tmp_path) as endpoint:
        use_hub(endpoint, tmp_path, monkeypatch)
        with pytest.raises(PublishError, match="'someone-else/simclr-resnet50': you are logged in as me"):
            publish(monkeypatch, *words, "--namespace", "someone-else")
        assert not (tmp_path / "out").exists()  # known before the conversion
        with monkeypatch.context() as patch:
            patch.setattr("huggingface_hub.HfApi.create_commit", lambda *args, **options: 1 / 0)
            with pytest.raises(PublishError, match="division by zero") as error:
                publish(patch, *words)
        command = shlex.split(str(error.value).splitlines()[-1])
        assert (
            subprocess.run(
                [sys.executable, *command[1:]], env=client_environment(endpoint, tmp_path / "home"), check=False
            ).returncode
            == 0
        )
        assert "model.safetensors" in HfApi().list_repo_files(each.repo_id)


def test_a_checkpoint_of_another_model(tmp_path, monkeypatch):
    path, _ = made_checkpoint(model_info("byol-resnet50"), tmp_path)
    with pytest.raises(ValueError, match="is no checkpoint for 'simclr'"):
        publish(monkeypatch, "simclr-resnet50", "--checkpoint", path, "--output_dir", tmp_path / "out", "--dry_run")
    assert not (tmp_path / "out").exists()
