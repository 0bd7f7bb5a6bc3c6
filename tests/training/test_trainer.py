import functools
import json
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

from ssl_hub import SimCLRConfig, SimCLRModel, modeling_masked_image
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.modeling_utils import SSLModel
from ssl_hub.models.mae import modeling_mae
from ssl_hub.training.arguments import PretrainingArguments, parse_arguments
from ssl_hub.training.checkpointing import list_checkpoints
from ssl_hub.training.recipes import Recipe, load_recipe
from ssl_hub.training.run_log import NonFiniteLossError
from ssl_hub.training.timing import TIMINGS
from ssl_hub.training.trainer import SSLTrainer, use_channels_last

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(
    "tiny",
    model={
        "model_type": "mae",
        "backbone_config": {
            "image_size": 16,
            "patch_size": 4,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
        "norm_pix_loss": False,
    },
    views=[{"count": 1, "size": 16, "scale": [0.6, 1.0]}],
)


def digits(split="train", count=64):
    return load_image_dataset("digits", split).select(range(count))


def build_trainer(output_dir, train_dataset=None, eval_dataset=None, model_overrides=None, **args):
    """A trainer of a tiny MAE on 64 digits, 4 steps an epoch."""
    torch.manual_seed(0)
    model = AutoModelForPreTraining.from_config(RECIPE.build_config(model_overrides))
    args = {
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "max_train_steps": 4,
        "logging_steps": 1,
        "checkpointing_steps": "1000",
    } | args
    train_dataset = digits() if train_dataset is None else train_dataset
    return SSLTrainer(
        model, PretrainingArguments(output_dir=str(output_dir), **args), train_dataset, RECIPE.views, eval_dataset
    )


def metrics_of(output_dir):
    """What was logged, but for the speed."""
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def losses_of(output_dir):
    return [line["loss"] for line in metrics_of(output_dir) if "loss" in line]


def mask_by_position(batch_size, num_patches, num_masked, device):
    """In place of a random mask: the same one for every image, so that it does not matter who shares a batch."""
    return (torch.arange(num_patches, device=device) % 4 > 0).expand(batch_size, -1)


@pytest.fixture(autouse=True)
def forget_the_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


# What a run leaves behind


def test_a_run(tmp_path):
    trainer = build_trainer(
        tmp_path,
        eval_dataset=digits("test", 40),
        max_train_steps=30,
        logging_steps=4,
        eval_steps=20,
        max_grad_norm=0.5,
        report_to="tensorboard",
        learning_rate=1e-2,
    )
    last = trainer.train()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("README.md", "backbone", "checkpoint-30", "config.json", "curves.png", "metrics.jsonl"),
        *("model.safetensors", "modeling_ssl_hub.py", "neighbors.png", "preprocessor_config.json", "recipe.yaml"),
        *("reconstruction.png", "report.html", "ssl_hub"),
    }
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == [*range(4, 30, 4), 30]
    assert [line["step"] for line in lines if "knn_accuracy" in line] == [0, 20, 30]
    assert [line["epoch"] for line in lines if "loss" in line][:3] == [1.0, 2.0, 3.0]
    assert all(line["grad_norm"] > 0 for line in lines if "loss" in line)
    assert losses_of(tmp_path)[-1] < 0.8 * losses_of(tmp_path)[0]
    assert last == lines[-1]
    assert next((tmp_path / "ssl_hub").glob("events.out.tfevents.*")).stat().st_size > 1000

    for folder in (tmp_path, tmp_path / "checkpoint-30"):
        model, image_processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
        state = model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in trainer.model.state_dict().items())
        pixel_values = image_processor(Image.new("RGB", (30, 20)), return_tensors="pt").pixel_values
        assert model(pixel_values).pooler_output.shape == (1, 16)
    assert type(AutoModel.from_pretrained(tmp_path, subfolder="backbone")).__name__ == "ViTModel"


def test_the_gradient_is_clipped(tmp_path):
    trainer = build_trainer(tmp_path, max_grad_norm=1e-3)
    norms = []

    def note_norm(*_):
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    trainer.optimizer.register_step_pre_hook(note_norm)
    trainer.train()
    assert norms == pytest.approx([1e-3] * 4, rel=1e-2)
    assert next(line for line in metrics_of(tmp_path) if "loss" in line)["grad_norm"] > 0.01


def test_accumulation_equals_one_large_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(modeling_masked_image, "draw_patches", mask_by_position)
    ends = []
    for count in (1, 4):
        AcceleratorState._reset_state(reset_partial_state=True)
        batch = {"per_device_train_batch_size": 16 // count, "gradient_accumulation_steps": count}
        trainer = build_trainer(tmp_path / str(count), max_train_steps=6, adam_epsilon=1e-3, **batch)
        trainer.train()
        ends.append(trainer.model.state_dict())
    assert losses_of(tmp_path / "1") == pytest.approx(losses_of(tmp_path / "4"), rel=1e-5)
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, atol=1e-6, rtol=1e-4, msg=name)


def test_gradient_checkpointing_and_bf16(tmp_path):
    runs = {"plain": {}, "checkpointing": {"gradient_checkpointing": True}, "bf16": {"mixed_precision": "bf16"}}
    for name, args in runs.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        trainer = build_trainer(tmp_path / name, **args)
        trainer.train()
    plain = losses_of(tmp_path / "plain")
    assert losses_of(tmp_path / "checkpointing") == pytest.approx(plain, rel=1e-5)
    bf16 = losses_of(tmp_path / "bf16")
    assert bf16 == pytest.approx(plain, rel=0.02) and bf16 != pytest.approx(plain, rel=1e-5)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_a_compiled_run(tmp_path, monkeypatch):
    build_trainer(tmp_path / "plain").train()
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trainer = build_trainer(tmp_path / "compiled", torch_compile=True, eval_steps=2)
    trainer.train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert losses_of(tmp_path / "compiled") == pytest.approx(losses_of(tmp_path / "plain"), rel=1e-5)
    assert "loss" not in vars(trainer.model)


def test_an_evaluation_does_not_change_the_training(tmp_path):
    build_trainer(tmp_path / "without").train()
    AcceleratorState._reset_state(reset_partial_state=True)
    build_trainer(tmp_path / "with", eval_dataset=digits("test", 40), eval_steps=1).train()
    assert losses_of(tmp_path / "with") == losses_of(tmp_path / "without")


# A loss that is not finite


@pytest.mark.parametrize(("bad_step", "good"), [(4, "checkpoint-2"), (3, None), (2, None)])
def test_the_step_of_the_first_nan_is_named(tmp_path, bad_step, good):
    trainer = build_trainer(
        tmp_path, max_train_steps=40, logging_steps=30, checkpointing_steps="2", gradient_accumulation_steps=2
    )
    original, calls = trainer.model.loss, []

    def loss(*args, **kwargs):
        outputs = original(*args, **kwargs)
        calls.append(outputs)
        if len(calls) == 2 * bad_step - 1:  # the first of the two batches
            outputs.loss = outputs.loss * float("nan")
            outputs.losses = {"this": torch.tensor(float("nan")), "that": torch.tensor(1.5)}
        else:
            outputs.losses = {"this": torch.tensor(0.5), "that": torch.tensor(1.5)}
        return outputs

    trainer.model.loss = loss
    with pytest.raises(NonFiniteLossError) as error:
        trainer.train()
    message = str(error.value)
    assert f"not finite at step {bad_step}: loss nan, loss_this nan, loss_that 1.5." in message
    assert (f"The last good checkpoint is {tmp_path / good}." if good else "There is no good checkpoint yet") in message
    # A checkpoint of step 2 has the weights that gave the loss of step 3.
    assert [path.name for path in list_checkpoints(tmp_path)] == (["checkpoint-2"] if bad_step > 2 else [])
    assert not (tmp_path / "model.safetensors").exists()


def test_no_checkpoint_of_bad_weights(tmp_path):
    """A gradient that overflows leaves a finite loss behind and bad weights."""
    trainer = build_trainer(tmp_path, checkpointing_steps="1")
    parameter, calls = trainer.model.neck.mask_token, []

    def overflow(gradient):
        calls.append(gradient)
        return gradient * float("inf") if len(calls) == 2 else gradient

    parameter.register_hook(overflow)
    with pytest.raises(NonFiniteLossError, match=r"not finite after step 2: .*mask_token.* is .*checkpoint-1\."):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1"]


def test_nan_before_an_evaluation(tmp_path):
    trainer = build_trainer(tmp_path, eval_dataset=digits("test", 40), eval_steps=2, logging_steps=50)
    trainer.schedule.factor = lambda step: float("nan")
    with pytest.raises(NonFiniteLossError, match="not finite at step 2: loss nan"):
        trainer.train()


# Data


def test_unreadable_images_are_skipped_named_and_counted(tmp_path, caplog):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(40):
        image = Image.effect_noise((20 + number, 24), 60)
        image.save(images / f"{number:02}.jpg")
    content = (images / "00.jpg").read_bytes()
    (images / "00.jpg").write_bytes(content[: len(content) // 2])
    (images / "01.jpg").write_bytes(b"")
    (images / "02.jpg").write_text("no image")
    # All of the first eight, which are the ones that reconstruction.png shows.
    for number in range(3, 8):
        (images / f"{number:02}.jpg").write_bytes(b"")

    build_trainer(
        tmp_path / "run", load_image_dataset(images), per_device_train_batch_size=8, max_train_steps=10
    ).train()
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("ssl_hub.training.")]
    named = [Path(message.rpartition(" ")[2]).name for message in messages[:-1]]
    assert sorted(named) == [f"{number:02}.jpg" for number in range(8)]
    assert messages[-1] == "images that could not be read and were skipped: 8"
    assert (tmp_path / "run" / "reconstruction.png").exists()


@pytest.fixture
def parquet(tmp_path):
    digits().to_parquet(tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


def test_a_streamed_dataset(tmp_path, parquet):
    stream = load_image_dataset(parquet, streaming=True)
    build_trainer(tmp_path / "run", stream, max_train_steps=3).train()
    assert [line["epoch"] for line in metrics_of(tmp_path / "run")] == [0, 0, 0]
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_resumed_stream_goes_on_where_it_was(tmp_path):
    stream = digits().to_iterable_dataset()
    schedule = {"lr_scheduler_type": "constant"}
    build_trainer(tmp_path / "whole", stream, max_train_steps=10, **schedule).train()
    for steps, resume in ((6, None), (10, "latest")):  # within the second of three passes
        AcceleratorState._reset_state(reset_partial_state=True)
        args = {"max_train_steps": steps, "resume_from_checkpoint": resume}
        build_trainer(tmp_path / "halves", stream, **args, **schedule).train()
    assert [line["epoch"] for line in metrics_of(tmp_path / "whole")] == [0] * 4 + [1] * 4 + [2] * 2
    assert metrics_of(tmp_path / "halves") == metrics_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "options", [{"augment_on_device": True}, {"cache_images": "memory"}, {"cache_images": "device"}]
)
def test_where_views_are_rendered_and_images_kept(tmp_path, options):
    losses = []
    for folder, steps, given in (
        ("plain", 10, {}),
        ("whole", 10, options),
        ("halves", 6, options),
        ("halves", 10, options),
    ):
        AcceleratorState._reset_state(reset_partial_state=True)
        given = given | {"max_train_steps": steps, "lr_scheduler_type": "constant", "resume_from_checkpoint": "latest"}
        build_trainer(tmp_path / folder, **given).train()
        losses.append(losses_of(tmp_path / folder))
    assert losses[3] == losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # pixels may differ by a level


def test_a_streamed_dataset_needs_the_number_of_steps(tmp_path, parquet):
    with pytest.raises(ValueError, match="no known length: give --max_train_steps"):
        build_trainer(tmp_path / "run", load_image_dataset(parquet, streaming=True), max_train_steps=None)


def test_a_stream_shorter_than_a_step(tmp_path):
    stream = digits().to_iterable_dataset()
    with pytest.raises(ValueError, match="less than one optimizer step: make the batch or gradient_accumulation_steps"):
        build_trainer(tmp_path / "run", stream, gradient_accumulation_steps=5).train()


def test_a_batch_larger_than_the_dataset(tmp_path):
    with pytest.raises(ValueError, match="64 rows, fewer than the 65 of a batch"):
        build_trainer(tmp_path / "run", per_device_train_batch_size=65)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="takes 80 images, and the dataset has 64: make per_device_train_batch_size"):
        build_trainer(tmp_path / "run", gradient_accumulation_steps=5)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_without_a_split(tmp_path):
    with pytest.raises(ValueError, match="--evaluation needs images .*--eval_split or --validation_dir"):
        build_trainer(tmp_path, evaluation="[{type: label_free}, {type: knn}]")


def test_an_evaluation_without_labels(tmp_path):
    """What needs none is evaluated; what was asked for and needs some is refused."""
    images = digits("test", 40).remove_columns("label")
    with pytest.raises(ValueError, match=r"'knn' needs labels, .*--label_column_name"):
        build_trainer(tmp_path, eval_dataset=images, evaluation="[{type: knn}]")
    AcceleratorState._reset_state(reset_partial_state=True)
    build_trainer(tmp_path, eval_dataset=images, max_train_steps=1).train()
    assert metrics_of(tmp_path)[-1].keys() == {"step", "embedding_std", "rankme"}


def test_a_run_repeats_from_its_recipe(tmp_path):
    """`recipe.yaml` holds all of a run, what its command line changed too."""
    words = ["--recipe", "mae-vit-tiny-digits", "--config_overrides", "mask_ratio=0.5", "--output_dir", "unused"]
    words += ["--adam_beta2", "0.9", "--evaluation", "[{type: label_free}]", "--max_train_steps", "2"]
    recipe, model_args, data_args, args = parse_arguments(words)
    args.output_dir = str(tmp_path / "run")
    model = AutoModelForPreTraining.from_config(recipe.build_config(model_args.config_overrides))
    trainer = SSLTrainer(
        model, args, digits(), recipe.views, digits("test", 40), recipe.evaluation, data_args=data_args
    )
    (tmp_path / "run").mkdir()
    trainer._start()
    again = parse_arguments(["--recipe", str(tmp_path / "run" / "recipe.yaml"), "--output_dir", "other"])
    assert again[0].build_config().to_dict() == recipe.build_config("mask_ratio=0.5").to_dict()
    assert (again[0].views, again[0].evaluation) == (recipe.views, [{"type": "label_free"}])
    assert again[2] == data_args
    assert again[3].identity() == trainer.args.identity()  # with the warm-up that was shortened


def test_inputs_that_no_view_makes_or_no_loss_takes(tmp_path, monkeypatch):
    masked = [{"size": 16, "mask": {"kind": "random", "ratio": 0.5, "patch": 4}}]
    monkeypatch.setattr(RECIPE, "views", masked)
    trainer = build_trainer(tmp_path / "masked", model_overrides="mask_ratio=0.25")
    masks = []
    trainer.model.loss = lambda *args, bool_masked_pos: masks.append(bool_masked_pos) or exit()
    with pytest.raises(SystemExit):
        trainer.train()
    assert (masks[0].sum(dim=1) == 8).all()

    def loss(self, pixel_values, indices, target_pixel_values):
        pass

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(modeling_mae.MAEModel, "loss", loss)
    with pytest.raises(ValueError, match="needs target_pixel_values, which no view makes: add the key 'target'"):
        build_trainer(tmp_path / "run")
    monkeypatch.setattr(modeling_mae.MAEModel, "loss", lambda self, pixel_values: None)
    with pytest.raises(ValueError, match="does not take bool_masked_pos: leave the key 'mask' out"):
        build_trainer(tmp_path / "run")


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(
        ValueError, match=r"--report_to tensorboard: install what is missing \(pip install tensorboard\)"
    ):
        build_trainer(tmp_path, report_to="tensorboard")


# The folder


@pytest.mark.parametrize("trace", ["metrics.jsonl", "model.safetensors", "checkpoint-3/config.json"])
def test_another_run_is_not_written_over(tmp_path, trace):
    (tmp_path / "run" / trace).parent.mkdir(parents=True)
    (tmp_path / "run" / trace).write_text("precious")
    for resume in (None, str(tmp_path / "other" / "checkpoint-3")):
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(
            FileExistsError, match=r"already holds a run .*--resume_from_checkpoint latest, or give ano"
        ):
            build_trainer(tmp_path / "run", resume_from_checkpoint=resume)
    assert (tmp_path / "run" / trace).read_text() == "precious"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "run" / trace]


def test_an_algorithm_without_predict_trains_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(modeling_mae.MAEModel, "predict", SSLModel.predict)
    build_trainer(tmp_path, max_train_steps=1).train()
    assert (tmp_path / "README.md").is_file() and not (tmp_path / "reconstruction.png").exists()


def test_a_dataset_dict_with_columns_of_other_names(tmp_path):
    """As `datasets.load_dataset` returns it; the run is that on the prepared splits."""
    splits = datasets.DatasetDict({"train": digits(), "test": digits(split="test")})
    raw = splits.cast_column("image", datasets.Image()).rename_columns({"image": "scan", "label": "digit"})
    build_trainer(tmp_path / "prepared", splits["train"], splits["test"]).train()
    build_trainer(tmp_path / "raw", raw.with_format("torch")).train()
    assert "knn_accuracy" in metrics_of(tmp_path / "raw")[0]
    assert metrics_of(tmp_path / "raw") == metrics_of(tmp_path / "prepared")


def test_a_model_without_checkpoints_is_not_written_over_by_latest(tmp_path):
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(FileExistsError, match="no checkpoint to resume from.*--model_name_or_path"):
        build_trainer(tmp_path, resume_from_checkpoint="latest")
    assert (tmp_path / "model.safetensors").read_text() == "precious"


# The command line


def run_example(monkeypatch, *options):
    """Runs `examples/run_pretrain.py` in this process; returns what it exits with."""
    monkeypatch.setattr(sys, "argv", ["run_pretrain.py", "--recipe", "mae-vit-tiny-digits", *map(str, options)])
    monkeypatch.setattr(logging, "basicConfig", lambda **kwargs: None)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "examples" / "run_pretrain.py"), run_name="__main__")
    return end.value.code


def test_errors_are_told_in_a_line(tmp_path, monkeypatch):
    code = run_example(monkeypatch, "--output_dir", tmp_path / "run", "--dataset_name", tmp_path / "nothing")
    assert code.startswith("error: ") and "nothing" in code and "\n" not in code
    AutoModel.from_config(load_recipe("simclr-digits").build_config()).save_pretrained(tmp_path / "simclr")
    code = run_example(monkeypatch, "--output_dir", tmp_path / "run", "--model_name_or_path", tmp_path / "simclr")
    assert "simclr is a 'simclr', and recipe mae-vit-tiny-digits trains 'mae': its folder backbone/ gives" in code
    (tmp_path / "metrics.jsonl").write_text("{}")
    code = run_example(monkeypatch, "--output_dir", tmp_path)
    assert code.startswith(f"error: {tmp_path} already holds a run") and "\n" not in code


def test_a_push_that_fails_keeps_the_model(tmp_path, monkeypatch):
    """Such as one by a login that ended while the model was trained."""
    monkeypatch.setattr("ssl_hub.training.trainer.check_can_push", lambda *args, **kwargs: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    options = {"max_train_steps": 2, "warmup_steps": 0, "dataloader_num_workers": 0, "logging_steps": 1}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(SSLTrainer, "_evaluate", lambda self: None)  # of all the digits
    code = run_example(monkeypatch, "--output_dir", tmp_path / "run", "--push_to_hub", *words)
    assert code.startswith("error: The model was not pushed to 'run': not logged in: run `hf auth login`")
    assert "To push it later:\n    python -c" in code
    assert type(AutoModel.from_pretrained(tmp_path / "run")).__name__ == "MAEModel"


# Two processes


def train_with_batches_of(batch_size, output_dir):
    modeling_masked_image.draw_patches = mask_by_position
    args = {"max_train_steps": 6, "eval_steps": 3, "checkpointing_steps": "3", "adam_epsilon": 1e-3}
    args["evaluation"] = "[{type: knn}, {type: label_free}, {type: online_probe}, {type: views, num_images: 11}]"
    eval_dataset = digits("test", 41)  # an odd number: the processes get shares of different sizes
    trainer = build_trainer(output_dir, None, eval_dataset, per_device_train_batch_size=batch_size, **args)
    process = trainer.accelerator.process_index
    table = trainer.run_evaluation.feature_table(trainer.model, eval_dataset)
    assert table.known.all() and len(table.features) == 41
    save_file({"features": table.features}, f"{output_dir}-features-{process}.safetensors")
    trainer.train()
    return trainer.model, process


def test_narrow_convolutions_keep_their_layout_on_a_cpu():
    """The gradient of one of 8 channels and stride 2 would end the process."""
    backbone = {"model_type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8}
    config = SimCLRConfig(image_size=224, backbone_config={**backbone, "layer_type": "basic"})
    model = SimCLRModel(config)
    use_channels_last(model, torch.device("cpu"))
    model([torch.randn(8, 3, 224, 224)] * 2, mode="loss").loss.backward()


def test_two_processes_are_one_with_the_whole_batch(tmp_path, monkeypatch):
    # `accelerate launch --cpu --num_processes 2` needs MPI: without it, it starts one process and does not say so.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*launcher, __file__, str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("the model is in") == 1

    monkeypatch.setattr(modeling_masked_image, "draw_patches", mask_by_position)
    model, _ = train_with_batches_of(16, tmp_path / "one")
    tables = [
        load_file(tmp_path / f"{run}.safetensors") for run in ("one-features-0", "two-features-0", "two-features-1")
    ]
    torch.testing.assert_close(tables[1]["features"], tables[0]["features"], atol=1e-5, rtol=1e-4)
    assert torch.equal(tables[1]["features"], tables[2]["features"])
    first, second = (load_file(tmp_path / "two" / f"process-{process}.safetensors") for process in range(2))
    for name, tensor in model.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, atol=1e-6, rtol=1e-4, msg=name)
    for line, expected in zip(metrics_of(tmp_path / "two"), metrics_of(tmp_path / "one"), strict=True):
        assert line == pytest.approx(expected, rel=1e-4)
    assert [path.name for path in list_checkpoints(tmp_path / "two")] == ["checkpoint-3", "checkpoint-6"]
    probes = [load_file(tmp_path / run / "checkpoint-6" / "online_probe.safetensors") for run in ("one", "two")]
    for name, tensor in probes[0].items():
        torch.testing.assert_close(probes[1][name], tensor, atol=1e-5, rtol=1e-3)


if __name__ == "__main__":  # what the test above launches
    output_dir = Path(sys.argv[1])
    model, process = train_with_batches_of(8, output_dir)
    save_file(model.state_dict(), output_dir / f"process-{process}.safetensors")
