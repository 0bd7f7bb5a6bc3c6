import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ssl_hub.evaluation.features import check_features, extract_features


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
    features, labels = extract_features(model, DataLoader(dataset(), batch_size=3))
    images = torch.stack([item["pixel_values"] for item in dataset()])
    with torch.no_grad():
        expected = model.eval()(images).pooler_output
    torch.testing.assert_close(features, expected)
    assert not features.requires_grad
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


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
    features, labels = extract_features(model, [{"pixel_values": torch.ones(2, 3, 2, 2, dtype=torch.bfloat16)}])
    assert features.dtype == torch.float32 and features.shape == (2, 5)
    assert labels is None


def test_bad_loaders_and_outputs():
    images = torch.ones(2, 3, 2, 2)
    with pytest.raises(ValueError, match="no batch"):
        extract_features(Backbone(), [])
    with pytest.raises(ValueError, match="1 of 2 batches"):
        extract_features(Backbone(), [{"pixel_values": images}, {"pixel_values": images, "labels": torch.zeros(2)}])
    model = Backbone()
    model.layers = nn.Conv2d(3, 4, 1)
    with pytest.raises(ValueError, match=r"\(2, 4, 2, 2\)"):
        extract_features(model, [{"pixel_values": images}])


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
