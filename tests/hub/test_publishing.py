import inspect
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import HfApi, ModelCard, constants
from joint_embedding_common import VIT
from loopback_hub import client_environment, loopback_hub, use_hub
from test_mae import TINY
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel, ViTImageProcessor, ViTModel

from ssl_hub import MAEConfig, MAEModel, MoCoConfig, MoCoModel, SSLTrainer
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.processing import build_image_processor
from ssl_hub.hub.model_card import build_model_card
from ssl_hub.hub.publishing import PublishError, publish, save_for_sharing
from ssl_hub.training.arguments import PretrainingArguments

torch.set_num_threads(1)

CHECKPOINT = ["config.json", "model.safetensors", "preprocessor_config.json"]
LAYOUT = sorted(["README.md", "modeling_ssl_hub.py", *CHECKPOINT, *(f"backbone/{name}" for name in CHECKPOINT)])


@pytest.fixture(scope="module")
def shared_dir(tmp_path_factory):
    """A model saved for sharing, in a run's folder with other things in it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = MAEModel(MAEConfig(**TINY))
    image_processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3])
    card = build_model_card(model.config, training_arguments=None, metrics=[], repo_id="me/x")
    save_for_sharing(model, image_processor, folder)
    card.save(folder / "README.md")
    shard = "model-00001-of-00002.safetensors"  # as of a model too large for one file
    for name in ("curves.png", shard, "metrics.jsonl", "checkpoint-10/model.safetensors", "checkpoint-10/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"content of " + name.encode())
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with loopback_hub(tmp_path) as endpoint:
        yield use_hub(endpoint, tmp_path, monkeypatch)


def run(code, environment):
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_the_backbone_loads_as_plain_transformers(shared_dir):
    backbone = AutoModel.from_pretrained(shared_dir, subfolder="backbone")
    assert type(backbone) is ViTModel
    saved = MAEModel.from_pretrained(shared_dir).backbone.state_dict()
    loaded = backbone.state_dict()
    assert loaded.keys() - saved.keys() == {"pooler.dense.weight", "pooler.dense.bias"}  # not trained, not saved
    assert all(torch.equal(value, loaded[key]) for key, value in saved.items())
    for folder in (shared_dir, shared_dir / "backbone"):
        assert list(AutoImageProcessor.from_pretrained(folder).image_mean) == [0.1, 0.2, 0.3]


def test_push_and_load_back(shared_dir, hub, tmp_path):
    push = f"from ssl_hub.hub.publishing import publish; print(publish({str(shared_dir)!r}, 'me/x'))"
    pushed = run(push, client_environment(hub, tmp_path / "pusher"))
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip() == f"{hub}/me/x"

    load = f"""
import json, sys
import torch
from huggingface_hub import hf_hub_download, model_info
from transformers import AutoImageProcessor, AutoModel
torch.set_num_threads(1)
loaded = AutoModel.from_pretrained("me/x", subfolder="backbone").state_dict()
saved = AutoModel.from_pretrained({str(shared_dir / "backbone")!r}).state_dict()
trained = [key for key in saved if not key.startswith("pooler.")]
assert trained and all(torch.equal(saved[key], loaded[key]) for key in trained)
assert list(AutoImageProcessor.from_pretrained("me/x", subfolder="backbone").image_mean) == [0.1, 0.2, 0.3]
with open(hf_hub_download("me/x", "model.safetensors"), "rb") as mine, open({str(shared_dir / "model.safetensors")!r}, "rb") as theirs:
    assert mine.read() == theirs.read()
assert "ssl_hub" not in sys.modules
print(json.dumps(sorted(file.rfilename for file in model_info("me/x").siblings)))
"""
    loaded = run(load, client_environment(hub, tmp_path / "loader", token=None))
    assert loaded.returncode == 0, loaded.stderr
    expected = sorted([*LAYOUT, "curves.png", "model-00001-of-00002.safetensors"])
    assert json.loads(loaded.stdout.splitlines()[-1]) == expected


LOAD_WITHOUT_IMPORT = """
import sys
if {blocked}:
    class Block:
        def find_spec(self, name, path, target=None):
            if name.partition(".")[0] == "ssl_hub":
                raise ModuleNotFoundError("No module named 'ssl_hub'", name=name)
    sys.meta_path.insert(0, Block())
from transformers import AutoImageProcessor, AutoModel
model = AutoModel.from_pretrained({folder!r}, trust_remote_code=True)
AutoImageProcessor.from_pretrained({folder!r})
model.save_pretrained({saved!r})
print(type(model).__module__, type(model).__name__)
"""


@pytest.mark.parametrize(
    ("blocked", "expected"),
    [
        (False, "ssl_hub.models.mae.modeling_mae MAEModel"),
        (True, "packages that were not found in your environment: ssl_hub. Run `pip install ssl_hub`"),
    ],
    ids=["installed", "not installed"],
)
def test_a_shared_model_loads_without_an_import(blocked, expected, shared_dir, tmp_path):
    saved = tmp_path / "saved"
    names = {"folder": str(shared_dir), "saved": str(saved), "blocked": blocked}
    result = run(LOAD_WITHOUT_IMPORT.format(**names), client_environment("", tmp_path))
    assert expected in result.stdout + result.stderr
    if saved.exists():
        assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
        assert "auto_map" not in (saved / "config.json").read_text()


def test_push_to_a_branch_twice(shared_dir, hub):
    api = HfApi()
    for _ in range(2):
        assert publish(shared_dir, "me/x", revision="try/1", private=True) == f"{hub}/me/x"
        assert "config.json" in api.list_repo_files("me/x", revision="try/1")
    assert api.list_repo_files("me/x") == []


def test_without_login_the_error_gives_a_command_that_works_later(shared_dir, hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError, match="hf auth login") as error:
        publish(shared_dir, "me/x", private=True)
    assert f"It is kept in {shared_dir}" in str(error.value)
    interpreter, flag, code = shlex.split(str(error.value).splitlines()[-1])
    assert (interpreter, flag) == ("python", "-c") and "private=True" in code
    pushed = run(code, client_environment(hub, tmp_path / "home"))
    assert pushed.returncode == 0, pushed.stderr
    assert "config.json" in HfApi().list_repo_files("me/x")


@pytest.mark.parametrize(
    ("repo_id", "constant", "value", "reason"),
    [
        ("me/x", "ENDPOINT", "http://127.0.0.1:9", "refused"),  # no one listens on the discard port
        ("me/x", "HF_HUB_OFFLINE", True, "offline"),
        ("someone-else/x", "HF_TOKEN_PATH", "", "rights to create a model"),
        ("me/x/y", "HF_TOKEN_PATH", "", "me/x/y"),
    ],
)
def test_what_can_go_wrong_is_told_and_the_model_is_kept(
    shared_dir, hub, monkeypatch, repo_id, constant, value, reason
):
    monkeypatch.setattr(constants, constant, value)
    with pytest.raises(PublishError, match=reason) as error:
        publish(shared_dir, repo_id)
    assert f"It is kept in {shared_dir}" in str(error.value)


def test_an_empty_folder_is_not_pushed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        publish(tmp_path, "me/x")


# Every door gives the same repository


def tree(repo_id, cache, revision=None):
    """The content of every file of a repository on the Hub, by name."""
    api = HfApi()
    return {
        name: Path(api.hf_hub_download(repo_id, name, revision=revision, cache_dir=cache)).read_bytes()
        for name in api.list_repo_files(repo_id, revision=revision)
    }


def test_every_door_gives_the_same_repository(hub, tmp_path):
    torch.manual_seed(0)
    AcceleratorState._reset_state(reset_partial_state=True)
    model = MAEModel(MAEConfig(**TINY))
    arguments = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_train_steps": 1, "eval_crop_ratio": 1.0}
    SSLTrainer(
        model,
        PretrainingArguments(
            output_dir=str(tmp_path / "run"), push_to_hub=True, hub_model_id="me/by-trainer", **arguments
        ),
        load_image_dataset("digits", "train").select(range(8)),
        [{"count": 1, "size": 16, "scale": [0.6, 1.0]}],
    ).train()
    AcceleratorState._reset_state(reset_partial_state=True)

    config = model.config
    image_processor = build_image_processor(config.image_size, config.image_mean, config.image_std, crop_ratio=1.0)
    assert model.push_to_hub("by-model", image_processor=image_processor) == f"{hub}/me/by-model"
    publish(tmp_path / "run", "me/by-publish")
    save_for_sharing(model, image_processor, tmp_path / "saved")
    publish(tmp_path / "saved", "me/by-saving")
    loaded = AutoModel.from_pretrained(tmp_path / "run")
    loaded.push_to_hub("me/by-loaded")

    trees = {
        door: tree(f"me/by-{door}", tmp_path / "cache") for door in ("trainer", "publish", "model", "saving", "loaded")
    }
    pictures = ["curves.png", "reconstruction.png"]
    assert sorted(trees["trainer"]) == sorted([*LAYOUT, *pictures]) == sorted(trees["publish"])
    assert sorted(trees["model"]) == sorted(trees["loaded"]) == LAYOUT
    assert sorted([*trees["saving"], "README.md"]) == LAYOUT  # the card is the caller's
    for name in LAYOUT:
        if name != "README.md":
            assert len({files[name] for files in trees.values()}) == 1, name

    card = ModelCard(trees["model"]["README.md"].decode())
    assert (card.data.library_name, card.data.pipeline_tag) == ("ssl_hub", "image-feature-extraction")
    assert {"mae", "self-supervised-learning"} <= set(card.data.tags)
    assert "# by-model\n" in card.text and 'from_pretrained("me/by-model", subfolder="backbone")' in card.text
    assert "## Results" not in card.text and "## Training" not in card.text and ".png" not in card.text


def test_a_pushed_model_loads(hub, tmp_path):
    model = MAEModel(MAEConfig(**TINY)).eval()
    image_processor = build_image_processor(16, model.config.image_mean, model.config.image_std, crop_ratio=1.0)
    model.push_to_hub("me/x", image_processor=image_processor)
    torch.save({"images": (images := torch.rand(2, 3, 16, 16))}, tmp_path / "images.pt")
    with torch.no_grad():
        torch.save({"features": model(images).pooler_output}, tmp_path / "features.pt")
    load = f"""
import torch
from transformers import AutoImageProcessor, AutoModel
torch.set_num_threads(1)
backbone = AutoModel.from_pretrained("me/x", subfolder="backbone")
assert type(backbone).__name__ == "ViTModel", type(backbone)
import ssl_hub
model = AutoModel.from_pretrained("me/x").eval()
processor = AutoImageProcessor.from_pretrained("me/x")
assert processor.size["shortest_edge"] == 16 and list(processor.image_mean) == [0.485, 0.456, 0.406], processor
images = torch.load({str(tmp_path / "images.pt")!r}, weights_only=True)["images"]
expected = torch.load({str(tmp_path / "features.pt")!r}, weights_only=True)["features"]
from ssl_hub.hub import publishing
assert publishing._image_processor(model).to_dict() == processor.to_dict()
with torch.no_grad():
    torch.testing.assert_close(model(images).pooler_output, expected)
    tokens = backbone(images, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(tokens, model(images).last_hidden_state)
"""
    loaded = run(load, client_environment(hub, tmp_path / "loader", token=None))
    assert loaded.returncode == 0, loaded.stderr


def test_push_to_hub_takes_what_transformers_takes(hub, tmp_path):
    theirs = set(inspect.signature(PreTrainedModel.push_to_hub).parameters) - {"self", "args", "kwargs"}
    model = MAEModel(MAEConfig(**TINY))
    options = {
        "commit_message": "A message",
        "commit_description": "A description",
        "private": True,
        "token": "dummy",
        "revision": "try/1",
        "create_pr": False,
        "max_shard_size": "20KB",
        "tags": ["digits"],
    }
    assert theirs - {"repo_id"} <= set(options)
    image_processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3])
    model.push_to_hub("me/x", image_processor=image_processor, **options)
    files = tree("me/x", tmp_path / "cache", "try/1")
    assert "model.safetensors.index.json" in files and "backbone/model.safetensors.index.json" in files
    assert "digits" in ModelCard(files["README.md"].decode()).data.tags
    assert json.loads(files["preprocessor_config.json"])["image_mean"] == [0.1, 0.2, 0.3]
    assert HfApi().list_repo_files("me/x") == []
    assert model.push_to_hub("me/x", create_pr=True) == f"{hub}/me/x/discussions/1"
    assert HfApi().list_repo_files("me/x") == []
    with pytest.raises(TypeError, match="safe_serialisation"):
        model.push_to_hub("me/x", safe_serialisation=True)


def test_a_push_of_a_model_that_fails_says_why(hub, monkeypatch):
    model = MAEModel(MAEConfig(**TINY))
    with pytest.raises(PublishError, match="'someone-else/x': .*rights to create a model") as error:
        model.push_to_hub("someone-else/x")
    assert "It is kept in" not in str(error.value)  # the folder was a temporary one
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError, match="hf auth login"):
        model.push_to_hub("me/x", token=True)
    with pytest.raises(ValueError, match=r"call push_to_hub\(repo_id\)"):
        model.save_pretrained("x", push_to_hub=True)


def test_training_state_is_not_shared(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(MoCoModel, "training_state", ("memory.",))
    config = MoCoConfig(backbone_config=dict(VIT), image_size=16, projection_size=8, queue_size=16)
    model = MoCoModel(config)
    image_processor = build_image_processor(16, config.image_mean, config.image_std)
    save_for_sharing(model, image_processor, tmp_path)
    capfd.readouterr()
    loaded, info = MoCoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert "memory" not in capfd.readouterr().err
    memory = {name: tensor for name, tensor in loaded.state_dict().items() if name.startswith("memory.")}
    assert memory and loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert name in memory or torch.equal(tensor, loaded.state_dict()[name])
    # Initialised as a new model's, not left as it came from the allocator.
    torch.testing.assert_close(memory["memory.vectors"].norm(dim=-1), model.memory.vectors.norm(dim=-1))
    model.save_pretrained(tmp_path / "checkpoint")
    whole = MoCoModel.from_pretrained(tmp_path / "checkpoint").state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())


def test_weights_without_an_image_processor_get_one_from_the_configuration(hub, tmp_path):
    config = MAEConfig(**TINY, image_mean=[0.1, 0.2, 0.3])
    MAEModel(config).save_pretrained(tmp_path / "weights")
    MAEModel.from_pretrained(tmp_path / "weights").push_to_hub("me/x")
    pushed = json.loads(tree("me/x", tmp_path / "cache")["preprocessor_config.json"])
    assert pushed["image_mean"] == [0.1, 0.2, 0.3] and pushed["crop_size"] == {"height": 16, "width": 16}
