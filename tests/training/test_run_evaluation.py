"""What a run evaluates: the online probe, views of an image, baselines, and the best checkpoint."""

import json
import math

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset, Image
from safetensors.torch import load_file
from test_trainer import build_trainer as build_mae_trainer
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import AutoModel, AutoModelForPreTraining

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.images import decode_image
from ssl_hub.data.views import build_views
from ssl_hub.distributed import num_processes
from ssl_hub.evaluation.base import METRICS, Metric
from ssl_hub.evaluation.knn import knn_accuracy
from ssl_hub.evaluation.spectrum import lidar
from ssl_hub.evaluation.view_features import choose_views, extract_view_features
from ssl_hub.modeling_utils import SSLModel
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.checkpointing import list_checkpoints
from ssl_hub.training.online_probe import OnlineProbe
from ssl_hub.training.recipes import load_recipe
from ssl_hub.training.trainer import SSLTrainer

PROBE = "[{type: online_probe}]"


@pytest.fixture(autouse=True)
def forget_the_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def without_results(request, monkeypatch):
    """Pictures and card take most of the time of a tiny run."""
    if "results" not in request.fixturenames:
        monkeypatch.setattr("ssl_hub.training.trainer.write_results", lambda *args, **kwargs: None)


@pytest.fixture
def results():
    """For a test of what a finished run leaves."""


def digits(split="train", count=64):
    return load_image_dataset("digits", split).select(range(count))


def build_trainer(output_dir, recipe="simclr-digits", train_dataset=None, eval_dataset=None, **args):
    """A trainer of a tiny model on 64 digits, 4 steps an epoch, evaluated on 40."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    recipe = load_recipe(recipe)
    model = AutoModelForPreTraining.from_config(recipe.build_config())
    settings = {"max_train_steps": 6, "warmup_steps": 0, "logging_steps": 1, "checkpointing_steps": "3"}
    settings |= {"per_device_train_batch_size": 16, "learning_rate": 1e-3} | args
    return SSLTrainer(
        model,
        PretrainingArguments(output_dir=str(output_dir), **settings),
        digits() if train_dataset is None else train_dataset,
        recipe.views,
        digits("test", 40) if eval_dataset is None else eval_dataset,
    )


def values_of(output_dir, name):
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


# The online probe


@pytest.mark.parametrize(
    ("recipe", "args"),
    [
        ("simclr-digits", {"loss_chunk_size": 5, "per_device_eval_batch_size": 7}),
        ("mae-vit-tiny-digits", {"gradient_accumulation_steps": 2}),
        ("moco-digits", {}),
        ("rotationpred-digits", {}),
        ("swav-digits", {}),
    ],
)
def test_the_online_probe_leaves_the_run_alone(recipe, args, tmp_path):
    ends = []
    for evaluation in ("[{type: label_free}]", "[{type: label_free}, {type: online_probe}]"):
        trainer = build_trainer(tmp_path / str(len(ends)), recipe, evaluation=evaluation, max_train_steps=2, **args)
        trainer.train()
        ends.append((load_file(trainer.output_dir / "checkpoint-2" / "model.safetensors"), torch.get_rng_state()))
    assert all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())
    assert torch.equal(ends[0][1], ends[1][1])
    assert [values_of(tmp_path / run, "loss") for run in "01"] == [values_of(tmp_path / "0", "loss")] * 2
    assert values_of(tmp_path / "1", "online_probe_accuracy").keys() == {2}  # not before it has seen a batch
    assert trainer.run_evaluation.probe.classifier.weight.abs().sum() > 0


def test_the_online_probe_learns(tmp_path):
    build_trainer(tmp_path, evaluation=PROBE, max_train_steps=60, eval_steps=30, checkpointing_steps="60").train()
    accuracies = values_of(tmp_path, "online_probe_accuracy")
    assert accuracies.keys() == {30, 60}
    assert accuracies[60] > 2.5 * values_of(tmp_path, "chance_accuracy")[0]


def test_its_step_is_that_of_the_whole_batch():
    """Chunks and accumulation do not matter, and the gradient is that of the cross-entropy."""

    class Model(torch.nn.Module):
        def forward(self, pixel_values):
            assert not self.training
            return type("Output", (), {"pooler_output": pixel_values.flatten(1)})

    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(8, 3, 2, 2, generator=generator).double(), torch.arange(8) % 3
    torch.set_default_dtype(torch.double)
    try:
        probes = [OnlineProbe(labels, 3, 0.1, chunk_size, torch.device("cpu")) for chunk_size in (8, 3)]
        model = Model()
        for _ in range(2):
            probes[0].observe(model, images, torch.arange(8), 1.0)
            for rows in torch.arange(8).split(4):
                probes[1].observe(model, [images[rows], images[rows] + 1], rows, 0.5)
            for probe in probes:
                probe.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.training
    for first, second in zip(*(probe.classifier.parameters() for probe in probes), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
    x = images.flatten(1).float()
    x = torch.nn.functional.normalize(x - x.mean(dim=1, keepdim=True))
    first_step = 0.1 * (torch.nn.functional.one_hot(labels, 3).float() - 1 / 3).T @ x / 8
    fresh = OnlineProbe(labels, 3, 0.1, 8, torch.device("cpu"))
    fresh.observe(model, images.float(), torch.arange(8), 1.0)
    fresh.step()
    torch.testing.assert_close(fresh.classifier.weight.detach(), first_step)


@pytest.mark.parametrize("recipe", ["simclr-digits", "mae-vit-tiny-digits"])
def test_a_resumed_run_has_the_same_probe(recipe, tmp_path):
    whole = build_trainer(tmp_path / "whole", recipe, evaluation=PROBE, save_total_limit=None)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    resumed = build_trainer(tmp_path / "resumed", recipe, evaluation=PROBE, resume_from_checkpoint=str(checkpoint))
    resumed.train()
    states = [trainer.run_evaluation.probe.state() for trainer in (whole, resumed)]
    assert states[0].keys() == states[1].keys() == {"weight", "bias", "weight.momentum_buffer", "bias.momentum_buffer"}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert resumed.last_evaluation == whole.last_evaluation
    assert not any("probe" in key for key in load_file(checkpoint / "model.safetensors"))

    other = digits().cast_column("label", digits().features["label"])
    other = other.map(lambda row: {"label": row["label"] % 3})
    with pytest.raises(ValueError, match=r"has 10 classes and the images of this run 3: leave .* out, or resume with"):
        build_trainer(
            *(tmp_path / "other", recipe, other, other),
            evaluation=PROBE,
            resume_from_checkpoint=str(checkpoint),
        ).train()


@pytest.mark.parametrize(
    ("recipe", "train", "evaluation", "message"),
    [
        (
            "simclr-digits",
            digits().remove_columns("label"),
            PROBE,
            "'online_probe' needs labels, and the training split",
        ),
        ("simclr-digits", digits().to_iterable_dataset(), PROBE, "'online_probe' needs the training images by index"),
        ("relativeloc-digits", None, PROBE, "'online_probe' is not for this run: the views .* show patches"),
        ("relativeloc-digits", None, "[{type: views}]", "'views' is not for this run: the views .* show patches"),
    ],
)
def test_what_a_run_cannot_give(recipe, train, evaluation, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_trainer(tmp_path, recipe, train, evaluation=evaluation)


# Views of an image


def test_features_of_views(tmp_path):
    trainer = build_trainer(
        tmp_path, evaluation="[{type: views, num_images: 12, num_views: 4}]", max_train_steps=2, eval_steps=1
    )
    seen = []
    model, evaluation = trainer.model, trainer.run_evaluation
    original = evaluation._input
    evaluation._input = lambda *args: seen.append(original(*args)) or seen[-1]
    torch.manual_seed(3)
    found = evaluation(model)
    state = torch.get_rng_state()
    assert seen[0].features.shape == (12, 4, 64)
    assert found["lidar"] == lidar(seen[0].features)
    assert 0 < found["alignment"] < 4
    again = evaluation(model)  # the same views
    assert again == found
    assert torch.equal(torch.get_rng_state(), state)
    assert (seen[0].features[:, 0] - seen[0].features[:, 1]).abs().amax(dim=1).min() > 1e-4  # all views differ


def test_an_image_without_views_is_left_out(tmp_path):
    rows = [{"image": row["image"]} for row in digits(count=5).cast_column("image", Image(decode=False))]
    rows[2] = {"image": {"bytes": b"no image", "path": None}}
    dataset = load_image_dataset(Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet") and tmp_path / "x.parquet")
    views = build_views([{"size": 8, "count": 2}])

    class Model(torch.nn.Module):
        def forward(self, pixel_values):
            return type("Output", (), {"pooler_output": pixel_values.flatten(1)})

    features = extract_view_features(
        *(Model(), dataset, views, lambda shown: [view.float() for view in shown]), seed=0, batch_size=4, device="cpu"
    )
    assert features.shape == (4, 2, 3 * 8 * 8)
    assert num_processes() == 1


def test_views_are_those_of_the_first_size():
    views = build_views([{"size": 8, "count": 2}, {"size": 4, "count": 3}, {"size": 8}])
    assert choose_views(views, 4) == [views[0], views[1], views[5], views[0]]


# The best checkpoint


def test_goodness():
    assert Metric("a").goodness(2) > Metric("a").goodness(1)
    assert Metric("a", higher_is_better=False).goodness(1) > Metric("a", higher_is_better=False).goodness(2)
    near_one = METRICS["alpha_req"].goodness
    assert near_one(1.1) > near_one(0.8) > near_one(1.3)


@pytest.fixture
def scripted():
    """Evaluations whose values are as given, in turns, beginning before the first step."""

    def script(trainer, values, name="rankme"):
        trainer.run_evaluation = _Scripted(trainer.run_evaluation, iter(values), name)
        return trainer

    return script


class _Scripted:
    def __init__(self, inner, values, name):
        self.inner, self.values, self.name = inner, values, name

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, model):
        value = next(self.values)
        return {} if value is None else {self.name: value}


@pytest.mark.parametrize(
    ("metric", "values", "kept"),
    [
        ("rankme", [9, 1, 3, 2, 2, 3, 1], [2, 5, 6]),  # neither the untrained model nor an equal value
        ("rankme", [0, 1, 2, 3, 4, 5, 6], [5, 6]),
        ("alpha_req", [0, 3, 0.5, 1.2, 1.5, 0.7, None], [3, 5, 6]),
        ("rankme", [0, None, math.nan, None, None, None, None], [5, 6]),
    ],
)
def test_keep_best(metric, values, kept, tmp_path, scripted):
    evaluation = "[{type: label_free}, {type: spectrum}]"
    args = {"evaluation": evaluation, "eval_steps": 1, "keep_best": metric, "checkpointing_steps": "1"}
    trainer = scripted(build_trainer(tmp_path, **args), values, metric)
    trainer.train()
    assert [int(path.name.partition("-")[2]) for path in list_checkpoints(tmp_path)] == kept


def test_the_best_checkpoint_is_named_and_loads(results, tmp_path, scripted, capsys):
    args = {"eval_steps": 1, "keep_best": "rankme", "checkpointing_steps": "epoch", "save_total_limit": 1}
    scripted(build_trainer(tmp_path / "run", **args), [0, 1, 5, 3, 2, 4, 1]).train()
    best = tmp_path / "run" / "checkpoint-2"  # in mid-epoch
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-2", "checkpoint-6"]
    assert isinstance(AutoModel.from_pretrained(best), SSLModel)
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best"] == {"metric": "rankme", "value": 5.0, "step": 2}
    told = capsys.readouterr().out
    assert told.count("the best RankMe (effective rank), 5, is that of checkpoint-2 so far") == 1
    assert told.count("the best RankMe (effective rank), 5, is that of checkpoint-2\n") == 1  # at the end
    card = (tmp_path / "run" / "README.md").read_text()
    assert "The best RankMe (effective rank) of the run, 5, was that of step 2: `checkpoint-2`" in card
    last, shared = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("checkpoint-6", "."))
    assert all(torch.equal(last[name], shared[name]) for name in shared)  # what is shared is the last one


def test_the_best_is_kept_over_a_resume(tmp_path, scripted, caplog):
    args = {"eval_steps": 1, "keep_best": "rankme", "checkpointing_steps": "1", "save_total_limit": 1}
    scripted(build_trainer(tmp_path, max_train_steps=3, **args), [0, 1, 5, 3]).train()
    args |= {"max_train_steps": 5, "resume_from_checkpoint": "latest"}
    scripted(build_trainer(tmp_path, **args), [4, 2]).train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-5"]
    # By another metric the best is looked for anew; so it is where somebody removed the checkpoint.
    trainer = scripted(build_trainer(tmp_path, **args | {"max_train_steps": 6, "keep_best": "embedding_std"}), [1])
    trainer.train()
    assert trainer.best.found is None
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-6"]


@pytest.mark.parametrize("every", ["2", "epoch"])
def test_a_best_checkpoint_in_between_does_not_change_the_run(every, tmp_path, scripted):
    """Evaluations that save more than the others end with the same weights, also where an epoch ends."""
    args = {"eval_steps": 1, "checkpointing_steps": every, "max_train_steps": 9, "save_total_limit": None}
    scripted(build_trainer(tmp_path / "plain", **args), range(10)).train()
    scripted(build_trainer(tmp_path / "best", keep_best="rankme", **args), range(10)).train()
    assert len(list_checkpoints(tmp_path / "best")) == 9
    resumed = build_trainer(tmp_path / "best", **args, resume_from_checkpoint=str(tmp_path / "best" / "checkpoint-4"))
    scripted(resumed, range(10)).train()
    states = [load_file(tmp_path / name / "checkpoint-9" / "model.safetensors") for name in ("plain", "best")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"keep_best": "rank_me", "eval_steps": 1}, "--keep_best: there is no metric 'rank_me'; near it: rankme"),
        ({"keep_best": "lidar", "eval_steps": 1}, "--keep_best: no evaluation .* 'lidar'; it has .*{type: views}"),
        ({"keep_best": "rankme"}, "--keep_best rankme compares .* at its end only: give --eval_steps"),
    ],
)
def test_a_metric_that_cannot_choose(args, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_trainer(tmp_path, **args)
    assert not list(tmp_path.iterdir())


# What accuracies are compared with


def test_accuracy_baselines(results, tmp_path):
    build_mae_trainer(tmp_path, eval_dataset=digits("test", 40), max_train_steps=1).train()
    train, test = digits(), digits("test", 40)
    pixels = [
        torch.stack([pil_to_tensor(decode_image(row["image"]).resize((16, 16))).flatten().float() for row in each])
        for each in (train, test)
    ]
    labels = [torch.tensor(each["label"]) for each in (train, test)]
    chance = values_of(tmp_path, "chance_accuracy")
    assert chance == {0: pytest.approx(labels[1].bincount().max().item() / 40)}
    by_hand = knn_accuracy(pixels[0], labels[0], pixels[1], labels[1])
    assert values_of(tmp_path, "pixel_knn_accuracy")[0] == pytest.approx(by_hand, abs=0.1)
    assert "kNN accuracy ↑ | " in (card := (tmp_path / "README.md").read_text())
    assert f"(chance {chance[0]:.2%}, kNN of pixels " in card


def test_no_baselines_without_labels(tmp_path):
    test = digits("test", 40).remove_columns("label")
    build_trainer(tmp_path, eval_dataset=test, max_train_steps=1).train()
    assert values_of(tmp_path, "chance_accuracy") == values_of(tmp_path, "pixel_knn_accuracy") == {}
