"""The examples that embed datasets and report on models."""

import json
import runpy
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel

from ssl_hub.commands.evaluate import rank_correlations
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.images import decode_image
from ssl_hub.data.processing import build_image_processor
from ssl_hub.evaluation.feature_models import load_feature_model, untrained_model
from ssl_hub.hub.evaluation_report import ModelReport
from ssl_hub.hub.model_card import build_model_card
from ssl_hub.hub.publishing import save_for_sharing
from ssl_hub.training.recipes import load_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model, its card, and some digits."""
    folder = tmp_path_factory.mktemp("examples")
    torch.manual_seed(1)
    config = load_recipe("mae-vit-tiny-digits").build_config()
    processor = build_image_processor(16, config.image_mean, config.image_std, crop_ratio=1.0)
    save_for_sharing(AutoModel.from_config(config), processor, folder / "model")
    metrics = [{"step": 1, "loss": 1.0}, {"step": 1, "knn_accuracy": 0.3}]
    card = build_model_card(config, dataset_name="digits", training_arguments=None, metrics=metrics)
    card.save(folder / "model" / "README.md")
    (folder / "model" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    training = {"dataset_name": "some", "train_split": "train", "eval_split": "test"}
    (folder / "model" / "recipe.yaml").write_text(json.dumps({"training": training}))
    some = {split: load_image_dataset("digits", split).select(range(30)) for split in ("train", "test")}
    datasets.DatasetDict(some).save_to_disk(folder / "some")
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.chdir(folder)

    def run_example(name, *arguments, **options):
        options = {"output_dir": tmp_path / "out", "dataset_name": "some", **options}
        arguments = [*arguments, *(part for key, value in options.items() for part in (f"--{key}", str(value)))]
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run_example


def test_features_and_neighbors(run, tmp_path, capsys):
    query = load_image_dataset("digits", "test")[7]["image"]
    decode_image(query).save(tmp_path / "query.png")
    picture = tmp_path / "neighbors.png"
    options = {"model_name_or_path": "model", "split": "test", "neighbors": tmp_path / "query.png", "num_neighbors": 3}
    for _ in range(2):  # the second time what is there is used
        run("extract_features.py", "--save_index", **options, neighbors_file=picture)
        printed = capsys.readouterr().out.splitlines()
        assert printed[0] == f"30 features of 96 dimensions are in {tmp_path / 'out'}"
        first, *others = printed[4:7]
        assert first.split()[:2] == ["1.0000", "7"] and first.endswith("row 7  (9)") and len(others) == 2
    assert Image.open(picture).width > 400
    embeddings = datasets.load_from_disk(str(tmp_path / "out"))
    embeddings.load_faiss_index("embedding", str(tmp_path / "out.faiss"))
    _, nearest = embeddings.get_nearest_examples("embedding", torch.tensor(embeddings[7]["embedding"]).numpy(), k=1)
    assert nearest["index"] == [7]


def test_report_on_several_models(run, folder, tmp_path, capsys):
    model, processor = load_feature_model(folder / "model")
    untrained_model(model, seed=5).save_pretrained(folder / "other")
    processor.save_pretrained(folder / "other")
    protocols = "[{type: knn}, {type: linear_probe}, {type: label_free}, {type: views, num_images: 8, num_views: 3}]"
    options = {"protocols": protocols, "baselines": "pixels,untrained"}
    run("evaluate_model.py", "--model_name_or_path", "model", "other", **options)
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    results = json.loads((out / "results.json").read_text())["models"]
    assert list(results) == ["model", "other", "untrained", "pixels"]
    names = {"knn_accuracy", "linear_probe_accuracy", "embedding_std", "rankme", "lidar", "alignment"}
    assert all(names <= values.keys() for values in results.values())
    assert f"the report is {out / 'report.html'}" in printed and "model: kNN accuracy" in printed
    kinds = ("map", "neighbors", "confusion", "attention", "patches", "curves")
    page = (out / "report.html").read_text()
    assert page.count("<img") == 1 + len(kinds) + 2 * (len(kinds) - 1) + 3
    assert all((out / "pictures" / f"model-{kind}.png").exists() for kind in kinds)

    card = ModelCard.load(folder / "model" / "README.md")
    found = {(result.metric_name, result.dataset_split): result.metric_value for result in card.data.eval_results}
    assert found[("kNN accuracy", "test")] == round(results["model"]["knn_accuracy"], 4)
    assert ("linear probe accuracy", "test") in found and ("kNN accuracy", None) in found
    assert not (folder / "other" / "README.md").exists()


def test_rank_correlations_of_many_models():
    values = {
        "knn_accuracy": [0.1, 0.2, 0.3, 0.4, 0.5],
        "rankme": [1, 2, 3, 5, 4],
        "alpha_req": [3.0, 0.2, 1.5, 0.9, 1.0],  # nearer to 1 with every model
        "uniformity": [-1, -2, -3, -4, -5],  # the lower, the better
        "embedding_std": [0.5] * 5,
    }
    reports = [ModelReport(str(i), {name: of_models[i] for name, of_models in values.items()}) for i in range(5)]
    correlations = rank_correlations(reports)
    assert correlations == pytest.approx({"rankme": 0.9, "uniformity": 1.0, "alpha_req": 1.0})
    assert rank_correlations(reports[:4]) == {}


def test_svms_of_single_labels_and_of_several(run, folder, tmp_path):
    """The lists of one class each give what the single labels give."""
    some = datasets.load_from_disk(str(folder / "some"))
    feature = datasets.Features({**some["train"].features, "label": [some["train"].features["label"]]})
    for split in some:
        some[split] = some[split].map(lambda row: {"label": [row["label"]]}, features=feature)
    some.save_to_disk(folder / "lists")
    svms = "[{type: svm, costs: [1]}, {type: low_shot_svm, num_positives: 1, num_samples: 2, costs: [1]}]"
    options = {"model_name_or_path": "model", "baselines": "none", "protocols": svms}
    found = []
    for name, more in (("some", {}), ("lists", {"label_column_name": "label"})):
        run("evaluate_model.py", **options, **more, dataset_name=name, output_dir=tmp_path / name)
        found.append(json.loads((tmp_path / name / "results.json").read_text())["models"]["model"])
    assert found[0] == found[1] and found[0].keys() == {"svm_map", "low_shot_svm_map"}
    assert all(0.2 < value < 1 for value in found[0].values())  # 0.1 by chance
    options |= {"dataset_name": "lists", "protocols": "knn,svm", "label_column_name": "label"}
    with pytest.raises(SystemExit, match="the labels are lists of classes, and knn takes one class an image"):
        run("evaluate_model.py", **options)


def test_report_without_labels(run, folder, tmp_path):
    some = datasets.load_from_disk(str(folder / "some"))
    some.remove_columns("label").save_to_disk(folder / "unlabelled")
    options = {"model_name_or_path": "model", "dataset_name": "unlabelled", "baselines": "none"}
    run("evaluate_model.py", **options, protocols="label_free")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "RankMe" in page and "kNN accuracy" not in page and "<th>chance" not in page
    assert not (tmp_path / "out" / "features" / "model-train").exists()  # nothing asked for it
    with pytest.raises(SystemExit, match="'knn' needs labels, and the evaluation split has none"):
        run("evaluate_model.py", **options)


def with_labels(folder, name, **labels_of):
    some = datasets.load_from_disk(str(folder / "some"))
    for split, (labels, names) in labels_of.items():
        feature = datasets.ClassLabel(names=names)
        some[split] = some[split].remove_columns("label").add_column("label", labels, feature=feature)
    some.save_to_disk(folder / name)
    return {"dataset_name": name}


DIGITS = [str(i) for i in range(10)]


@pytest.mark.parametrize(
    ("example", "options", "message"),
    [
        (
            "extract_features.py",
            {"num_neighbors": 31, "neighbors": "query.png"},
            "--num_neighbors must be from 1 to 30",
        ),
        ("extract_features.py", {"neighbors": "none.png"}, "none.png"),
        ("extract_features.py", {"model_name_or_path": "no/such/model"}, "there is no model folder no/such/model"),
        ("extract_features.py", {"per_device_batch_size": 0}, "--per_device_batch_size must be .*at least 1"),
        ("extract_features.py", {"output_dir": "some"}, "some exists and holds no embeddings"),
        ("evaluate_model.py", {"model_name_or_path": "some"}, "the model some cannot be loaded"),
        ("evaluate_model.py", {"protocols": "knn,probing"}, "there is no evaluation 'probing'"),
        ("evaluate_model.py", {"protocols": "[{type: knn"}, "is not YAML"),
        (
            "evaluate_model.py",
            {"protocols": "online_probe"},
            "'online_probe' needs the batches of a pretraining run: name it there, by --evaluation",
        ),
        ("evaluate_model.py", {"baselines": "random"}, "--baselines takes pixels, untrained or none; got random"),
        ("evaluate_model.py", {"model_name_or_path": "pixels"}, "need names of their own in the report; got pixels"),
        ("evaluate_model.py", {"eval_split": "validation"}, "no split 'validation'"),
        ("evaluate_model.py", {"map_method": "umap"}, "pip install umap-learn"),
        ("evaluate_model.py", {"protocols": "[{type: svm, costs: [0]}]"}, "costs=.0. .*must be a list of positive"),
        ("evaluate_model.py", {"protocols": "[{type: low_shot_svm, seed: -1}]"}, "seed=-1 .*must be .*at least 0"),
        (
            "evaluate_model.py",
            lambda folder: {**with_labels(folder, "one-sided", test=([1, 2] * 15, DIGITS)), "protocols": "svm"},
            "the classes 0, 3, 4, 5, 6, ... have images on one side only",
        ),
        (
            "evaluate_model.py",
            lambda folder: with_labels(folder, "null", test=([None] * 2 + [1] * 28, DIGITS)),
            "'knn' needs labels, and the evaluation split has none",
        ),
        (
            "evaluate_model.py",
            lambda folder: with_labels(folder, "renamed", test=([1] * 30, ["cat", "dog"])),
            "'knn' needs labels, and the evaluation split has none",
        ),
    ],
)
def test_user_errors(run, folder, monkeypatch, example, options, message):
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *args: find_spec(name, *args) if name != "umap" else None
    )
    Image.new("RGB", (8, 8)).save(folder / "query.png")
    options = options(folder) if callable(options) else options
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run(example, **{"model_name_or_path": "model", **options})


def test_classes_are_matched_by_their_names(run, folder, tmp_path):
    # The same labels, numbered the other way round.
    some = datasets.load_from_disk(str(folder / "some"))
    turned = [9 - label for label in some["test"]["label"]]
    accuracies = []
    for options in ({"dataset_name": "some"}, with_labels(folder, "turned", test=(turned, DIGITS[::-1]))):
        run("evaluate_model.py", model_name_or_path="model", baselines="none", protocols="knn", **options)
        accuracies.append(json.loads((tmp_path / "out" / "results.json").read_text())["models"]["model"])
        shutil.rmtree(tmp_path / "out")
    assert accuracies[0] == accuracies[1]


def test_a_model_that_has_diverged(run, folder):
    model, processor = load_feature_model(folder / "model")
    with torch.no_grad():
        model.backbone.layernorm.weight.fill_(torch.nan)
    model.save_pretrained(folder / "diverged")
    processor.save_pretrained(folder / "diverged")
    with pytest.raises(SystemExit, match="error: the model diverged cannot be loaded: .*holds NaN or infinity"):
        run("evaluate_model.py", model_name_or_path="diverged")


def test_fewer_images_than_neighbours(run, folder, tmp_path):
    some = datasets.load_from_disk(str(folder / "some"))
    few = {"train": some["train"].select(range(6)), "test": some["test"].select(range(3))}
    datasets.DatasetDict(few).save_to_disk(folder / "few")
    run("evaluate_model.py", model_name_or_path="model", dataset_name="few", protocols="knn")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Confusion matrix of kNN (k 6)" in page and "Map of" not in page and "Nearest neighbours" in page
