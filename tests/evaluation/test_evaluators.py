import json
import logging
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from matplotlib.figure import Figure
from transformers import ViTConfig

from ssl_hub import SimCLRConfig
from ssl_hub.evaluation.base import LabelledFeatures
from ssl_hub.evaluation.evaluators import (
    DEFAULT_EVALUATION,
    EVALUATORS,
    METRICS,
    Evaluator,
    Metric,
    build_evaluators,
    describe_metrics,
)
from ssl_hub.evaluation.knn import knn_accuracy
from ssl_hub.evaluation.label_free import embedding_std, rankme
from ssl_hub.evaluation.linear_probe import linear_probe_accuracy
from ssl_hub.hub.model_card import build_model_card
from ssl_hub.visualization.curves import plot_training_curves


def labelled_features(seed, count=40):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    features = torch.eye(3, 8)[labels] + 0.4 * torch.randn(count, 8, generator=generator)
    return LabelledFeatures(features, labels)


def test_evaluators_give_what_their_functions_give():
    train, test = labelled_features(0), labelled_features(1)
    evaluators = build_evaluators([{"type": "knn", "k": 5}, {"type": "label_free"}, {"type": "linear_probe"}])
    metrics = {}
    for evaluator in evaluators:
        found = evaluator.evaluate(test, train if evaluator.needs_train_features else None)
        assert found.keys() == evaluator.metrics.keys()
        metrics |= found
    assert metrics == {
        "knn_accuracy": knn_accuracy(*train, *test, k=5),
        "embedding_std": embedding_std(test.features),
        "rankme": rankme(test.features),
        "linear_probe_accuracy": linear_probe_accuracy(*train, *test),
    }
    assert knn_accuracy(*train, *test, k=5) != knn_accuracy(*train, *test, k=20)  # so k was heeded


def test_the_default_logs_what_it_always_did():
    evaluators = build_evaluators(None)
    assert [name for evaluator in evaluators for name in evaluator.metrics] == [
        "knn_accuracy",
        "embedding_std",
        "rankme",
    ]
    few = labelled_features(0, count=7)
    assert evaluators[0].k == 20
    assert evaluators[0].evaluate(labelled_features(1), few) == {
        "knn_accuracy": knn_accuracy(*few, *labelled_features(1), k=7)
    }


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([{"type": "kn"}], "no evaluation 'kn'; near it: knn"),
        ([{"type": "probing"}], "no evaluation 'probing'; (near it|there is)"),
        ([{"type": "knn", "temprature": 1}], "'knn' has no option 'temprature'; near it: temperature"),
        ([{"type": "label_free", "k": 1}], "'label_free' has no option 'k'; there is none"),
        ([{"type": "knn", "k": 0}], "k=0 .* at least 1"),
        ([{"type": "knn", "k": 2.5}], "k=2.5 .* whole number"),
        ([{"type": "knn", "k": True}], "k=True"),
        ([{"type": "knn", "k": "20"}], "k='20'"),
        ([{"type": "knn", "temperature": 0}], "temperature=0 "),
        ([{"type": "knn", "temperature": "low"}], "temperature='low'"),
        ([{"type": "knn", "k": 10}, {"type": "label_free"}, {"type": "knn", "k": 20}], "has knn more than once"),
        (["knn"], r"must be a list such as .*; got \['knn'\]"),
        ([{"k": 20}], "must be a list such as"),
        ([{"type": ["knn"]}], "must be a list such as"),
        ({"type": "knn"}, "must be a list such as"),
    ],
)
def test_bad_specifications(specs, message):
    with pytest.raises(ValueError, match=message):
        build_evaluators(specs)


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("has_train_labels", "'knn' needs labels, and the training split has none: .*_name, or leave 'knn' out"),
        ("has_eval_labels", "'knn' needs labels, and the evaluation split has none"),
        ("has_train_features", "'knn' needs the training images by index, and they are streamed"),
    ],
)
def test_what_the_data_does_not_have(lacking, message, caplog):
    with pytest.raises(ValueError, match=message):
        build_evaluators(DEFAULT_EVALUATION, **{lacking: False})
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert [evaluator.type for evaluator in build_evaluators(None, **{lacking: False})] == ["label_free"]
    assert "left out the evaluation 'knn', which needs" in caplog.text
    assert len(build_evaluators([{"type": "label_free"}], **{lacking: False})) == 1


@pytest.fixture
def toy_evaluator():
    class ToyEvaluator(Evaluator):
        type: ClassVar[str] = "toy"
        metrics: ClassVar[dict[str, Metric]] = {
            "toy_error": Metric("toy error", percent=True, higher_is_better=False, hub_type="toy_error")
        }
        needs_labels: ClassVar[bool] = False
        needs_train_features: ClassVar[bool] = False

        def evaluate(self, features, train):
            return {"toy_error": len(features.features) / 100}

    yield ToyEvaluator
    del EVALUATORS["toy"], METRICS["toy_error"]


def test_a_new_metric_is_told_in_one_place(toy_evaluator, tmp_path, monkeypatch):
    (evaluator,) = build_evaluators([{"type": "toy"}])
    metrics = evaluator.evaluate(labelled_features(0), None)
    assert describe_metrics(metrics) == "toy error 40.00%"

    records = [{"step": 1, "loss": 2.0}, {"step": 1, **metrics}]
    config = SimCLRConfig(backbone_config=ViTConfig())
    card = build_model_card(config, dataset_name="digits", training_arguments=None, metrics=records)
    assert "| toy error ↓ | 40.00% |" in card.text
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [("toy_error", 0.4)]

    drawn = {}
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *args, **kwargs: drawn.update(
            {axes.get_title(): axes.lines[0].get_ydata().tolist() for axes in figure.axes if axes.get_title()}
        ),
    )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    plot_training_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert drawn == {"Training": [2.0], "toy error": [40.0]}


def test_no_order_of_imports_shows():
    code = "import ssl_hub.evaluation.spectrum, ssl_hub.evaluation.evaluators as e; print(*e.METRICS)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [name for name in METRICS if name != "toy_error"]
    types = [next(each.type for each in EVALUATORS.values() if name in each.metrics) for name in METRICS]
    assert types == sorted(types)


def test_names_are_taken_once(toy_evaluator):
    for names in ({"type": "toy", "metrics": {}}, {"type": "other", "metrics": {"toy_error": Metric("another")}}):
        with pytest.raises(ValueError, match="choose other names"):
            type("Second", (Evaluator,), names)
