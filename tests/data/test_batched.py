"""Views that are rendered as a batch are those that are rendered one by one."""

import json
from importlib.resources import files

import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from ssl_hub.data.views import Draws, build_views
from ssl_hub.training.recipes import load_recipe

PHOTOS = [cv2.resize(pixels, (250, 190), interpolation=cv2.INTER_AREA) for pixels in load_sample_images().images]


def draw(view, count):
    return view.draw(np.full(count, 190), np.full(count, 250), Draws(0, np.arange(count)))


def images(count):
    return torch.from_numpy(np.stack([PHOTOS[i % 2] for i in range(count)]))


def differences(view, count):
    """Of each named tensor, in levels of 255."""
    drawn = draw(view, count)
    batch = view.render_batch(images(count), drawn)
    ones = [view.render(PHOTOS[i % 2], {name: values[i] for name, values in drawn.items()}) for i in range(count)]
    assert batch.keys() == ones[0].keys()
    for name, tensor in batch.items():
        expected = torch.stack([one[name] for one in ones])
        assert tensor.shape == expected.shape and tensor.dtype == expected.dtype and tensor.is_contiguous()
        yield (tensor.int() - expected.int()).abs()


@pytest.mark.parametrize(
    ("keys", "mean", "most"),
    [
        ({"hflip": 0.5}, 0.02, 1),
        ({"hflip": 0.5, "interpolation": "bilinear"}, 0.02, 1),
        ({"hflip": 0.5, "scale": [1, 1], "ratio": [1.31, 1.32], "size": 300}, 0.02, 1),  # enlarged
        ({"rotation": 20}, 0.02, 255),  # where the place is on the edge between two pixels
        ({"color_jitter": {"p": 1, "brightness": 0.8}}, 0.02, 2),
        ({"color_jitter": {"p": 1, "contrast": 0.8}}, 0.02, 2),
        ({"color_jitter": {"p": 1, "saturation": 0.8}}, 0.02, 2),
        ({"color_jitter": {"p": 1, "hue": 0.5}}, 0.03, 8),  # a step of the 8-bit hue is up to 6 levels
        ({"color_jitter": {"p": 0.7, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}}, 0.03, 20),
        ({"grayscale": 0.5}, 0.02, 1),
        ({"grayscale": {"p": 0.5, "weights": "mean"}}, 0.2, 2),
        ({"gaussian_blur": {"p": 0.7}}, 0.25, 2),
        ({"gaussian_blur": {"p": 1, "sigma": [0.1, 0.4]}}, 0.1, 2),
        ({"gaussian_blur": {"p": 1, "sigma": [4, 9]}, "size": 16}, 0.3, 3),  # wider than the view
        ({"solarize": {"p": 0.5}, "target": {"size": 48, "interpolation": "bilinear"}}, 0.02, 255),  # at the threshold
        ({"kind": "patches"}, 0.2, 2),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_each_operation(keys, mean, most):
    (built,) = build_views([keys if "kind" in keys else {"size": 96, "scale": [0.2, 1], **keys}])
    for difference in differences(built, 12):
        assert difference.float().mean() < mean
        assert difference.max() <= most


def test_the_views_of_all_recipes():
    seen = set()
    for path in files("ssl_hub.recipes").iterdir():
        if path.name.endswith(".yaml"):
            recipe = load_recipe(path.name.removesuffix(".yaml"))
            for view in recipe.views:
                default = {} if view.get("kind") == "patches" else {"size": recipe.model.get("image_size", 224)}
                seen.add(json.dumps(default | view | {"count": 1}, sort_keys=True))
    assert len(seen) > 15
    for view in seen:
        for difference in differences(*build_views([json.loads(view)]), 2):
            assert difference.float().mean() < 0.4, view


def test_rendering_depends_on_nothing_else():
    view = {"size": 64, "hflip": 0.5, "rotation": 5, "gaussian_blur": {"p": 0.5}, "solarize": {"p": 0.5}}
    view["color_jitter"] = {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    for built in build_views([view, {"kind": "patches"}]):
        drawn, state = draw(built, 6), torch.get_rng_state()
        whole, again = (built.render_batch(images(6), drawn)["pixel_values"] for _ in range(2))
        assert torch.equal(whole, again) and torch.equal(torch.get_rng_state(), state)
        # Of other images of the batch: none of their numbers, no padding.
        part = built.render_batch(
            torch.nn.functional.pad(images(6)[2:4], (0, 0, 0, 70, 0, 30), value=99),
            {name: values[2:4] for name, values in drawn.items()},
        )["pixel_values"]
        assert (part.int() - whole[2:4].int()).abs().float().mean() < 0.02
