import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from ssl_hub.data.processing import Normalize, build_image_processor
from ssl_hub.data.views import build_views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_normalize():
    normalize = Normalize(MEAN, STD)
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    before = pixels.clone()
    out = normalize(pixels)
    expected = (pixels.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(pixels, before)
    torch.testing.assert_close(normalize.denormalize(out), pixels / 255, atol=1e-6, rtol=0)
    assert normalize.denormalize(torch.full((3, 1, 1), 99.0)).max() == 1
    assert not normalize.state_dict()


def test_normalize_keeps_the_list_and_its_input():
    normalize = Normalize(MEAN, STD)
    views = [torch.zeros(2, 3, 8, 8), torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)]
    out = normalize(views)
    assert [view.shape for view in out] == [view.shape for view in views]
    assert out[1][0, 0, 0, 0] == pytest.approx((1 - MEAN[0]) / STD[0])
    assert views[0].abs().max() == 0


def test_normalize_a_batch_by_name():
    dall_e = {"mean": [-0.125] * 3, "std": [1.25] * 3}  # 0.8 * x + 0.1
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    views = build_views([{"size": 8, "target": {"size": 4, **dall_e}}, {"kind": "patches", **half}])
    batch = {
        "pixel_values": [
            torch.full((2, 3, 8, 8), 51, dtype=torch.uint8),
            torch.full((2, 9, 3, 4, 4), 51, dtype=torch.uint8),
        ],
        "target_pixel_values": torch.full((2, 3, 4, 4), 51, dtype=torch.uint8),
        "bool_masked_pos": torch.ones(2, 4, dtype=torch.bool),
        "indices": torch.arange(2),
        "unreadable": ["a.jpg"],
        "none": [],
    }
    out = Normalize(MEAN, STD, views)(batch)
    assert out.keys() == batch.keys()
    for name in ("bool_masked_pos", "indices", "unreadable"):
        assert out[name] is batch[name]
    crop, patches = out["pixel_values"]
    assert crop[1, 0, 3, 3].item() == pytest.approx((0.2 - MEAN[0]) / STD[0])
    assert crop[1, 2, 3, 3].item() == pytest.approx((0.2 - MEAN[2]) / STD[2])
    torch.testing.assert_close(patches, torch.full((2, 9, 3, 4, 4), -0.6))
    torch.testing.assert_close(out["target_pixel_values"], torch.full((2, 3, 4, 4), 0.26))
    assert batch["target_pixel_values"].dtype == torch.uint8

    normalize = Normalize(MEAN, STD, views[:1])
    assert not normalize.state_dict()
    out = normalize({"pixel_values": batch["pixel_values"][0]})
    torch.testing.assert_close(out["pixel_values"], Normalize(MEAN, STD)(batch["pixel_values"][0]))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
@pytest.mark.parametrize("size", [(90, 60), (20, 30), (1, 1)])
def test_image_processor_takes_any_image(mode, size):
    out = build_image_processor(32, MEAN, STD)(Image.new(mode, size), return_tensors="pt")["pixel_values"]
    assert out.shape == (1, 3, 32, 32) and out.dtype == torch.float32


def test_image_processor_crops_the_centre_and_normalizes(tmp_path):
    image = Image.new("RGB", (64, 96))
    image.paste((255, 128, 0), (8, 24, 56, 72))
    processor = build_image_processor(48, MEAN, STD, crop_ratio=0.75)
    processor.save_pretrained(tmp_path)
    for loaded in (processor, AutoImageProcessor.from_pretrained(tmp_path)):
        out = loaded(image, return_tensors="pt")["pixel_values"]
        pixels = torch.tensor([255, 128, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 48, 48)
        torch.testing.assert_close(out, Normalize(MEAN, STD)(pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("mean", "std"), [((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), (MEAN[:1], STD), (MEAN, (0, 1, 1))]
)
def test_bad_statistics(mean, std):
    for build in (Normalize, lambda *statistics: build_image_processor(32, *statistics)):
        with pytest.raises(ValueError, match="three numbers each"):
            build(mean, std)


def test_a_model_of_grey_images_is_told_what_datasets_give():
    for build in (Normalize, lambda *statistics: build_image_processor(32, *statistics)):
        with pytest.raises(
            ValueError, match=r"needs num_channels=3; this one has 1 values .*num_channels of its backbone"
        ):
            build(MEAN[:1], STD[:1])


@pytest.mark.parametrize("arguments", [{"image_size": 0}, {"image_size": 32, "crop_ratio": 1.2}])
def test_bad_sizes(arguments):
    with pytest.raises(ValueError, match=r"image_size=.*crop_ratio="):
        build_image_processor(mean=MEAN, std=STD, **arguments)
