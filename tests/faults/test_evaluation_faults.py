"""Evaluations of what is small, unlabelled, unreadable or too large."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from test_mae import TINY
from torch import nn
from transformers import ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

import ssl_hub.evaluation.features as features_module
from ssl_hub import MAEConfig, MAEModel, SSLTrainer
from ssl_hub.classification.models import load_classifier
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.loading import build_eval_loader
from ssl_hub.data.processing import build_image_processor
from ssl_hub.evaluation.base import LabelledFeatures
from ssl_hub.evaluation.evaluators import build_evaluators
from ssl_hub.evaluation.feature_models import load_feature_model
from ssl_hub.evaluation.features import extract_feature_table, extract_features, process_rows
from ssl_hub.model_loading import load_backbone
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.run_evaluation import RunEvaluation
from ssl_hub.visualization.results import plot_comparison

LABEL_FREE = {"embedding_std", "rankme"}


def digits(split="train", count=40):
    return load_image_dataset("digits", split).select(range(count))


def build_trainer(output_dir, train_dataset, eval_dataset=None, recipe_evaluation=None, **args):
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    args = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_train_steps": 1} | args
    return SSLTrainer(
        MAEModel(MAEConfig(**TINY)),
        PretrainingArguments(output_dir=str(output_dir), **args),
        train_dataset,
        [{"count": 1, "size": 16, "scale": [0.6, 1.0]}],
        eval_dataset,
        recipe_evaluation,
    )


def evaluations_of(output_dir):
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" not in line]


def image_dataset(count, unreadable=()):
    rows = []
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer := io.BytesIO(), format="PNG")
        rows.append({"image": {"bytes": b"" if index in unreadable else buffer.getvalue(), "path": None}})
    return datasets.Dataset.from_list(rows, features=datasets.Features({"image": datasets.Image(decode=False)}))


# Without labels, and without images to evaluate on


@pytest.mark.parametrize("given", ["an unlabelled split", "no split"])
def test_signs_of_collapse_need_no_labels(given, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr("ssl_hub.training.trainer.write_results", lambda *args, **kwargs: None)
    split = digits("test", 20).remove_columns("label") if given == "an unlabelled split" else None
    build_trainer(tmp_path, digits(), split).train()
    assert [line.keys() for line in evaluations_of(tmp_path)] == [{"step"} | LABEL_FREE] * 2
    if split is None:
        assert "no evaluation split (--eval_split, --validation_dir): label_free of a fixed sample of 40" in (
            capsys.readouterr().out
        )
    else:
        assert "left out the evaluation 'knn', which needs labels" in caplog.text


def test_a_folder_of_images_without_classes_is_evaluated(tmp_path):
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    trainer = build_trainer(tmp_path / "run", digits(), load_image_dataset(str(tmp_path / "images")))
    assert trainer.run_evaluation(trainer.model).keys() == LABEL_FREE


def test_a_training_set_without_labels_is_enough(tmp_path):
    trainer = build_trainer(tmp_path, digits().remove_columns("label"))
    assert trainer.run_evaluation(trainer.model).keys() == LABEL_FREE


def test_the_sample_is_the_same_at_every_evaluation_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_hub.training.run_evaluation._STAND_IN_SIZE", 10)
    monkeypatch.setattr("ssl_hub.training.trainer.write_results", lambda *args, **kwargs: None)
    trainer = build_trainer(tmp_path / "with", digits(), max_train_steps=3, eval_steps=1)
    assert len(trainer.run_evaluation.eval_dataset) == 10
    trainer.train()
    labels = trainer.run_evaluation.eval_dataset["label"][:]
    for seed in range(2):
        again = build_trainer(tmp_path / "again", digits(), seed=seed).run_evaluation.eval_dataset
        assert (again["label"][:] == labels) == (seed == 0)
    without = build_trainer(tmp_path / "without", digits(), max_train_steps=3)
    without.run_evaluation.evaluators = []
    without.train()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, without.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("evaluation", "streamed", "given"),
    [
        ("[{type: knn}]", False, None),
        ("[{type: label_free}, {type: knn}]", False, None),
        ("[{type: label_free}]", True, None),
        ("[{type: label_free}]", False, 1),
    ],
)
def test_what_was_asked_for_by_name_is_evaluated_or_refused(evaluation, streamed, given, tmp_path):
    dataset = digits().to_iterable_dataset() if streamed else digits()
    if given is None:
        with pytest.raises(ValueError, match=r"--evaluation needs images to evaluate on: .*--eval_split"):
            build_trainer(tmp_path, dataset, evaluation=evaluation)
    else:
        assert len(build_trainer(tmp_path, dataset, evaluation=evaluation).run_evaluation.evaluators) == given


def test_a_recipe_that_asks_for_labels_trains_without_a_split(tmp_path):
    trainer = build_trainer(tmp_path, digits(), None, [{"type": "linear_probe"}, {"type": "label_free"}])
    assert [each.type for each in trainer.run_evaluation.evaluators] == ["label_free"]
    assert build_trainer(tmp_path, digits(), None, [{"type": "knn"}]).run_evaluation.evaluators == []
    stream = build_trainer(tmp_path, digits().to_iterable_dataset())
    assert stream.run_evaluation.evaluators == []


# A limit for the bank of kNN


@pytest.mark.parametrize(("limit", "bank"), [(None, 40), (0, 40), (7, 7), (40, 40), (100, 40)])
def test_knn_takes_no_more_than_its_limit(limit, bank, tmp_path, monkeypatch):
    sizes = []
    table = RunEvaluation.feature_table

    def count(self, model, dataset, *args, **kwargs):
        sizes.append(len(dataset))
        return table(self, model, dataset, *args, **kwargs)

    monkeypatch.setattr(RunEvaluation, "feature_table", count)
    trainer = build_trainer(tmp_path, digits(), digits("test", 20), knn_max_samples=limit)
    first, second = (trainer.run_evaluation(trainer.model) for _ in range(2))
    assert sizes == [20, bank] * 2
    assert first == second and first["knn_accuracy"] > 0.2
    assert trainer.run_evaluation.num_passes == 20 + bank
    trainer.run_evaluation.accuracy_baselines()
    assert sizes[4:] == [bank, 20]  # of pixels, with the same bank
    line = f"the evaluation 'knn' uses a fixed sample of {bank} of the 40 training images"
    assert trainer.run_evaluation.notes == ([line] if bank < 40 else [])


def test_a_recipe_has_the_limit_too(tmp_path, monkeypatch):
    recipe = [{"type": "knn", "max_samples": 7}, {"type": "linear_probe", "max_samples": 9}, {"type": "label_free"}]
    trainer = build_trainer(tmp_path, digits(), digits("test", 20), recipe)
    seen = {}
    for evaluator in trainer.run_evaluation.evaluators:

        def evaluate(self, features, train):
            seen[self.type] = train and len(train.features)
            return {}

        monkeypatch.setattr(type(evaluator), "evaluate", evaluate)
    trainer.run_evaluation(trainer.model)
    assert seen == {"knn": 7, "linear_probe": 9, "label_free": None}


@pytest.mark.parametrize("limit", [-1, 2.5, True, "many"])
def test_limits_that_are_none(limit, tmp_path):
    with pytest.raises(ValueError, match=r"max_samples=.* must be a whole number of at least 0"):
        build_evaluators([{"type": "knn", "max_samples": limit}])


# Small and unreadable


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 5)

    def forward(self, pixel_values):
        return BaseModelOutputWithPooling(pooler_output=self.layer(pixel_values.flatten(1)))


@pytest.mark.parametrize("num_images", [1, 2, 3])
@pytest.mark.parametrize("order", ["contiguous", "chosen", "shuffled"])
def test_fewer_images_than_processes(num_images, order, monkeypatch):
    whole = image_dataset(5)
    dataset = {
        "contiguous": whole.select(range(num_images)),
        "chosen": whole.select([4, 2, 1][:num_images]),
        "shuffled": whole.shuffle(seed=0).select(range(num_images)),
    }[order]
    model, processor = Backbone(), build_image_processor(2, [0.5] * 3, [0.5] * 3)
    known = torch.zeros(num_images, dtype=torch.int)
    for rank in range(4):
        monkeypatch.setattr(features_module, "num_processes", lambda: 4)
        monkeypatch.setattr(features_module, "process_index", lambda rank=rank: rank)
        rows = process_rows(num_images)
        loader = build_eval_loader(dataset.select(rows), processor, batch_size=2)
        known += extract_feature_table(None, model, loader, num_images, offset=rows.start).known
    assert known.tolist() == [1] * num_images


def test_features_pair_with_files():
    dataset = image_dataset(6, unreadable=(0, 3))
    loader = build_eval_loader(dataset, build_image_processor(2, [0.5] * 3, [0.5] * 3), batch_size=2)
    model = Backbone()
    features, labels, indices = extract_features(model, loader)
    assert indices.tolist() == [1, 2, 4, 5] and labels is None
    table = extract_feature_table(None, model, loader, len(dataset))
    assert torch.equal(table.features[indices], features)


@pytest.mark.parametrize(
    ("eval_dataset", "sentence"),
    [
        (image_dataset(2).select([]), "the evaluation split has no images"),
        (image_dataset(2, unreadable=(0, 1)), "none of 2 images of the evaluation split can be read"),
        (None, "none of 8 images of the training split can be read"),
    ],
)
def test_a_split_without_a_readable_image(eval_dataset, sentence, tmp_path):
    train_dataset = digits() if eval_dataset is not None else image_dataset(8, unreadable=range(8))
    with pytest.raises(ValueError, match=sentence):
        build_trainer(tmp_path, train_dataset, eval_dataset).train()


# Labels, features and models that a protocol cannot take


@pytest.mark.parametrize(
    ("protocol", "train_labels", "labels", "message"),
    [
        ("linear_probe", [1] * 6, [0, 1] * 3, "All 6 training images are of one class"),
        ("svm", [1] * 6, [0, 1] * 3, "all 6 images of a side are of one class"),
        ("low_shot_svm", [0, 1] * 3, [1] * 6, "all 6 images of a side are of one class"),
        ("svm", [0, 1] * 3, [0, 1, 4] * 2, "the classes 4 have images on one side only"),
        ("svm", [0, 1, 1, 1, 1, 1], [0, 1] * 3, "Class 0 has 1 of 6 training images: .* it needs 3"),
        ("low_shot_svm", [0, 1] * 3, [0, 1] * 3, "num_positives=4 needs 5"),
        ("clustering", [0, 1] * 3, [1] * 6, "needs two classes or more"),
        ("retrieval", [0, 1] * 3, [1] * 6, "retrieval needs two classes or more"),
    ],
)
def test_labels_of_one_class_and_on_one_side(protocol, train_labels, labels, message):
    (evaluator,) = build_evaluators([{"type": protocol}])
    train, test = (LabelledFeatures(torch.randn(6, 4), torch.tensor(each)) for each in (train_labels, labels))
    with pytest.raises(ValueError, match=message):
        evaluator.evaluate(test, train)


@pytest.mark.parametrize("protocol", ["knn", "linear_probe", "svm"])
@pytest.mark.parametrize(
    ("features", "message"), [(torch.full((6, 4), torch.nan), "NaN"), (torch.ones(6, 5), "dimensions|features")]
)
def test_features_that_are_not_finite_or_of_another_width(protocol, features, message):
    (evaluator,) = build_evaluators([{"type": protocol}])
    labels = torch.tensor([0, 1] * 3)
    with pytest.raises(ValueError, match=message):
        evaluator.evaluate(LabelledFeatures(features, labels), LabelledFeatures(torch.randn(6, 4), labels))


def test_a_plain_model_that_has_diverged(tmp_path):
    """Of ours, loading says so already."""
    model = ViTModel(ViTConfig(**TINY["backbone_config"]))
    torch.nn.init.constant_(model.layernorm.weight, torch.nan)
    model.save_pretrained(tmp_path)
    build_image_processor(16, [0.5] * 3, [0.5] * 3).save_pretrained(tmp_path)
    for load in (load_feature_model, load_backbone, lambda name: load_classifier(str(name), ["yes", "no"])):
        with pytest.raises(ValueError, match="holds NaN or infinity"):
            load(tmp_path)


def test_a_single_image_has_no_spectrum(tmp_path):
    with pytest.raises(ValueError, match="on two images or more"):
        plot_comparison({"model": {}}, tmp_path / "comparison.png")
