"""Runs that are asked for what cannot be, are interrupted, or meet a damaged folder."""

import json
import logging
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import constants
from processes import run_processes
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining

from ssl_hub import MAEModel, SwAVModel
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.hub.publishing import PublishError
from ssl_hub.modules.memories import InstanceMemory, OnlineClusterMemory, Queue
from ssl_hub.training import checkpointing, run_report
from ssl_hub.training.arguments import PretrainingArguments, parse_arguments
from ssl_hub.training.checkpointing import list_checkpoints, optimizer_state
from ssl_hub.training.recipes import Recipe, load_recipe
from ssl_hub.training.run_log import NonFiniteLossError
from ssl_hub.training.timing import TIMINGS
from ssl_hub.training.trainer import SSLTrainer

ROOT = Path(__file__).parents[2]
BACKBONE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
DECODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
MAE = Recipe(
    "tiny",
    model={
        "model_type": "mae",
        "backbone_config": BACKBONE | {"intermediate_size": 32},
        **{f"decoder_{name}": value for name, value in DECODER.items()},
    },
    views=[{"size": 16, "scale": [0.6, 1.0]}],
)
MOCO = load_recipe("moco-digits")


@pytest.fixture(autouse=True, scope="module")
def no_pictures():
    """They take longer than the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_report.RunReport, "_draw", lambda self: None)
        yield


@pytest.fixture(autouse=True)
def forget_the_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


@cache
def digits(split="train"):
    return load_image_dataset("digits", split)


def build(output_dir, recipe=MAE, overrides=None, images=32, eval_dataset=None, **args):
    """A trainer on 32 digits, 4 steps an epoch."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    model = AutoModelForPreTraining.from_config(recipe.build_config(overrides))
    args = {
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "max_train_steps": 6,
        "logging_steps": 1,
        "checkpointing_steps": "2",
        "save_total_limit": None,
        "evaluation": "[]",
    } | args
    dataset = digits().select(range(images))
    args = PretrainingArguments(output_dir=str(output_dir), **args)
    return SSLTrainer(model, args, dataset, recipe.views, eval_dataset)


def train(output_dir, resume=None, **args):
    trainer = build(output_dir, resume_from_checkpoint=resume, **args)
    trainer.train()
    return trainer


def copy_run(source, target):
    """The checkpoints and the metrics of a run, without what it left at its end."""
    for path in [*source.glob("checkpoint-*/*"), source / "metrics.jsonl"]:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True, parents=True)
        copy.write_bytes(path.read_bytes())
    return target


def metrics_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def run_example(monkeypatch, *options):
    """Runs `examples/run_pretrain.py` in this process; returns what it exits with."""
    monkeypatch.setattr(sys, "argv", ["run_pretrain.py", *map(str, options)])
    monkeypatch.setattr(logging, "basicConfig", lambda **kwargs: None)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "examples" / "run_pretrain.py"), run_name="__main__")
    return end.value.code


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


@pytest.fixture
def run_folder(whole_run, tmp_path):
    """A copy of a run with the checkpoints 2, 4 and 6."""
    return copy_run(whole_run, tmp_path / "run")


def assert_same_end(folder, whole_run):
    assert metrics_of(folder) == metrics_of(whole_run)
    assert (folder / "model.safetensors").read_bytes() == (whole_run / "model.safetensors").read_bytes()


# A resume with other arguments


@pytest.mark.parametrize(
    ("optim", "changes", "settings"),
    [
        ("adamw", {"learning_rate": 5e-4}, {}),
        ("adamw", {"adam_beta1": 0.5, "adam_beta2": 0.6, "adam_epsilon": 1e-3}, {"betas": (0.5, 0.6), "eps": 1e-3}),
        ("adamw", {"weight_decay": 0.3}, {}),
        ("adamw", {"decay_norm_and_bias": True}, {}),  # one group in place of two
        ("sgd", {"sgd_momentum": 0.5}, {"momentum": 0.5}),
        ("sgd", {"sgd_momentum": 0.0}, {"momentum": 0.0}),
        ("lars", {"sgd_momentum": 0.5, "weight_decay": 0.0}, {"momentum": 0.5}),
    ],
)
def test_a_resume_takes_the_optimizers_settings_from_its_arguments(tmp_path, optim, changes, settings):
    first = train(tmp_path / "run", optim=optim, max_train_steps=2)
    before = optimizer_state(first.model, first.optimizer)
    assert before
    resumed = build(tmp_path / "run", resume_from_checkpoint="latest", optim=optim, **changes)
    resumed._start()
    after = optimizer_state(resumed.model, resumed.optimizer)
    assert after.keys() == before.keys()
    assert all(torch.equal(torch.as_tensor(after[name]), torch.as_tensor(value)) for name, value in before.items())
    new = build(tmp_path / "new", optim=optim, **changes)
    for group, expected in zip(resumed.optimizer.param_groups, new.optimizer.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in expected.items() if k != "params"}
        assert all(group[name] == value for name, value in settings.items())
    AcceleratorState._reset_state(reset_partial_state=True)
    train(tmp_path / "run", "latest", optim=optim, **changes)


@pytest.mark.parametrize("optim", ["adamw", "sgd", "lars"])
def test_a_resumed_resnet_trains_on_in_its_memory_format(tmp_path, optim):
    """Fused optimizers go through a parameter and its state side by side, as they lie in memory."""
    args = {"optim": optim, "max_train_steps": 4, "checkpointing_steps": "2", "learning_rate": 1e-2}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    build(whole, MOCO, "queue_size=64", **args).train()
    trainer = build(resumed, MOCO, "queue_size=64", resume_from_checkpoint=str(whole / "checkpoint-2"), **args)
    kernel = next(p for p in trainer.model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    trainer.train()
    for file in ("model.safetensors", "optimizer.safetensors"):
        tensors = load_file(resumed / "checkpoint-4" / file)
        assert all(torch.equal(tensors[n], t) for n, t in load_file(whole / "checkpoint-4" / file).items()), file


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"optim": "sgd"}, "with optim adamw and this run has sgd: what the optimizer remembers is of no use"),
        (
            {"per_device_train_batch_size": 4},
            "with global_batch_size 8 and this run has 4: .*counted in batches; resume",
        ),
        ({"images": 24}, "with images 32 and this run has 24: .*--model_name_or_path .*checkpoint-6"),
        ({"max_train_steps": 5}, r"is of step 6 and the run ends at 5: give more --max_train_steps"),
    ],
)
def test_what_a_run_cannot_change_on_its_way_is_refused_before_anything_is_loaded(run_folder, args, message):
    before = sorted(run_folder.rglob("*"))
    trainer = build(run_folder, resume_from_checkpoint="latest", **args)
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert all(torch.equal(weights[name], tensor) for name, tensor in trainer.model.state_dict().items())
    assert sorted(run_folder.rglob("*")) == before


def test_the_same_batch_in_other_parts_is_the_same_run(run_folder):
    trainer = train(
        run_folder, str(run_folder / "checkpoint-4"), per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert trainer.step == 6


@pytest.mark.parametrize("recipe", [MAE, MOCO])
def test_the_advice_after_a_nan_works(tmp_path, recipe):
    overrides = None if recipe is MAE else "queue_size=64"
    options = {"recipe": recipe, "overrides": overrides, "checkpointing_steps": "1", "optim": "sgd"}
    train(tmp_path, max_train_steps=2, **options)
    with pytest.raises(NonFiniteLossError) as error:
        train(tmp_path, "latest", learning_rate=1e30, **options)
    good = re.search(
        r"The last good checkpoint is (\S+)\. Resume from it with --resume_from_checkpoint (\S+)\. ", str(error.value)
    )
    assert good[1] == good[2]
    for checkpoint in list_checkpoints(tmp_path):
        assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "model.safetensors").values())
    trainer = train(tmp_path, good[2], learning_rate=1e-3, **options)
    assert trainer.step == 6
    assert all(line["loss"] == line["loss"] < 1e9 for line in metrics_of(tmp_path))


# Tensors that are not finite


def make_bad(trainer, what):
    if what == "running statistic":
        next(b for n, b in trainer.model.named_buffers() if n.endswith("running_var")).fill_(float("nan"))
    elif what == "queue":
        trainer.model.memory.vectors[3] = float("inf")
    elif what == "optimizer":
        state = next(iter(trainer.optimizer.state.values()))
        state["exp_avg_sq"][0] = float("inf")  # its parameter would never move again


@pytest.mark.parametrize("what", ["running statistic", "queue", "optimizer"])
def test_nothing_that_is_not_finite_is_saved(tmp_path, what):
    trainer = build(tmp_path, MOCO, "queue_size=64", checkpointing_steps="2", logging_steps=50)
    end_step = trainer.model.end_step

    def spoil(progress):
        end_step(progress)
        if progress.step == 4:
            make_bad(trainer, what)

    trainer.model.end_step = spoil
    with pytest.raises(
        NonFiniteLossError, match=r"not finite after step 4: .*The last good checkpoint is \S+checkpoint-2\."
    ):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]


def spoil_file(path):
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim)
    tensors[name].flatten()[0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    write_manifest(path.parent)
    return name


def write_manifest(checkpoint):
    paths = [path for path in checkpoint.iterdir() if path.name != "manifest.json"]
    manifest = {path.name: checkpointing._fingerprint(path) for path in paths}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_nothing_that_is_not_finite_is_resumed_from(run_folder, file):
    name = spoil_file(run_folder / "checkpoint-6" / file)
    with pytest.raises(ValueError, match=f"checkpoint-6 holds NaN or infinity in 1 of .*{re.escape(name)}"):
        train(run_folder, "latest", max_train_steps=8)


def test_weights_that_are_not_finite_do_not_load(whole_run, run_folder, monkeypatch):
    checkpoint = run_folder / "checkpoint-6"
    AutoModel.from_pretrained(checkpoint)
    spoil_file(checkpoint / "model.safetensors")
    with pytest.raises(
        ValueError, match="checkpoint .*checkpoint-6 holds NaN or infinity .*take an earlier checkpoint"
    ):
        MAEModel.from_pretrained(checkpoint)
    options = (
        "--recipe",
        "mae-vit-tiny-digits",
        "--output_dir",
        run_folder / "new",
        "--model_name_or_path",
        checkpoint,
    )
    code = run_example(monkeypatch, *options)
    assert code.startswith("error: ") and "holds NaN or infinity" in code and "\n" not in code


# Warm-up, clipping, LARS


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ("--max_train_steps 100", 100),  # it fits: as the recipe says
        ("--max_train_steps 25", 1),  # of 100 in 2500
        ("--max_train_steps 25 --warmup_steps 7", 7),
        ("--max_train_steps 25 --warmup_steps 25", 25),
        ("--max_train_steps 25 --warmup_steps 26", None),
        ("--max_train_steps 25 --warmup-steps=26", None),
    ],
)
def test_a_warmup_longer_than_the_run(tmp_path, caplog, words, steps):
    check_warmup(tmp_path, caplog, "mae-vit-tiny-digits", words, steps)


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ("", 160),  # 40 epochs of 300, with 4 steps an epoch
        ("--num_train_epochs 100", 160),
        ("--num_train_epochs 30", 16),
        ("--max_train_steps 30", 4),
        ("--num_train_epochs 30 --warmup_epochs 2", 8),
        ("--num_train_epochs 30 --warmup_epochs 31", None),
        ("--max_train_steps 30 --warmup_epochs 40", None),
    ],
)
def test_a_warmup_in_epochs_longer_than_the_run(tmp_path, caplog, words, steps):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "extends: mae-vit-tiny-digits\ntraining: {max_train_steps: null, num_train_epochs: 300, "
        "warmup_steps: null, warmup_epochs: 40}"
    )
    check_warmup(tmp_path, caplog, path, words, steps)


def check_warmup(tmp_path, caplog, recipe, words, steps):
    words = [*words.split(), "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "run")]
    _, _, _, args = parse_arguments(["--recipe", str(recipe), *words])
    model = AutoModelForPreTraining.from_config(MAE.build_config())
    dataset = digits().select(range(32))
    refusal = pytest.raises(ValueError, match=r"the warm-up of \d+ steps is longer than the run of \d+")
    with refusal if steps is None else nullcontext():
        trainer = SSLTrainer(model, args, dataset, MAE.views)
    if steps is None:
        return
    rates = [trainer.schedule.factor(step) for step in range(trainer.total_steps)]
    assert rates.index(max(rates)) in (steps, trainer.total_steps - 1)
    assert ("shortened" in caplog.text) is (trainer.args.warmup_steps not in (args.warmup_steps, None))
    if "shortened" in caplog.text:
        assert trainer.args.warmup_steps == steps


def test_a_max_grad_norm_of_0_clips_nothing(tmp_path, whole_run):
    train(tmp_path, max_grad_norm=0.0)
    assert_same_end(tmp_path, whole_run)


def test_lars_without_weight_decay_is_lars(tmp_path):
    ends = []
    for number, weight_decay in enumerate((0.0, 1e-12)):
        options = {"optim": "lars", "learning_rate": 1.0, "weight_decay": weight_decay, "max_train_steps": 2}
        ends.append(train(tmp_path / str(number), **options).model.state_dict())
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], msg=name)


# Processes, precision, the queue's size


def test_processes_that_would_each_train_alone_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ValueError, match=r"started 2 processes \(WORLD_SIZE\), and Accelerate sees 1.*ACCELERATE_USE_CPU"
    ):
        build_without_processes(tmp_path / "run", monkeypatch)
    assert not (tmp_path / "run").exists()


def build_without_processes(output_dir, monkeypatch):
    """Without the variables of a launcher that Accelerate would begin to talk to other processes by."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    return build(output_dir)


def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="fp16 needs a GPU and this run is on the CPU: give --mixed_precision bf16 or no"
    ):
        build(tmp_path / "run", mixed_precision="fp16")


def test_swavs_queue_is_shared_by_the_processes(monkeypatch):
    model = SwAVModel(load_recipe("swav-digits").build_config("queue_size=100"))
    model.begin_run(10)
    monkeypatch.setattr(sys.modules[SwAVModel.__module__], "num_processes", lambda: 3)
    with pytest.raises(
        ValueError, match="queue_size must be a multiple of the number of processes, 3, .* got 100.* 99"
    ):
        model.begin_run(10)


# One bad batch


def memories():
    queue = Queue(6, 4)
    queue.vectors.copy_(queue.random_vectors())
    instances = InstanceMemory(6, 4, 0.5)
    instances.start(6)
    clusters = OnlineClusterMemory(2, 4, 0.5)
    clusters.init_buffers()
    clusters.start(6)
    return {
        "queue": (queue, queue.enqueue),
        "instances": (instances, lambda rows: instances.update(torch.arange(3), rows)),
        "clusters": (clusters, lambda rows: clusters.update(torch.arange(3), rows)),
    }


@pytest.mark.parametrize("name", memories())
def test_a_bad_batch_does_not_stay_in_a_memory(name):
    memory, update = memories()[name]
    rows = torch.randn(3, 4)
    update(rows)
    before = [buffer.clone() for buffer in memory.buffers()]
    rows[1] = float("nan")
    update(rows)
    after = list(memory.buffers())
    assert all(buffer.isfinite().all() for buffer in after)
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))  # the good rows are in


def test_a_bad_batch_does_not_stay_in_swavs_queue():
    model = SwAVModel(load_recipe("swav-digits").build_config("queue_size=8")).train()
    images = [torch.randn(4, 3, 16, 16) for _ in range(model.num_views)]
    images[0][0] = float("nan")
    model(images, mode="loss")
    assert model.memory.vectors.isfinite().all()


# Two runs in one folder


@contextmanager
def another_process_in(folder):
    """Yields the id of a process that holds the lock of a folder."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        with checkpointing.lock_output_dir(folder):
            os.write(writer, b"ready")
            time.sleep(120)
        os._exit(0)
    try:
        os.read(reader, 5)
        yield process
    finally:
        # What is dead holds nothing, though its file stays.
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_a_folder_that_another_run_writes_to(run_folder, whole_run):
    with another_process_in(run_folder) as process:
        before = sorted(run_folder.rglob("*"))
        with pytest.raises(BlockingIOError, match=f"is in use by another run, process {process} on .*--output_dir"):
            train(run_folder, "latest")
        assert sorted(run_folder.rglob("*")) == before
    assert (run_folder / ".lock").exists()
    train(run_folder, "latest")
    assert not (run_folder / ".lock").exists()
    assert_same_end(run_folder, whole_run)


# Signals


def signal_at(trainer, step, numbers):
    end_step = trainer.model.end_step

    def end(progress):
        end_step(progress)
        if progress.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    trainer.model.end_step = end


@pytest.fixture
def as_in_a_terminal():
    """Tests that run under nohup, or in the background of a shell, ignore signals; and so would what they start."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("as_in_a_terminal")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_lets_the_step_end_and_saves(tmp_path, whole_run, capsys, name):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    trainer = build(tmp_path)
    # Twice at once, as a launcher passes on what the terminal has sent to all.
    signal_at(trainer, 3, [getattr(signal, name)] * 2)
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == 128 + getattr(signal, name)
    line = f"stopped by {name} after step 3 of 6: to resume from {tmp_path}/checkpoint-3, add --resume_from_checkpoint"
    assert line in capsys.readouterr().out
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == handlers
    trainer = train(tmp_path, "latest")
    assert_same_end(tmp_path, whole_run)


def test_a_signal_where_a_checkpoint_is_due_or_the_run_ends(tmp_path, whole_run):
    trainer = build(tmp_path)
    signal_at(trainer, 4, [signal.SIGTERM])
    with pytest.raises(SystemExit):
        trainer.train()
    trainer = build(tmp_path, resume_from_checkpoint="latest")
    signal_at(trainer, 6, [signal.SIGTERM])
    trainer.train()  # done anyway
    assert_same_end(tmp_path, whole_run)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


@pytest.mark.usefixtures("as_in_a_terminal")
def test_a_second_signal_ends_the_process_at_once(tmp_path, monkeypatch):
    signals = build(tmp_path).signals
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((number, signal.getsignal(number))))
    with signals:
        signals._note(signal.SIGTERM, None)
        signals._note(signal.SIGTERM, None)
        assert not sent and signals.agreed() == signal.SIGTERM
        monkeypatch.setattr(time, "monotonic", lambda: signals.received_at + 5)
        signals._note(signal.SIGINT, None)
    assert sent == [(signal.SIGINT, signal.SIG_DFL)]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_signal_to_all_processes_of_a_run_with_workers(tmp_path):
    """As a terminal or a cluster sends it: to the workers too, whose batches the last step still needs."""
    options = "--per_device_train_batch_size 16 --dataloader_num_workers 2 --max_train_steps 2000 --logging_steps 1"
    words = ["--recipe", "mae-vit-tiny-digits", "--output_dir", str(tmp_path / "run"), *options.split()]
    command = [sys.executable, str(ROOT / "examples" / "run_pretrain.py"), *words, "--evaluation", "[]"]
    with (tmp_path / "log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_text()
    assert "stopped by SIGTERM after step " in text and "Traceback" not in text
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    checkpointing.verify_checkpoint(checkpoint)


# Disks and folders


@contextmanager
def files_no_larger_than(size):
    """A disk that is full: what is written beyond fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [20_000, 5_000, 60])
def test_a_disk_that_is_full(tmp_path, whole_run, size):
    train(tmp_path, max_train_steps=2)
    before = {path.relative_to(tmp_path) for path in tmp_path.glob("checkpoint-*/*")}
    with files_no_larger_than(size), pytest.raises(OSError) as error:
        train(tmp_path, "latest")
    message = str(error.value)
    assert re.match(r"the run ended after step \d: .*[Ff]ile too large", message), message
    assert (
        f"The last good checkpoint is {tmp_path}/checkpoint-2. Resume from it with --resume_from_checkpoint {tmp_path}/checkpoint-2."
        in message
    )
    assert "\n" not in message
    assert {path.relative_to(tmp_path) for path in tmp_path.glob("checkpoint-*/*")} == before
    train(tmp_path, "latest")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_a_folder_that_nothing_can_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=r"nothing can be written to .*file/run: Not a directory; give another --output_dir"
    ):
        train(tmp_path / "file" / "run")

    original = Path.open

    def refuse(path, *args, **kwargs):
        if path.is_relative_to(tmp_path):
            raise OSError(30, "Read-only file system", str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match=r"nothing can be written to .*run: Read-only file system; give another"):
        train(tmp_path / "run")


@pytest.mark.parametrize(
    ("args", "message"),
    [({}, "not logged in: run `hf auth login`"), ({"hub_model_id": "me/a b"}, "'me/a b'")],
)
def test_a_push_that_cannot_succeed_is_told_before_the_first_step(tmp_path, monkeypatch, args, message):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with pytest.raises(PublishError, match=message):
        train(tmp_path / "run", push_to_hub=True, **args)
    assert not (tmp_path / "run").exists()


# A damaged folder


def replace_by_file(path):
    path.rename(path.with_name("elsewhere"))
    path.write_text("")


def replace_by_dead_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("nowhere")


def change_state(path, change):
    state = json.loads((path / "trainer_state.json").read_text())
    (path / "trainer_state.json").write_text(json.dumps(change(state)))
    write_manifest(path)


DAMAGES = {
    "a file": replace_by_file,
    "a dead link": replace_by_dead_link,
    "a manifest that is a list": lambda path: (path / "manifest.json").write_text("[]"),
    "a manifest without files": lambda path: (path / "manifest.json").write_text("{}"),
    "a manifest of strings": lambda path: (path / "manifest.json").write_text('{"config.json": "abc"}'),
    "a manifest that is no text": lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"),
    "a state of another version": lambda path: change_state(path, lambda s: {k: s[k] for k in s if k != "identity"}),
    "a state that is a list": lambda path: change_state(path, lambda s: []),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_latest_passes_over_what_is_no_checkpoint(run_folder, whole_run, caplog, damage):
    DAMAGES[damage](run_folder / "checkpoint-6")
    train(run_folder, "latest", save_total_limit=2)
    assert "not resuming from checkpoint-6: " in caplog.text
    assert_same_end(run_folder, whole_run)
    assert os.path.lexists(run_folder / "superseded-1" / "checkpoint-6")
    assert [path.name for path in list_checkpoints(run_folder)] == ["checkpoint-4", "checkpoint-6"]


def test_what_is_no_checkpoint_among_earlier_ones(run_folder, whole_run):
    replace_by_file(run_folder / "checkpoint-2")
    (run_folder / "checkpoint-8.unfinished").write_text("")
    train(run_folder, str(run_folder / "checkpoint-4"), save_total_limit=1)
    assert_same_end(run_folder, whole_run)
    assert [path.name for path in list_checkpoints(run_folder)] == ["checkpoint-6"]


@pytest.mark.parametrize("line", ['{"step": 3, "lo', "[1]", "{}", "null", '"text"', "\udcff", '{"step": "three"}'])
def test_a_bad_line_in_the_metrics_drops_itself_alone(run_folder, whole_run, line):
    metrics = run_folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:2], line, *lines[2:], line]), errors="surrogateescape")
    train(run_folder, "latest")
    assert_same_end(run_folder, whole_run)


def test_a_run_that_is_given_up_twice_stays(run_folder, whole_run):
    for number in (1, 2):
        train(run_folder, str(run_folder / "checkpoint-2"))
        aside = run_folder / f"superseded-{number}"
        assert [path.name for path in list_checkpoints(aside)] == ["checkpoint-4", "checkpoint-6"]
        assert metrics_of(aside) == metrics_of(whole_run)
    assert_same_end(run_folder, whole_run)


# Two processes whose BatchNorm is not synchronised


def build_moco(folder, **args):
    eval_dataset = digits("test").select(range(40))
    args |= {"max_train_steps": 8, "eval_steps": 3, "checkpointing_steps": "3", "evaluation": "[{type: label_free}]"}
    return build(folder, MOCO, "queue_size=64", eval_dataset=eval_dataset, **args)


def run_process(folder, resume=None, stop_at=None):
    """Trains, or is stopped after a step as a process is that gets a signal."""
    trainer = build_moco(folder, per_device_train_batch_size=4, resume_from_checkpoint=resume)
    rank = trainer.accelerator.process_index
    if stop_at is None:
        trainer.train()
        save_file(trainer.model.state_dict(), f"{folder}-{rank}.safetensors")
        return
    if rank == 1:  # one process gets the signal; both stop, a step later than it alone would
        signal_at(trainer, stop_at, [signal.SIGTERM])
    with pytest.raises(SystemExit) as stopped:
        trainer.train()
    assert stopped.value.code == 128 + signal.SIGTERM


def test_two_processes_evaluate_and_resume_the_model_that_is_saved(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_processes(run_process, 2, whole)
    run_processes(run_process, 2, stopped, None, 4)
    assert [path.name for path in list_checkpoints(stopped)] == ["checkpoint-3", "checkpoint-5"]
    run_processes(run_process, 2, stopped, "latest")
    states = [load_file(f"{folder}-{rank}.safetensors") for folder in (whole, stopped) for rank in range(2)]
    for name, tensor in load_file(whole / "checkpoint-8" / "model.safetensors").items():
        assert all(torch.equal(state[name], tensor) for state in states), name
    assert metrics_of(stopped) == metrics_of(whole)

    # One process evaluates the saved model alike.
    trainer = build_moco(tmp_path / "one")
    trainer.model.load_state_dict(states[0])
    metrics = trainer.run_evaluation(trainer.model)
    last = metrics_of(whole)[-1]
    assert {name: value for name, value in last.items() if name in metrics} == pytest.approx(metrics, rel=1e-5)
