"""Foreign checkpoints and folders that are damaged, hostile or of another kind: one sentence, and nothing lost."""

import argparse
import io
import json
import os
import pickle
import runpy
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_mae import TINY
from transformers import AutoModelForMaskedImageModeling, BertConfig, ViTConfig, ViTForMaskedImageModeling

from ssl_hub import MAEConfig, MAEModel
from ssl_hub.conversion.renaming import FUSED, Layout
from ssl_hub.conversion.sources import LAYOUTS, load_foreign_checkpoint, read_state_dict, recognise
from ssl_hub.conversion.state_dicts import StandIn, load_strictly, read_checkpoint
from ssl_hub.pretrained import load_pretrained
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.recipes import load_recipe, parse_overrides

REPOSITORY = Path(__file__).parents[2]
VIT = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def mae() -> MAEModel:
    return MAEModel(MAEConfig(**TINY))


class Opaque:
    pass


def compressed(path: Path) -> None:
    """A checkpoint of 16 MiB of zeros in a few kilobytes."""
    torch.save({"model": {"cls_token": torch.zeros(2**22)}}, buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))


def expanded(path: Path) -> None:
    """A tensor of 4 TB in a file of a kilobyte: one number, with strides of zero."""
    torch.save({"model": {"cls_token": torch.zeros(1).expand(2**20, 2**20)}}, path)


def cut_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-40])


BAD_FILES = {
    # what is written, a part of the sentence
    "a list": (lambda path: torch.save([torch.zeros(1)], path), "holds a list, and a checkpoint is a dict"),
    "a tensor": (lambda path: torch.save(torch.zeros(1), path), "holds a Tensor, and"),
    "a number": (lambda path: torch.save(3, path), "holds a int, and"),
    "nothing in it": (lambda path: torch.save({}, path), "holds no tensors"),
    "an inner list": (lambda path: torch.save({"model": [1]}, path), "its state dict is a list"),
    "inner None": (lambda path: torch.save({"model": None}, path), "its state dict is a NoneType"),
    "no names": (lambda path: torch.save({"model": {1: torch.zeros(1)}}, path), "must have names; got the int 1"),
    "inner numbers": (lambda path: torch.save({"model": {"a": 1}}, path), "a is a int instead of a tensor"),
    "an escape code": (lambda path: torch.save({"\x1b[31mred": 1}, path), r"its keys are \\x1b\[31mred"),
    "sparse": (
        lambda path: torch.save({"model": {"cls_token": torch.zeros(1, 1, 16).to_sparse()}}, path),
        "cls_token is sparse, quantized or without numbers",
    ),
    "no numbers": (
        lambda path: torch.save({"model": {"cls_token": torch.zeros(1, 1, 16, device="meta")}}, path),
        "cls_token is sparse, quantized or without numbers",
    ),
    "expanded": (expanded, "cls_token is sparse, quantized or without numbers of its own"),
    "compressed": (compressed, r"bytes and would unpack to 16,7\d\d,\d\d\d"),
    "an object": (lambda path: torch.save({"model": Opaque()}, path), "never unpickles"),
    "a plain pickle": (lambda path: path.write_bytes(pickle.dumps({"model": Opaque()})), "never unpickles"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "cut off": (
        lambda path: (torch.save({"a": torch.zeros(1000)}, path), path.write_bytes(path.read_bytes()[:900])),
        "is damaged",
    ),
    "qkv of no three parts": (
        lambda path: torch.save({"model": {"blocks.0.attn.qkv.bias": torch.zeros(4)}}, path),
        r"blocks\.0\.attn\.qkv\.bias has the shape \(4,\), which has no three parts",
    ),
    "qkv of a number": (
        lambda path: torch.save({"model": {"blocks.0.attn.qkv.bias": torch.zeros(())}}, path),
        "no three parts",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_checkpoint(name, tmp_path):
    write, sentence = BAD_FILES[name]
    path = tmp_path / "checkpoint.pth"
    write(path)
    with pytest.raises(ValueError, match=sentence) as error:
        load_foreign_checkpoint(mae(), path, "authors")
    assert str(path) in str(error.value) and "\n" not in str(error.value) and "\x1b" not in str(error.value)


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Argument(argparse.Namespace):
    """What is allowed in a file, called with what is not."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return argparse.Namespace, (), {"path": Runs(self.path)}


@pytest.mark.parametrize("hostile", [Runs, Argument])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_command_in_a_file_is_not_run(hostile, zipped, tmp_path):
    run, path = tmp_path / "it-was-run", tmp_path / "checkpoint.pth"
    checkpoint = {"model": {"cls_token": torch.zeros(1)}, "args": hostile(run)}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"Python objects besides its tensors \(posix.system\), which ssl_hub never unpickles"
    ):
        load_foreign_checkpoint(mae(), path)
    assert not run.exists()
    torch.load(path, weights_only=False)  # it is a command indeed
    assert run.exists()


def test_arguments_that_are_pickled_along(tmp_path):
    """As in the authors' files and MMEngine's: read, without a line of their classes being run."""
    arguments = argparse.Namespace(lr=np.float64(0.1), output_dir=Path("out"), mean=np.array([0.5, 0.5]))
    state_dict = {key: tensor.clone() for key, tensor in mae().state_dict().items()}
    layout = next(layout for layout in LAYOUTS if (layout.source, layout.model_type) == ("authors", "mae"))
    torch.save({"model": layout.to_theirs(state_dict), "args": arguments, "epoch": np.int64(3)}, tmp_path / "mae.pth")
    model = mae()
    load_foreign_checkpoint(model, tmp_path / "mae.pth")
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in model.state_dict().items())
    stand_in = read_checkpoint(tmp_path / "mae.pth")["args"]
    assert type(stand_in) is StandIn and type(stand_in.state["lr"]) is StandIn


def test_the_memory_of_npid_in_a_module_that_was_saved_whole(tmp_path, monkeypatch):
    for name in ("lib", "lib.NCEAverage"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module_class = type("NCEAverage", (torch.nn.Module,), {"__module__": "lib.NCEAverage"})
    sys.modules["lib.NCEAverage"].NCEAverage = module_class
    module = module_class()
    module.register_buffer("memory", torch.rand(7, 4))
    module.register_buffer("params", torch.rand(5))
    torch.save({"state_dict": {"module.fc.weight": torch.zeros(4, 8)}, "lemniscate": module}, tmp_path / "npid.pth")
    state_dict = read_state_dict(tmp_path / "npid.pth")
    assert set(state_dict) == {"module.fc.weight", "lemniscate.memory", "lemniscate.params"}
    layout = recognise(state_dict, "authors", "npid")
    assert torch.equal(layout.to_ours(state_dict)["memory.features"], module.memory)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (cut_safetensors, "is cut off or no safetensors file"),
        (lambda path: path.write_bytes(b""), "is cut off or no safetensors file"),
        (lambda path: path.write_bytes(b"\xff" * 64), "is cut off or no safetensors file"),
    ],
)
def test_damaged_safetensors(write, sentence, tmp_path):
    write(tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match=sentence):
        load_foreign_checkpoint(mae(), tmp_path / "checkpoint.safetensors", "authors")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="which is a folder: name the file in it"):
        load_foreign_checkpoint(mae(), tmp_path, "authors")


CHANGES = {
    "NaN": (lambda tensor: tensor.fill_(float("nan")), r"holds NaN or infinity in 1 of \d+ tensors .neck.embed.weight"),
    "infinite": (lambda tensor: tensor.fill_(float("-inf")), "NaN or infinity"),
    "complex": (
        lambda tensor: tensor.to(torch.complex64),
        r"of another type \(1\): neck.embed.weight: torch.complex64",
    ),
    "bool": (lambda tensor: tensor > 0, r"neck.embed.weight: torch.bool instead of torch.float32"),
    "integer": (lambda tensor: tensor.long(), "torch.int64 instead of torch.float32"),
    "of no size": (lambda tensor: tensor.sum(), r"neck.embed.weight: \(\) instead of"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_tensors_that_are_no_weights(name):
    change, sentence = CHANGES[name]
    model = mae()
    before = model.neck.embed.weight.clone()
    state_dict = {key: tensor.clone() for key, tensor in mae().state_dict().items()}
    state_dict["neck.embed.weight"] = change(state_dict["neck.embed.weight"])
    with pytest.raises(ValueError, match=sentence):
        load_strictly(model, state_dict)
    assert torch.equal(model.neck.embed.weight, before)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float64])
def test_other_precisions_are_weights(dtype):
    state_dict = {key: tensor.to(dtype) for key, tensor in mae().state_dict().items()}
    load_strictly(mae(), state_dict)


def test_what_overflows_in_the_models_precision_is_not_finite():
    state_dict = {key: tensor.double() for key, tensor in mae().state_dict().items()}
    state_dict["neck.embed.bias"][0] = 1e300
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 of \d+ tensors \(neck\.embed\.bias\)"):
        load_strictly(mae(), state_dict)


def test_two_keys_with_one_place():
    layout = Layout("source", None, [("x.c", "c"), ("y.c", "c"), ("qkv.", ("q.", "k.", "v."), FUSED), ("q.", "q.")])
    with pytest.raises(ValueError, match=r"two of its tensors would both become c: x\.c, y\.c"):
        layout.to_ours({"x.c": torch.zeros(1), "y.c": torch.ones(1)})
    with pytest.raises(ValueError, match=r"both become q\.bias"):
        layout.to_ours({"qkv.bias": torch.zeros(3), "q.bias": torch.zeros(1)})


# Folders of transformers


def damage(change):
    def write(folder):
        ViTForMaskedImageModeling(ViTConfig(**VIT, encoder_stride=4)).save_pretrained(folder)
        change(folder)

    return write


def set_config(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"a": Opaque()}, folder / "pytorch_model.bin")


BAD_FOLDERS = {
    "missing": (lambda folder: None, OSError, "there is no model folder"),
    "a file": (lambda folder: folder.write_text("x"), (OSError, ValueError), "cannot be loaded"),
    "empty": (lambda folder: folder.mkdir(), (OSError, ValueError), "cannot be loaded"),
    "cut weights": (
        damage(lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100])),
        ValueError,
        "cannot be loaded: .*incomplete",
    ),
    "no weights": (damage(lambda f: (f / "model.safetensors").unlink()), OSError, "cannot be loaded: .*no file named"),
    "pickled weights": (damage(pickled), ValueError, "Python objects besides tensors"),
    "no JSON": (damage(lambda f: (f / "config.json").write_text("{")), OSError, "not a valid JSON"),
    "a list for a configuration": (damage(lambda f: (f / "config.json").write_text("[]")), ValueError, "cannot be"),
    "other shapes": (damage(set_config(hidden_size=32)), ValueError, "other shapes than its config.json says"),
    "a wrong type": (damage(set_config(hidden_size="x")), ValueError, "cannot be loaded: .*'hidden_size'"),
    "another model": (lambda f: BertConfig().save_pretrained(f), ValueError, "cannot be loaded: .*BertConfig"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_folders_that_are_no_model(name, tmp_path):
    write, error_class, sentence = BAD_FOLDERS[name]
    folder = tmp_path / "model"
    write(folder)
    with pytest.raises(error_class, match=sentence) as error:
        load_pretrained(AutoModelForMaskedImageModeling, folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value) and "\x1b" not in str(error.value)


# The command line


def run_example(monkeypatch, name, **arguments):
    monkeypatch.setattr(sys, "argv", [name, *(f"--{key}={value}" for key, value in arguments.items())])
    runpy.run_path(str(REPOSITORY / "examples" / name), run_name="__main__")


@pytest.mark.parametrize("what", ["a finished run", "one file", "a file"])
def test_a_conversion_writes_nothing_over(what, tmp_path, monkeypatch):
    output_dir = tmp_path / "out"
    if what == "a file":
        output_dir.write_text("mine")
    else:
        output_dir.mkdir()
        names = ["config.json", "model.safetensors", "metrics.jsonl"] if what == "a finished run" else ["notes.txt"]
        for name in names:
            (output_dir / name).write_text("mine")
    torch.save({"model": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(SystemExit, match="error: --output_dir .* exists already, and nothing is written over"):
        run_example(
            monkeypatch,
            "convert_checkpoint.py",
            checkpoint=tmp_path / "checkpoint.pth",
            source="authors",
            recipe="mae-vit-tiny-digits",
            output_dir=output_dir,
        )
    kept = [output_dir] if what == "a file" else sorted(output_dir.iterdir())
    assert kept and all(path.read_text() == "mine" for path in kept)


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps({"model": {"model_type": "mae", **TINY}}))
    torch.save({"model": {"cls_token": torch.zeros(1, 1, 16)}}, tmp_path / "checkpoint.pth")
    arguments = {
        "checkpoint": tmp_path / "checkpoint.pth",
        "source": "authors",
        "recipe": recipe,
        "output_dir": tmp_path / "runs" / "out",
    }
    with pytest.raises(SystemExit, match="error: the checkpoint does not fit this MAEModel"):
        run_example(monkeypatch, "convert_checkpoint.py", **arguments)
    monkeypatch.setattr("ssl_hub.conversion.sources.load_strictly", lambda *args: None)

    def full(*args, **kwargs):
        (args[2] / "config.json").write_text("{}")
        raise OSError("No space left on device")

    monkeypatch.setattr("ssl_hub.commands.convert.save_for_sharing", full)
    with pytest.raises(SystemExit, match="error: No space left"):
        run_example(monkeypatch, "convert_checkpoint.py", **arguments)
    assert list((tmp_path / "runs").iterdir()) == []


# Recipes of strangers


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
BAD_RECIPES = {
    "a bomb": (BOMB, "the alias \\*a0: write it out .*line 2"),
    "an alias to itself": ("model: &a [*a]", r"the alias \*a: write it out"),
    "nested too deeply": ("[" * 20_000, "nested too deeply"),
    "a digit bomb": ("model: " + "9" * 10_000, "is not YAML"),
    "not UTF-8": (b"\xff\xfe\xfa", "is no text in UTF-8"),
    "control characters": ("\x1b[31m", "is not YAML"),
    "an object of Python": ("model: !!python/object/apply:os.getcwd []", "is not YAML"),
}


@pytest.mark.parametrize("name", BAD_RECIPES)
def test_recipes_that_are_none(name, tmp_path):
    content, sentence = BAD_RECIPES[name]
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=sentence) as error:
        load_recipe(str(path))
    assert len(str(error.value)) < 500 and "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_values_on_the_command_line_have_no_aliases_either():
    with pytest.raises(ValueError, match=r"the alias \*a"):
        parse_overrides("mask_ratio=[&a [1], *a]")
    with pytest.raises(ValueError, match=r"--evaluation .*the alias \*a"):
        PretrainingArguments(output_dir="out", evaluation="[&a {type: knn}, *a]")
