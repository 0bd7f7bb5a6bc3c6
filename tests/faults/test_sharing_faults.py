"""Sharing that cannot succeed, must not, or would tell what is not so."""

import json
import runpy
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import loopback_hub as loopback_module
import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import HfApi, ModelCard, constants, get_session
from huggingface_hub.errors import RepositoryNotFoundError
from loopback_hub import loopback_hub, use_hub
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_mae import TINY

from ssl_hub import MAEConfig, MAEModel, SSLTrainer
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.processing import build_image_processor
from ssl_hub.hub import publishing
from ssl_hub.hub.model_card import build_model_card
from ssl_hub.hub.publishing import PublishError, check_can_push, publish, save_for_sharing
from ssl_hub.printing import name_some, printable, printable_lines
from ssl_hub.training.arguments import ModelArguments, PretrainingArguments

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with loopback_hub(tmp_path) as endpoint:
        yield use_hub(endpoint, tmp_path, monkeypatch)


def save(folder):
    model = MAEModel(MAEConfig(**TINY))
    save_for_sharing(model, build_image_processor(16, model.config.image_mean, model.config.image_std), folder)
    build_model_card(model.config, training_arguments=None, metrics=[]).save(folder / "README.md")


@pytest.fixture
def shared_dir(tmp_path):
    save(tmp_path / "run")
    return tmp_path / "run"


# A Hub that does not answer


@contextmanager
def silent_hub():
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("door", ["publish", "push_to_hub", "check_can_push"])
def test_a_hub_that_hangs_is_given_up(door, shared_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "_TIMEOUT", 0.2)
    monkeypatch.setattr(publishing, "_CHECK_TIMEOUT", 0.2)
    doors = {
        "publish": lambda: publish(shared_dir, "me/x"),
        "push_to_hub": lambda: MAEModel(MAEConfig(**TINY)).push_to_hub("me/x"),
        "check_can_push": lambda: check_can_push("me/x"),
    }
    errors = []

    def push():
        try:
            doors[door]()
        except PublishError as error:
            errors.append(str(error))

    with silent_hub() as endpoint:
        use_hub(endpoint, tmp_path, monkeypatch)
        before = get_session().timeout
        thread = threading.Thread(target=push, daemon=True)
        thread.start()
        thread.join(60)
        assert errors and "timed out" in errors[0] and "'me/x'" in errors[0]
        assert get_session().timeout == before


def test_a_hub_that_hangs_in_the_middle(shared_dir, hub, monkeypatch):
    monkeypatch.setattr(publishing, "_TIMEOUT", 0.5)
    routes = [
        (method, pattern, (lambda *args, **kwargs: time.sleep(1.5)) if "commit" in pattern else action)
        for method, pattern, action in loopback_module._ROUTES
    ]
    monkeypatch.setattr(loopback_module, "_ROUTES", routes)
    with pytest.raises(PublishError, match=r"timed out\nIt is kept in "):
        publish(shared_dir, "me/x")


# What is checked before the first step


@pytest.mark.parametrize(
    ("repo_id", "sentence"),
    [
        ("me/x/y", "the name must be such as me/mae-vit-base"),
        ("me/a b", "the name must be such as"),
        ("", "the name must be such as"),
        ("../out", "the name must be such as"),
        ("me/\x1b[31mx", "the name must be such as"),
        ("someone-else/x", "you are logged in as me and may write to me, ssl-hub$"),
    ],
)
def test_a_name_that_cannot_be_pushed_to(repo_id, sentence, hub, shared_dir):
    with pytest.raises(PublishError, match=sentence) as error:
        check_can_push(repo_id)
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(PublishError):
        publish(shared_dir, repo_id)


def test_a_check_that_finds_nothing_creates_nothing(hub):
    check_can_push("me/x")
    check_can_push("x", private=True)
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("me/x")


@pytest.mark.parametrize("door", ["token", "offline", "refused", "read"])
def test_a_check_says_what_is_missing(door, hub, monkeypatch):
    if door == "token":
        monkeypatch.delenv("HF_TOKEN")
    elif door == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif door == "refused":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        user = {"name": "me", "orgs": [], "auth": {"accessToken": {"role": "read"}}}
        monkeypatch.setattr(HfApi, "whoami", lambda self: user)
    sentences = {
        "token": "hf auth login",
        "offline": "offline",
        "refused": "refused",
        "read": "your token may only read",
    }
    with pytest.raises(PublishError, match=sentences[door]):
        check_can_push("me/x")


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_is_as_private_as_asked_or_nothing_is_pushed(private, shared_dir, hub):
    HfApi().create_repo("me/x", private=not private)
    states = ("public", "private")
    sentence = f"me/x exists and is {states[not private]}, and you asked for a {states[private]} one"
    with pytest.raises(PublishError, match=sentence):
        check_can_push("x", private=private)
    with pytest.raises(PublishError, match=sentence):
        publish(shared_dir, "me/x", private=private)
    with pytest.raises(PublishError, match=sentence):
        MAEModel(MAEConfig(**TINY)).push_to_hub("me/x", private=private)
    assert HfApi().list_repo_files("me/x") == []
    publish(shared_dir, "me/x", private=not private)
    publish(shared_dir, "me/x")
    publish(shared_dir, "me/new", private=private)
    assert HfApi().model_info("me/new").private == private


# A folder without whole weights


def cut(name):
    def change(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-50])

    return change


def sharded(index):
    def change(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(index)

    return change


WEIGHT_MAP = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
BAD_FOLDERS = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"No model\.safetensors in"),
    "no backbone": (lambda folder: (folder / "backbone").rename(folder / "spine"), r"No config\.json in .*backbone"),
    "a backbone without weights": (
        lambda folder: (folder / "backbone/model.safetensors").unlink(),
        r"No model\.safetensors in .*backbone",
    ),
    "cut weights": (cut("model.safetensors"), r"model\.safetensors is cut off or no safetensors file"),
    "a cut backbone": (cut("backbone/model.safetensors"), "backbone/model.safetensors is cut off"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is cut off"),
    "a shard that is missing": (sharded(json.dumps(WEIGHT_MAP)), r"No model-00002-of-00002\.safetensors in"),
    "a damaged index": (sharded("{"), r"index\.json is damaged"),
    "an index of another form": (sharded("[]"), r"index\.json is damaged"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_part_of_a_model_is_not_pushed(name, shared_dir, hub):
    change, sentence = BAD_FOLDERS[name]
    change(shared_dir)
    with pytest.raises((FileNotFoundError, ValueError), match=sentence):
        publish(shared_dir, "me/x")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("me/x")


def test_a_model_that_diverged_is_not_shared(tmp_path, hub):
    model = MAEModel(MAEConfig(**TINY))
    model.neck.embed.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the model holds NaN or infinity in 1 of \d+ tensors"):
        save_for_sharing(model, build_image_processor(16, [0.5] * 3, [0.5] * 3), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        model.push_to_hub("me/x")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("me/x")


def test_a_full_disk_is_an_oserror(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    model = MAEModel(MAEConfig(**TINY))
    with pytest.raises(OSError, match="cannot be written to .*No space left"):
        save_for_sharing(model, build_image_processor(16, [0.5] * 3, [0.5] * 3), tmp_path)


# What the card says


HOSTILE = "<img src=x onerror=alert(1)> | `code` [a](http://b) \x1b[31m\u202e\n# Title\n---\nlicense: mit"


def card_of(**values):
    arguments = {"training_arguments": None, "metrics": [{"step": 1, "loss": 1.0, "knn_accuracy": 0.5}]}
    card = build_model_card(MAEConfig(**TINY), **{**arguments, **values})
    return ModelCard(card.content)  # as whoever downloads it reads it


@pytest.mark.parametrize(
    "values",
    [
        {"recipe_name": HOSTILE},
        {"dataset_name": HOSTILE},
        {"training_arguments": {"optim": HOSTILE, "seed": 0}},
        {"training_arguments": {"optim": HOSTILE.replace("http://", ""), "seed": 0}},
        {"recipe_name": "x", "config_overrides": f"pooling={HOSTILE}"},
        {"initial_weights": HOSTILE},
        {"tags": [HOSTILE]},
    ],
)
def test_foreign_names_are_no_markup(values):
    card, plain = card_of(**values), card_of(**{"recipe_name": "x"})
    assert "\x1b" not in card.content and "\u202e" not in card.content
    headings = [line for line in card.text.splitlines() if line.startswith("#") and not line.startswith("# ")]
    assert set(headings) <= {"## How to use", "## Training", "## Results"}
    assert sum(line.startswith("# ") for line in card.text.splitlines()) == 1
    assert card.data.license is None and card.data.pipeline_tag == plain.data.pipeline_tag
    outside_of_code = "".join(card.text.replace("```", "\0").split("\0")[::2])
    outside_of_code = "".join("".join(line.split("`")[::2]) for line in outside_of_code.splitlines())
    assert "<img" not in outside_of_code and "](http://b)" not in outside_of_code
    for line in card.text.splitlines():
        assert not line.startswith("|") or line.replace(r"\|", "").count("|") == 3, line


@pytest.mark.parametrize("path", ["/home/me/secret/x.yaml", "~/secret/x.yaml", "../secret/x.yaml", r"C:\secret\x.yaml"])
def test_paths_of_the_machine_are_not_shown(path):
    card = card_of(
        recipe_name=path,
        config_overrides=f"a=[1, {path}]",
        initial_weights=path,
        dataset_name=path,
        training_arguments={"seed": 0, "optim": path, "evaluation": f"[{{type: {path}}}]"},
    )
    assert "secret" not in card.content and "/home" not in card.content
    assert "Recipe: `x.yaml`, its model changed.\n" in card.text and "data set `x.yaml`" in card.text


def test_addresses_are_shown_without_their_credentials():
    card = card_of(dataset_name="https://me:password@host/data/train.parquet?token=secret")
    assert "data set `train.parquet`" in card.text
    assert "secret" not in card.content and "password" not in card.content


def test_a_recipe_that_was_overridden_is_not_what_the_model_is_called():
    assert "# mae-vit-base-300e\n" in card_of(recipe_name="mae-vit-base-300e").text
    card = card_of(recipe_name="mae-vit-base-300e", config_overrides="mask_ratio=0.6")
    assert "# mae\n" in card.text and card.data.model_name != "mae-vit-base-300e"
    assert "Recipe: `mae-vit-base-300e`, its model changed by `mask_ratio=0.6`." in card.text
    card = card_of(recipe_name="mae-vit-base-300e", initial_weights="you/mae")
    assert "# mae\n" in card.text and "started from: `you/mae`" in card.text


def test_a_run_hands_its_card_what_was_overridden(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = SSLTrainer(
        MAEModel(MAEConfig(**TINY)),
        PretrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=8, max_train_steps=1),
        load_image_dataset("digits", "train").select(range(8)),
        [{"count": 1, "size": 16, "scale": [0.6, 1.0]}],
        recipe_name="mae-vit-tiny-digits",
        model_args=ModelArguments("mae-vit-tiny-digits", config_overrides="mask_ratio=0.7"),
    )
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    text = (tmp_path / "README.md").read_text()
    assert "Recipe: `mae-vit-tiny-digits`, its model changed by `mask_ratio=0.7`." in text and "\n# mae\n" in text


@pytest.mark.parametrize("named", [None, "me/earlier"])
def test_a_pushed_card_names_its_repository(named, shared_dir, hub, tmp_path):
    card = build_model_card(MAEConfig(**TINY), training_arguments=None, metrics=[], repo_id=named)
    other = '\nCompare `AutoModel.from_pretrained("someone/else")`.\n'
    (shared_dir / "README.md").write_text(card.content + other)
    publish(shared_dir, "x")
    text = Path(HfApi().hf_hub_download("me/x", "README.md", cache_dir=tmp_path / "cache")).read_text()
    assert text.count('from_pretrained("me/x"') == 3 and "--model_name_or_path me/x " in text
    assert "path/to/this/folder" not in text
    assert 'from_pretrained("me/earlier"' not in text and other in text
    assert (shared_dir / "README.md").read_text() == card.content + other


def test_a_card_of_ones_own_is_pushed_as_it_is(shared_dir, hub, tmp_path):
    own = "---\nlicense: mit\n---\n# Mine\n"
    (shared_dir / "README.md").write_text(own)
    publish(shared_dir, "me/x")
    assert Path(HfApi().hf_hub_download("me/x", "README.md", cache_dir=tmp_path / "cache")).read_text() == own


# Messages


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain näme 画像", "plain näme 画像"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\u202egpj", r"\u202egpj"),
        ("\udcff", r"\udcff"),
        ("two\nlines\r", "two\nlines\\r"),
    ],
)
def test_what_is_not_printed_is_written_out(text, shown):
    assert printable_lines(text) == shown
    assert printable(text) == shown.replace("\n", r"\n")


def test_names_are_few_and_short():
    assert name_some("abc") == "a, b, c"
    assert name_some(f"{i}\n" for i in range(7)) == r"0\n, 1\n, 2\n, 3\n, 4\n, ..."
    assert len(name_some(["x" * 10**6])) < 300


def test_what_the_hub_says_is_printable(hub, shared_dir, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError("\x1b[31mred")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(PublishError, match=r"\\x1b\[31mred"):
        publish(shared_dir, "me/x")


def test_names_in_foreign_weights_do_not_reach_the_terminal_raw(shared_dir, tmp_path):
    tensors = load_file(shared_dir / "model.safetensors")
    save_file(tensors | {"\x1b[2J\x07evil": torch.zeros(1)}, shared_dir / "model.safetensors", {"format": "pt"})
    command = [sys.executable, str(REPOSITORY / "examples/visualize_reconstruction.py"), "--dataset_name", "digits"]
    options = ["--model_name_or_path", str(shared_dir), "--output_file", str(tmp_path / "picture.png")]
    process = subprocess.run([*command, *options], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert r"\x1b[2J\x07evil" in process.stderr and "\x1b" not in process.stderr + process.stdout


def test_a_folder_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report_demo.py", f"{tmp_path}/\x1b[31mnothing"])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(REPOSITORY / "examples/report_demo.py"), run_name="__main__")
    assert error.value.code == f"error: there is no model folder {tmp_path}/\\x1b[31mnothing"
