"""A run that was killed, at any moment, ends like one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from test_trainer import build_trainer, metrics_of
from transformers import AutoModel, ViTConfig, ViTModel

from ssl_hub.training import checkpointing
from ssl_hub.training.checkpointing import CheckpointWriter, DamagedCheckpointError, list_checkpoints, verify_checkpoint

ROOT = Path(__file__).parents[2]
STEPS = 30
CHECKPOINT_FILES = (
    *("config.json", "model.safetensors", "preprocessor_config.json"),
    *("optimizer.safetensors", "trainer_state.json", "manifest.json"),
)


@pytest.fixture(autouse=True)
def forget_the_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


def command(output_dir, num_workers, *more):
    overrides = {
        "backbone_config.hidden_size": 32,
        "backbone_config.num_hidden_layers": 2,
        "backbone_config.intermediate_size": 64,
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_intermediate_size": 64,
    }
    arguments = {
        "recipe": "mae-vit-tiny-digits",
        "config_overrides": ",".join(f"{name}={value}" for name, value in overrides.items()),
        "output_dir": output_dir,
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 2,  # 22 steps an epoch: the run goes on into a second one
        "max_train_steps": STEPS,
        "warmup_steps": 5,
        "checkpointing_steps": 5,
        "logging_steps": 3,
        "eval_steps": 16,
        "dataloader_num_workers": num_workers,
    }
    options = [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]
    return [sys.executable, "examples/run_pretrain.py", *options, *more]


def start(*args):
    """Starts a run; its output goes to `OUTPUT_DIR.log`."""
    with Path(f"{args[0]}.log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command(*args), cwd=ROOT, env=environment, stdout=log, stderr=log)


def finish(process, output_dir):
    assert process.wait(timeout=240) == 0, Path(f"{output_dir}.log").read_text()[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of three runs: never killed, killed with no worker, killed with two."""
    whole, *killed = (tmp_path_factory.mktemp("runs") / name for name in ("whole", "0", "2"))
    processes = [start(whole, 0), *(start(folder, int(folder.name)) for folder in killed)]
    for folder, process in zip(killed, processes[1:], strict=True):
        lines = random.randint(4, 9)  # two of step 0, so that there is a checkpoint  # noqa: S311
        metrics = folder / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, Path(f"{folder}.log").read_text()[-3000:]
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.2))  # noqa: S311
        process.kill()
        assert process.wait() == -signal.SIGKILL
    resumed = [start(folder, int(folder.name), "--resume_from_checkpoint", "latest") for folder in killed]
    for folder, process in zip((whole, *killed), (processes[0], *resumed), strict=True):
        finish(process, folder)
    return whole, *killed


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_and_resumed_equals_never_killed(runs, num_workers):
    whole, killed = runs[0], runs[1 + (num_workers == 2)]
    log = Path(f"{killed}.log").read_text()
    assert "resuming from" in log
    assert metrics_of(killed) == metrics_of(whole)
    assert metrics_of(whole)[-1]["step"] == STEPS
    for name in ("model.safetensors", f"checkpoint-{STEPS}/model.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), log
    expected, optimizer = (load_file(run / f"checkpoint-{STEPS}/optimizer.safetensors") for run in (whole, killed))
    assert expected.keys() == optimizer.keys()
    assert all(torch.equal(tensor, optimizer[name]) for name, tensor in expected.items())
    assert [path.name for path in list_checkpoints(killed)] == [f"checkpoint-{STEPS - 5}", f"checkpoint-{STEPS}"]


class Killed(BaseException):
    """Ends a run at once, as kill -9 does: nothing catches it."""


def kill_at_call(monkeypatch, target, name, number):
    """Lets the `number`-th call of `target.name` that writes a checkpoint, and all later ones, end the process."""
    calls, original = [], getattr(target, name)

    def call(*args, **kwargs):
        calls.extend([name] * (threading.current_thread() is not threading.main_thread()))
        if len(calls) >= number:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, call)


def train(output_dir, resume=None, **args):
    AcceleratorState._reset_state(reset_partial_state=True)
    # Checkpoints fall between two logs.
    args = {"max_train_steps": 6, "checkpointing_steps": "2", "logging_steps": 3, "save_total_limit": None} | args
    trainer = build_trainer(output_dir, resume_from_checkpoint=resume, **args)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


@pytest.fixture
def run_folder(whole_run, tmp_path):
    """A copy of a run with the checkpoints 2, 4 and 6, without what it left at the end."""
    for path in [*whole_run.glob("checkpoint-*/*"), whole_run / "metrics.jsonl"]:
        copy = tmp_path / path.relative_to(whole_run)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path


def assert_same_end(folder, whole_run):
    assert metrics_of(folder) == metrics_of(whole_run)
    assert (folder / "model.safetensors").read_bytes() == (whole_run / "model.safetensors").read_bytes()
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert not list(folder.glob("*.unfinished"))


# Calls of the third save.
@pytest.mark.parametrize(
    ("target", "name", "number", "left"),
    [
        (checkpointing, "save_file", 3, "2 4 6.unfinished"),
        (Path, "write_text", 6, "2 4 6.unfinished"),  # the manifest is not there yet
        (Path, "rename", 3, "2 4 6.unfinished"),  # all files are
    ],
)
def test_killed_while_saving(tmp_path, whole_run, monkeypatch, caplog, target, name, number, left):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_call(patch, target, name, number)
        train(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in left.split()]
    assert not caplog.records
    train(tmp_path, "latest")
    assert_same_end(tmp_path, whole_run)


def test_a_checkpoint_is_written_beside_the_steps(tmp_path, whole_run, monkeypatch):
    """It holds what was there when its step ended, though the next one ends before anything is written."""
    args = {"max_train_steps": 6, "checkpointing_steps": "2", "logging_steps": 3, "save_total_limit": None}
    trainer, next_ended = build_trainer(tmp_path, **args), threading.Event()
    end_step, waited = trainer.model.end_step, []

    def end(progress):
        end_step(progress)
        if progress.step in (3, 5):
            next_ended.set()

    def write_late(*args, original=checkpointing._write_checkpoint):
        if len(waited) < 2:
            waited.append(next_ended.wait(60))
            next_ended.clear()
        original(*args)

    trainer.model.end_step = end
    monkeypatch.setattr(checkpointing, "_write_checkpoint", write_late)
    trainer.train()
    assert waited == [True, True]
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6"):
        verify_checkpoint(tmp_path / name)
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (tmp_path / name / file).read_bytes() == (whole_run / name / file).read_bytes(), (name, file)


def test_killed_while_removing_an_old_checkpoint(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_call(patch, checkpointing.shutil, "rmtree", 3)  # the first two make room and find nothing
        train(tmp_path, save_total_limit=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4"]
    assert list(tmp_path.glob("checkpoint-2.unfinished/*"))
    train(tmp_path, "latest", save_total_limit=1)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut off": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "flipped byte": lambda folder: flip_byte(folder / "optimizer.safetensors"),
    "missing file": lambda folder: (folder / "trainer_state.json").unlink(),
    "cut manifest": lambda folder: os.truncate(folder / "manifest.json", 100),
    "flipped byte in the manifest": lambda folder: flip_byte(folder / "manifest.json"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_latest_falls_back_from_a_damaged_checkpoint(run_folder, whole_run, caplog, damage):
    DAMAGES[damage](run_folder / "checkpoint-6")
    with pytest.raises(DamagedCheckpointError, match="checkpoint-6"):
        train(run_folder, str(run_folder / "checkpoint-6"))
    train(run_folder, "latest")
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings[0].startswith("not resuming from checkpoint-6: ")
    assert any(word in warnings[0] for word in ("cut off or changed", "is missing", "is damaged", "has no manifest"))
    aside = run_folder / "superseded-1"
    assert warnings[1] == f"the run continues from step 4, so checkpoint-6 moved to {aside}"
    assert_same_end(run_folder, whole_run)


def test_no_whole_checkpoint(run_folder):
    for checkpoint in list_checkpoints(run_folder):
        flip_byte(checkpoint / "model.safetensors")
    before = sorted(run_folder.rglob("*"))
    with pytest.raises(DamagedCheckpointError, match=r"none of the 3 checkpoints .* is whole; to begin anew, give ano"):
        train(run_folder, "latest")
    assert sorted(run_folder.rglob("*")) == before


def test_an_earlier_checkpoint_by_its_path(run_folder, whole_run, caplog):
    """The later ones move: they would count as the newest, and what is saved next as the oldest."""
    train(run_folder, str(run_folder / "checkpoint-2"), save_total_limit=2)
    aside = run_folder / "superseded-1"
    assert f"continues from step 2, so checkpoint-4, checkpoint-6 moved to {aside}" in caplog.text
    for name in ("checkpoint-4", "checkpoint-6"):
        verify_checkpoint(aside / name)
    assert metrics_of(aside) == metrics_of(whole_run)
    assert [path.name for path in list_checkpoints(run_folder)] == ["checkpoint-4", "checkpoint-6"]
    assert metrics_of(run_folder) == metrics_of(whole_run)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(DamagedCheckpointError, match=r"vit is no checkpoint of ssl_hub: it has no manifest\.json"):
        train(tmp_path / "run", str(tmp_path / "vit"))
    with pytest.raises(DamagedCheckpointError, match=r"there is no checkpoint folder .*nowhere"):
        train(tmp_path / "run", str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_architecture(run_folder):
    message = (
        r"checkpoint-6 is a whole checkpoint, but of another model or optimizer than this run's.*\(and \d+ more\)$"
    )
    with pytest.raises(ValueError, match=message):
        train(run_folder, "latest", model_overrides="backbone_config.hidden_size=32")
    with pytest.raises(ValueError, match=message):
        train(run_folder, "latest", model_overrides="decoder_hidden_size=64")


def test_latest_without_a_checkpoint_begins_anew(tmp_path, whole_run, monkeypatch, caplog):
    caplog.set_level("INFO")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_call(patch, checkpointing, "save_file", 1)
        train(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # killed while it wrote
    train(tmp_path, "latest")
    assert "no checkpoint in" in caplog.text
    assert_same_end(tmp_path, whole_run)


def test_changed_arguments_are_named(run_folder, caplog):
    train(run_folder, str(run_folder / "checkpoint-4"), weight_decay=0.3, model_overrides="mask_ratio=0.5")
    assert "weight_decay 0.05 -> 0.3" in caplog.text
    assert "mask_ratio 0.75 -> 0.5" in caplog.text


def test_a_finished_run_goes_on_when_it_gets_more_steps(run_folder):
    train(run_folder, "latest", max_train_steps=8)
    assert [line["step"] for line in metrics_of(run_folder) if "loss" in line][-1] == 8
    assert list_checkpoints(run_folder)[-1].name == "checkpoint-8"


def test_the_first_checkpoint_finds_its_memory_taken(tmp_path, monkeypatch):
    seen, save = [], CheckpointWriter.save

    def watched(self, *args, **kwargs):
        self.wait()
        seen.append(dict(self.copies))
        save(self, *args, **kwargs)
        seen.append(dict(self.copies))

    monkeypatch.setattr(CheckpointWriter, "save", watched)
    build_trainer(tmp_path, max_train_steps=2, checkpointing_steps="2").train()
    taken, used = seen
    assert taken and taken.keys() == used.keys()
    assert all(used[key] is memory for key, memory in taken.items())


def test_epochs_end_where_checkpoints_were_written_before(tmp_path):
    """Resuming at the end of an epoch must not write its checkpoint again."""
    train(tmp_path, max_train_steps=4, checkpointing_steps="epoch")  # an epoch
    train(tmp_path, "latest", max_train_steps=8, checkpointing_steps="epoch")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-8"]


def test_a_checkpoint_is_a_model_and_files_that_no_one_unpickles(whole_run):
    checkpoint = whole_run / "checkpoint-6"
    assert {path.name for path in checkpoint.iterdir()} == set(CHECKPOINT_FILES)
    verify_checkpoint(checkpoint)
    state = load_file(checkpoint / "model.safetensors")
    loaded = AutoModel.from_pretrained(checkpoint).state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)
    assert json.loads((checkpoint / "trainer_state.json").read_text())["step"] == 6


@pytest.mark.parametrize(("limit", "kept"), [(None, [1, 2, 3, 4, 5]), (1, [5]), (3, [3, 4, 5])])
def test_save_total_limit(tmp_path, limit, kept):
    train(tmp_path, max_train_steps=5, checkpointing_steps="1", save_total_limit=limit)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in kept]
