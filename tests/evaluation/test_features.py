import json
import tempfile
from io import BytesIO

import datasets
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from processes import run_processes
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers.modeling_outputs import BaseModelOutputWithPooling

import ssl_hub.evaluation.features as features_module
from ssl_hub.data.loading import build_eval_loader
from ssl_hub.data.processing import build_image_processor
from ssl_hub.evaluation.base import LabelledFeatures
from ssl_hub.evaluation.features import (
    check_features,
    extract_feature_table,
    extract_features,
    gather_feature_tables,
    known_rows,
    process_rows,
)
from ssl_hub.evaluation.knn import KNNEvaluator, knn_accuracies
from ssl_hub.lifecycle import FeatureTable


class Backbone(nn.Module):
    """Dropout and BatchNorm tell whether the model ran in eval mode."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))

    def forward(self, pixel_values):
        return BaseModelOutputWithPooling(pooler_output=self.layers(pixel_values))


def dataset(labels=True):
    images = torch.arange(7 * 12, dtype=torch.float32).view(7, 3, 2, 2) / 84
    return [{"pixel_values": image} | ({"labels": i % 3} if labels else {}) for i, image in enumerate(images)]


def test_features_are_those_of_eval_mode_in_order():
    model = Backbone().train()
    features, labels, indices = extract_features(model, DataLoader(dataset(), batch_size=3))
    images = torch.stack([item["pixel_values"] for item in dataset()])
    with torch.no_grad():
        expected = model.eval()(images).pooler_output
    torch.testing.assert_close(features, expected)
    assert not features.requires_grad
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0] and indices is None


def test_modes_statistics_and_random_state_are_left_alone():
    model = Backbone().train()
    model.layers[2].eval()  # a frozen BatchNorm, as a teacher or a linear probe has
    statistics = model.layers[2].running_mean.clone()
    state = torch.get_rng_state()
    extract_features(model, DataLoader(dataset(), batch_size=3, shuffle=True))
    assert model.training and model.layers[3].training and not model.layers[2].training
    assert torch.equal(model.layers[2].running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_come_back_after_an_error():
    model = Backbone().train()
    with pytest.raises(KeyError):
        extract_features(model, [{"image": None}])
    assert model.training and model.layers[3].training


def test_half_precision_without_labels():
    model = Backbone().to(torch.bfloat16)
    features, labels, _ = extract_features(model, [{"pixel_values": torch.ones(2, 3, 2, 2, dtype=torch.bfloat16)}])
    assert features.dtype == torch.float32 and features.shape == (2, 5)
    assert labels is None


def test_bad_loaders_and_outputs():
    images = torch.ones(2, 3, 2, 2)
    with pytest.raises(ValueError, match="no image"):
        extract_features(Backbone(), [])
    with pytest.raises(ValueError, match="1 of 2 batches"):
        extract_features(Backbone(), [{"pixel_values": images}, {"pixel_values": images, "labels": torch.zeros(2)}])
    model = Backbone()
    model.layers = nn.Conv2d(3, 4, 1)
    with pytest.raises(ValueError, match=r"\(2, 4, 2, 2\)"):
        extract_features(model, [{"pixel_values": images}])


# Features by row


UNREADABLE = (0, 3, 9)


def image_dataset():
    """Ten images, of which three cannot be read."""
    rows = []
    for index in range(10):
        pixels = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer := BytesIO(), format="PNG")
        content = b"no image" if index in UNREADABLE else buffer.getvalue()
        rows.append({"image": {"bytes": content, "path": None}, "label": index % 2})
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    return datasets.Dataset.from_list(rows, features=features)


def image_loader(dataset, batch_size):
    return build_eval_loader(
        dataset, build_image_processor(2, [0.5] * 3, [0.5] * 3, crop_ratio=1.0), batch_size=batch_size
    )


def image_model():
    torch.manual_seed(0)
    return Backbone().train()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_row_i_is_image_i(batch_size, caplog):
    dataset, model = image_dataset(), image_model()
    table = extract_feature_table(None, model, image_loader(dataset, batch_size), len(dataset))
    assert table.known.tolist() == [index not in UNREADABLE for index in range(10)]
    assert not table.features[~table.known].any()
    for index in range(10):  # each by itself
        if index not in UNREADABLE:
            features, labels, _ = extract_features(model, image_loader(dataset.select([index]), 1))
            torch.testing.assert_close(table.features[index], features[0])
            assert labels.tolist() == [index % 2]
    features, labels, indices = extract_features(model, image_loader(dataset, batch_size))
    torch.testing.assert_close(features, table.features[table.known])
    assert indices.tolist() == [index for index in range(10) if index not in UNREADABLE]
    assert labels.tolist() == [index % 2 for index in indices]
    assert "3 images cannot be read and have no features: row 0, row 3, row 9" in caplog.text
    assert model.training and torch.is_grad_enabled()


def test_other_features_than_the_pooled_ones():
    dataset, model = image_dataset(), image_model()
    modes = []

    def extract(pixel_values):
        modes.append((model.training, torch.is_grad_enabled()))
        return pixel_values.mean(dim=(2, 3)).double()

    table = extract_feature_table(extract, model, image_loader(dataset, 4), len(dataset))
    assert table.features.shape == (10, 3) and table.features.dtype == torch.float32
    assert set(modes) == {(False, False)} and model.training
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 2\)"):
        extract_feature_table(lambda pixel_values: pixel_values, model, image_loader(dataset, 2), len(dataset))
    assert model.training and torch.is_grad_enabled()


def test_rows_that_the_dataset_does_not_have():
    dataset, model = image_dataset(), image_model()
    with pytest.raises(ValueError, match=r"rows 9 to 10 \(offset 8\) are not all among the 10"):
        extract_feature_table(None, model, image_loader(dataset, 4), len(dataset), offset=8)


def test_a_dataset_without_a_readable_image():
    table = extract_feature_table(None, image_model(), image_loader(image_dataset().select([0, 3]), 2), 2)
    assert table.features.shape == (2, 0) and not table.known.any()


def test_a_large_table_lies_in_a_file_that_goes_away(tmp_path, monkeypatch):
    dataset = image_dataset().select([0, 3, 1, 2])
    in_memory = extract_feature_table(None, image_model(), image_loader(dataset, 2), len(dataset))
    monkeypatch.setattr(features_module, "LARGEST_TABLE_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    table = extract_feature_table(None, image_model(), image_loader(dataset, 2), len(dataset))
    assert table.features.untyped_storage().filename.startswith(str(tmp_path)) and not list(tmp_path.iterdir())
    assert torch.equal(table.features, in_memory.features) and torch.equal(table.known, in_memory.known)


def test_known_rows(monkeypatch, tmp_path):
    table = FeatureTable(torch.rand(9, 2), torch.ones(9, dtype=torch.bool))
    assert known_rows(table) is table.features
    table.known[[0, 5]] = False
    expected = table.features[[1, 2, 3, 4, 6, 7, 8]]
    assert torch.equal(known_rows(table), expected)
    monkeypatch.setattr(features_module, "_CHECKED_ROWS", 3)
    monkeypatch.setattr(features_module, "LARGEST_TABLE_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = known_rows(table)
    assert torch.equal(rows, expected) and rows.untyped_storage().filename.startswith(str(tmp_path))


def gather_parts(folder):
    """Gathers the parts `part-RANK.safetensors` of all processes into each one's `table-RANK.safetensors`."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    features_module._MAX_ENTRIES = 15  # three rows at a time
    table = gather_feature_tables(FeatureTable(**load_file(folder / f"part-{rank}.safetensors")))
    save_file({"features": table.features, "known": table.known}, folder / f"table-{rank}.safetensors")
    with pytest.raises(ValueError, match="4 rows were extracted by several processes"):
        gather_feature_tables(FeatureTable(torch.zeros(10, 2), torch.arange(10) < 4))
    (folder / f"knn-{rank}.json").write_text(json.dumps(accuracies(shared=True)))


def accuracies(shared):
    """By kNN of many test images, of two for three processes, and of an evaluator."""
    generator = torch.Generator().manual_seed(0)
    train, test = (
        LabelledFeatures(torch.randn(count, 8, generator=generator), torch.randint(3, (count,), generator=generator))
        for count in (60, 50)
    )
    two = LabelledFeatures(*(each[:2] for each in test))
    found = [knn_accuracies(*train, *each, ks=[1, 9], temperatures=[0.07, 1.0], shared=shared) for each in (test, two)]
    return [*found[0].values(), *found[1].values(), KNNEvaluator(k=100).evaluate(test, train)["knn_accuracy"]]


def test_processes_share_what_one_process_does(tmp_path, monkeypatch):
    dataset = image_dataset().select([0, 3, 1, 2, 9, 4, 5])  # the first of three processes can read none of its images
    expected = extract_feature_table(None, image_model(), image_loader(dataset, 2), len(dataset))
    assert gather_feature_tables(expected) is expected
    assert process_rows(len(dataset)) == range(7)
    all_rows = []
    for rank in range(3):
        with monkeypatch.context() as context:
            context.setattr(features_module, "num_processes", lambda: 3)
            context.setattr(features_module, "process_index", lambda rank=rank: rank)
            rows = process_rows(len(dataset))
        all_rows += rows
        loader = image_loader(dataset.select(rows), 2)
        part = extract_feature_table(None, image_model(), loader, len(dataset), offset=rows.start)
        save_file({"features": part.features, "known": part.known}, tmp_path / f"part-{rank}.safetensors")
    assert all_rows == list(range(7))

    run_processes(gather_parts, 3, tmp_path)
    first = load_file(tmp_path / "table-0.safetensors")
    torch.testing.assert_close(first["features"], expected.features)
    for rank in range(3):
        table = load_file(tmp_path / f"table-{rank}.safetensors")
        assert torch.equal(table["known"], expected.known)
        assert torch.equal(table["features"], first["features"])
        assert json.loads((tmp_path / f"knn-{rank}.json").read_text()) == accuracies(shared=False)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.ones(0, 4), None, r"\(0, 4\)"),
        (torch.ones(4), None, r"\(4,\)"),
        (torch.tensor([[1.0, float("nan")], [1.0, 2.0]]), None, "1 of 2 train features"),
        (torch.ones(2, 4), torch.zeros(3, dtype=torch.long), r"2 features but labels of shape \(3,\)"),
        (torch.ones(2, 4), torch.zeros(2), "float32"),
        (torch.ones(2, 4), torch.tensor([0, -1]), "-1"),
    ],
)
def test_check_features(features, labels, message):
    with pytest.raises(ValueError, match=message):
        check_features("train", features, labels)
