import json
import shlex
import subprocess
import sys

import pytest
import torch
from huggingface_hub import HfApi, constants
from loopback_hub import client_environment, loopback_hub
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel, ViTConfig, ViTImageProcessor, ViTModel

from ssl_hub.hub.model_card import build_model_card
from ssl_hub.hub.publishing import PublishError, publish, save_for_sharing

torch.set_num_threads(1)


class ToyConfig(ViTConfig):
    model_type = "toy_ssl"


class ToyModel(PreTrainedModel):
    """A method in the layout of ssl_hub: a plain transformers backbone and a head."""

    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        backbone_config = ViTConfig(**{key: value for key, value in config.to_dict().items() if key != "model_type"})
        self.backbone = ViTModel(backbone_config)
        self.head = torch.nn.Linear(config.hidden_size, 3)
        self.post_init()


@pytest.fixture(scope="module")
def shared_dir(tmp_path_factory):
    """A model saved for sharing, in a run's folder with other things in it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    config = ToyConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    image_processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3])
    card = build_model_card(config, training_arguments=None, metrics=[], repo_id="me/x")
    save_for_sharing(ToyModel(config), image_processor, folder)
    card.save(folder / "README.md")
    shard = "model-00001-of-00002.safetensors"  # as of a model too large for one file
    for name in ("curves.png", shard, "metrics.jsonl", "checkpoint-10/model.safetensors", "checkpoint-10/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"content of " + name.encode())
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that `publish` uses in this process too; loading, which has a cache, goes through a process of its own."""
    with loopback_hub(tmp_path) as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", "dummy")
        yield endpoint


def run(code, environment):
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_the_backbone_loads_as_plain_transformers(shared_dir):
    backbone = AutoModel.from_pretrained(shared_dir, subfolder="backbone")
    assert type(backbone) is ViTModel
    saved = ToyModel.from_pretrained(shared_dir).backbone.state_dict()
    assert saved.keys() == backbone.state_dict().keys()
    assert all(torch.equal(value, saved[key]) for key, value in backbone.state_dict().items())
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
assert loaded.keys() == saved.keys()
assert all(torch.equal(value, saved[key]) for key, value in loaded.items())
assert list(AutoImageProcessor.from_pretrained("me/x", subfolder="backbone").image_mean) == [0.1, 0.2, 0.3]
with open(hf_hub_download("me/x", "model.safetensors"), "rb") as mine, open({str(shared_dir / "model.safetensors")!r}, "rb") as theirs:
    assert mine.read() == theirs.read()
assert "ssl_hub" not in sys.modules
print(json.dumps(sorted(file.rfilename for file in model_info("me/x").siblings)))
"""
    loaded = run(load, client_environment(hub, tmp_path / "loader", token=None))
    assert loaded.returncode == 0, loaded.stderr
    checkpoint = ["config.json", "model.safetensors", "preprocessor_config.json"]
    expected = [
        "README.md",
        "curves.png",
        "model-00001-of-00002.safetensors",
        *checkpoint,
        *(f"backbone/{name}" for name in checkpoint),
    ]
    assert json.loads(loaded.stdout.splitlines()[-1]) == sorted(expected)


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
