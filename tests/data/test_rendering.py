"""Batches that are rendered on a device, and datasets that are decoded once."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_hub.data import rendering
from ssl_hub.data.caching import cache_images
from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.loading import build_train_loader
from ssl_hub.data.rendering import BatchRenderer
from ssl_hub.data.views import build_views

NUM_IMAGES = 14
DAMAGED = (5, 6, 13)
CPU = torch.device("cpu")
VIEWS = build_views(
    [
        {
            **{"count": 2, "size": 16, "hflip": 0.5, "gaussian_blur": {"p": 0.5}, "solarize": {"p": 0.3}},
            "color_jitter": {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
        },
        {"size": 8, "scale": [0.2, 0.5], "mask": {"kind": "random", "patch": 4, "count": 2}, "target": {"size": 12}},
    ]
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Smooth images of many sizes, PNG and JPEG; two neighbours and the last one are damaged."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        path = folder / f"{i:02}.{'jpg' if i % 2 else 'png'}"
        image = Image.fromarray(noise.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        image.resize((45 - i, 20 + i), Image.Resampling.BICUBIC).save(path)
        if i in DAMAGED:
            path.write_bytes(path.read_bytes()[:120])
    return load_image_dataset(folder)


def batches_of(dataset, way, views=VIEWS, num_workers=0, batch_size=6):
    """Of the second epoch."""
    images, options, render = None, {}, lambda batch: batch
    if way in ("memory", "memory, on device", "device"):
        options["images"] = images = cache_images(dataset, views, CPU, num_workers=num_workers)
    if way in ("on device", "memory, on device"):
        options["rendered"], render = False, BatchRenderer(views, CPU)
    if way == "device":
        options["rendered"], render = False, BatchRenderer(views, CPU, images)
        options["images"] = [image if isinstance(image, str) else image.to("meta") for image in images]
    loader = build_train_loader(dataset, views, batch_size=batch_size, seed=3, num_workers=num_workers, **options)
    loader.batch_sampler.set_epoch(1)
    return [render(batch) for batch in loader]


def tensors_of(batch):
    for name, value in batch.items():
        if name != "unreadable":
            yield from ((name, tensor) for tensor in (value if isinstance(value, list) else [value]))


@pytest.mark.parametrize("way", ["memory", "on device", "memory, on device", "device"])
@pytest.mark.parametrize("views", [VIEWS, build_views([{"kind": "patches", "size": 6, "jitter": 2, "resize": 26}])])
def test_the_batches_are_the_same(dataset, way, views):
    expected = batches_of(dataset, "no", views)
    for batch, other in zip(batches_of(dataset, way, views), expected, strict=True):
        assert batch.keys() == other.keys()
        assert sorted(batch["unreadable"]) == sorted(other["unreadable"])
        for (name, tensor), (_, reference) in zip(tensors_of(batch), tensors_of(other), strict=True):
            assert tensor.shape == reference.shape and tensor.dtype == reference.dtype and tensor.is_contiguous()
            if way == "memory" or tensor.dtype != torch.uint8:
                assert torch.equal(tensor, reference)
            else:
                assert (tensor.int() - reference.int()).abs().float().mean() < 0.5, name


@pytest.mark.parametrize("way", ["memory", "on device", "device"])
def test_workers_change_nothing(dataset, way):
    for batch, other in zip(batches_of(dataset, way), batches_of(dataset, way, num_workers=2), strict=True):
        assert batch["unreadable"] == other["unreadable"]
        for (_, tensor), (_, reference) in zip(tensors_of(batch), tensors_of(other), strict=True):
            assert torch.equal(tensor, reference)


def test_a_batch_that_would_need_much_memory_is_rendered_in_parts(dataset, monkeypatch):
    (whole,) = batches_of(dataset, "on device", batch_size=NUM_IMAGES)
    padded, shapes = rendering._pad, []
    monkeypatch.setattr(rendering, "_pad", lambda images: shapes.append(padded(images).shape) or padded(images))
    monkeypatch.setattr(rendering, "_MAX_BYTES", 12 * 4 * 45 * 33)
    (parts,) = batches_of(dataset, "on device", batch_size=NUM_IMAGES)
    assert len(shapes) >= 3 and sum(shape[0] for shape in shapes) == NUM_IMAGES
    assert all(shape[0] * shape[1] * shape[2] <= 4 * 45 * 33 for shape in shapes)
    for (_, tensor), (_, reference) in zip(tensors_of(parts), tensors_of(whole), strict=True):
        assert (tensor.int() - reference.int()).abs().float().mean() < 0.1


def test_a_large_photo_is_kept_no_larger_than_views_can_need(tmp_path):
    Image.effect_noise((1200, 800), 90).convert("RGB").save(tmp_path / "a.jpg")
    dataset = load_image_dataset(tmp_path)
    for view, shape in (
        ({"size": 64, "scale": [0.2, 1.0]}, (200, 300, 3)),
        ({"size": 64, "scale": [0.2, 1.0], "target": {"size": 150}}, (400, 600, 3)),
        ({"size": 64, "scale": [0.01, 1.0]}, (800, 1200, 3)),
        ({"kind": "patches", "resize": 260}, (400, 600, 3)),
    ):
        (image,) = cache_images(dataset, build_views([view]), CPU)
        assert image.shape == shape and image.dtype == torch.uint8


def test_a_dataset_that_cannot_be_kept(dataset, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 2**13}))
    with pytest.raises(ValueError, match=r"about .*e-05 GiB for 14 images, and main memory has 7.6e-06 GiB"):
        cache_images(dataset, VIEWS, CPU)
    with pytest.raises(ValueError, match="leave out --streaming"):
        cache_images(dataset.to_iterable_dataset(), VIEWS, CPU)
