import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ssl_hub.data.views import build_views

JITTER = {"p": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


@pytest.fixture
def photo():
    noise = Image.effect_noise((50, 37), 90)
    return Image.merge("RGB", [noise, noise.rotate(90, expand=False), noise.rotate(180)])


def whole(**view):
    """The view of a square image with nothing cropped or resized."""
    (transform,) = build_views([{"size": 32, "scale": [1, 1], "ratio": [1, 1], **view}])
    return transform


@pytest.fixture
def square(photo):
    return photo.resize((32, 32))


def test_one_transform_a_view(photo):
    views = build_views(
        [{"count": 2, "size": 24, "color_jitter": JITTER}, {"count": 3, "size": 16, "scale": [0.05, 0.14]}]
    )
    pixels = [view(photo) for view in views]
    assert [tuple(p.shape) for p in pixels] == 2 * [(3, 24, 24)] + 3 * [(3, 16, 16)]
    assert all(p.dtype == torch.uint8 for p in pixels)
    assert not torch.equal(pixels[0], pixels[1])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_crop_is_torchvisions(photo, interpolation):
    view = {"size": 20, "scale": [0.2, 0.5], "ratio": [0.5, 2.0], "interpolation": interpolation}
    peer = v2.RandomResizedCrop(20, (0.2, 0.5), (0.5, 2.0), v2.InterpolationMode(interpolation), antialias=True)
    torch.manual_seed(3)
    ours = build_views([view])[0](photo)
    torch.manual_seed(3)
    theirs = functional.pil_to_tensor(peer(photo))  # resized by Pillow, which rounds once more
    assert (ours.float() - theirs.float()).abs().mean() < 1


def test_defaults_are_the_crop_alone(square):
    assert torch.equal(whole()(square), functional.pil_to_tensor(square))
    off = {"hflip": 0.0, "color_jitter": {**JITTER, "p": 0.0}, "gaussian_blur": {"p": 0}, "solarize": {"p": 0}}
    assert torch.equal(whole(grayscale=0, **off)(square), functional.pil_to_tensor(square))


def test_each_step(square):
    pixels = functional.pil_to_tensor(square)
    assert torch.equal(whole(hflip=1)(square), pixels.flip(-1))

    gray = whole(grayscale=1.0)(square)
    assert torch.equal(gray[0], gray[2])
    assert torch.equal(gray[0], functional.pil_to_tensor(square.convert("L"))[0])

    blurred = square.filter(ImageFilter.GaussianBlur(1.5))
    assert torch.equal(whole(gaussian_blur={"p": 1, "sigma": [1.5, 1.5]})(square), functional.pil_to_tensor(blurred))

    assert torch.equal(whole(solarize={"p": 1})(square), torch.where(pixels >= 128, 255 - pixels, pixels))
    assert torch.equal(whole(solarize={"p": 1, "threshold": 0})(square), 255 - pixels)

    torch.manual_seed(0)
    jittered = whole(color_jitter={"p": 1, "brightness": 0.5})(square).float()
    ratio = jittered.mean() / pixels.float().mean()
    assert 0.5 <= ratio <= 1.5 and abs(ratio - 1) > 0.01


def test_order_of_the_steps(square):
    both = whole(grayscale=1, solarize={"p": 1})(square)
    gray = functional.pil_to_tensor(square.convert("L")).expand(3, -1, -1)
    assert torch.equal(both, torch.where(gray >= 128, 255 - gray, gray))


def test_probabilities(square):
    torch.manual_seed(0)
    pixels, half = functional.pil_to_tensor(square), whole(hflip=0.5)
    flipped = sum(not torch.equal(half(square), pixels) for _ in range(200))
    assert 70 < flipped < 130


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1)])
def test_tiny_images(size):
    view = {"size": 8, "color_jitter": JITTER, "gaussian_blur": {"p": 1}}
    assert build_views([view])[0](Image.new("RGB", size)).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({}, "needs the key 'size'"),
        ("size", "must be a mapping"),
        ({"size": 0}, "size must be a whole number of at least 1, got 0"),
        ({"size": 22.4}, "size must be a whole number"),
        ({"size": 8, "count": 0}, "count must be .* at least 1"),
        ({"size": 8, "grayscal": 0.2}, "unknown key 'grayscal'.*hflip.*Did you mean 'grayscale'"),
        ({"size": 8, "hflip": 1.5}, "hflip must be a number from 0 to 1, got 1.5"),
        ({"size": 8, "hflip": True}, "hflip must be a number"),
        ({"size": 8, "grayscale": float("nan")}, "grayscale must be"),
        ({"size": 8, "scale": [0, 1]}, "scale must be .*0 < low <= high <= 1, got"),
        ({"size": 8, "scale": [0.5, 0.2]}, "scale must be"),
        ({"size": 8, "scale": [0.5, 1.2]}, "scale must be"),
        ({"size": 8, "scale": 0.5}, "scale must be"),
        ({"size": 8, "ratio": ["a", "b"]}, "ratio must be"),
        ({"size": 8, "interpolation": "lanczos"}, "interpolation must be one of .*bicubic.*got 'lanczos'"),
        ({"size": 8, "color_jitter": 0.4}, "color_jitter must be a mapping"),
        ({"size": 8, "color_jitter": {"hue": 0.1}}, "color_jitter needs the key 'p'"),
        (
            {"size": 8, "color_jitter": {"p": 1, "hue": 0.6}},
            "color_jitter: hue must be a number from 0 to 0.5, got 0.6",
        ),
        ({"size": 8, "color_jitter": {"p": 1, "brightnes": 1}}, "Did you mean 'brightness'"),
        ({"size": 8, "gaussian_blur": {"p": 1, "sigma": [2, 1]}}, "sigma must be"),
        ({"size": 8, "gaussian_blur": {"p": 2}}, "gaussian_blur: p must be"),
        ({"size": 8, "solarize": {"p": 1, "threshold": 256}}, "threshold must be"),
    ],
)
def test_bad_views(view, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_views([{"size": 4}, view])
    assert "views[1]" in str(caught.value)


@pytest.mark.parametrize("views", [[], {"size": 8}, "size", None])
def test_no_list_of_views(views):
    with pytest.raises(ValueError, match="views must be a list of one or more"):
        build_views(views)
