import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ssl_hub.data.views import INPUT_KEYS, Draws, build_views
from ssl_hub.data.views.crop import draw_boxes

JITTER = {"p": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


@pytest.fixture
def photo():
    noise = Image.effect_noise((50, 37), 90)
    return Image.merge("RGB", [noise, noise.rotate(90, expand=False), noise.rotate(180)])


def draw_many(view, count, height, width, seed=0):
    """The parameters of `count` images of one size, a dict for each."""
    drawn = view.draw(np.full(count, height), np.full(count, width), Draws(seed, np.arange(count)))
    return [{name: values[i] for name, values in drawn.items()} for i in range(count)]


def render(view, image, seed=0):
    return view.render(np.asarray(image), draw_many(view, 1, image.height, image.width, seed)[0])


def pixels_of(view):
    return lambda image, seed=0: render(view, image, seed)["pixel_values"]


def whole(**view):
    """The pixels of a square image with nothing cropped or resized."""
    (view,) = build_views([{"size": 32, "scale": [1, 1], "ratio": [1, 1], **view}])
    return pixels_of(view)


@pytest.fixture
def square(photo):
    return photo.resize((32, 32))


def test_one_view_for_each_of_the_count(photo):
    views = build_views(
        [{"count": 2, "size": 24, "color_jitter": JITTER}, {"count": 3, "size": 16, "scale": [0.05, 0.14]}]
    )
    pixels = [pixels_of(view)(photo, seed) for seed, view in enumerate(views)]
    assert [tuple(p.shape) for p in pixels] == 2 * [(3, 24, 24)] + 3 * [(3, 16, 16)]
    assert all(p.dtype == torch.uint8 for p in pixels)
    assert not torch.equal(pixels[0], pixels[1])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_crop_is_torchvisions(photo, interpolation):
    (view,) = build_views([{"size": 20, "scale": [0.2, 0.5], "ratio": [0.5, 2.0], "interpolation": interpolation}])
    (parameters,) = draw_many(view, 1, photo.height, photo.width)
    top, left, bottom, right = parameters["box"].tolist()
    ours = view.render(np.asarray(photo), parameters)["pixel_values"]
    theirs = functional.resized_crop(
        functional.pil_to_tensor(photo),
        *(top, left, bottom - top, right - left),
        [20, 20],
        v2.InterpolationMode(interpolation),
        antialias=True,
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (375, 500, (0.08, 1.0), (3 / 4, 4 / 3)),
        (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
        (40, 200, (0.5, 1.0), (3 / 4, 4 / 3)),  # most tries do not fit: the centre
        (200, 30, (0.1, 0.6), (0.5, 2.0)),
    ],
)
def test_boxes_are_distributed_as_torchvisions(height, width, scale, ratio):
    count = 4000
    tops, lefts, bottoms, rights = draw_boxes(
        np.full(count, height), np.full(count, width), scale, ratio, Draws(1, np.arange(count))
    ).T
    ours = np.stack([tops, lefts, bottoms - tops, rights - lefts])
    crop, image = v2.RandomResizedCrop(8, scale, ratio), [torch.empty(3, height, width, device="meta")]
    torch.manual_seed(0)
    theirs = [crop.make_params(image) for _ in range(count)]
    theirs = np.array([[drawn[name] for drawn in theirs] for name in ("top", "left", "height", "width")])
    pairs = [*zip(ours, theirs, strict=True), (ours[2] * ours[3], theirs[2] * theirs[3])]
    for mine, other in pairs:
        assert scipy.stats.ks_2samp(mine, other).pvalue > 1e-4
    assert (tops >= 0).all() and (lefts >= 0).all() and (bottoms <= height).all() and (rights <= width).all()


def test_colors_are_distributed_as_torchvisions():
    count, strengths = 4000, {"brightness": 1.6, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    (view,) = build_views([{"size": 8, "color_jitter": {"p": 0.8, **strengths}}])
    drawn = view.draw(np.full(count, 8), np.full(count, 8), Draws(0, np.arange(count)))
    jitter = v2.ColorJitter(**strengths)
    torch.manual_seed(0)
    theirs = [jitter.make_params([]) for _ in range(count)]
    for i, name in enumerate(strengths):
        factors = [parameters[f"{name}_factor"] for parameters in theirs]
        assert scipy.stats.ks_2samp(drawn["factors"][:, i], factors).pvalue > 1e-4
    orders = [
        np.unique(order, axis=0, return_counts=True)
        for order in (drawn["order"], [p["fn_idx"].tolist() for p in theirs])
    ]
    assert np.array_equal(orders[0][0], orders[1][0]) and len(orders[0][0]) == 24
    assert scipy.stats.chi2_contingency([counts for _, counts in orders]).pvalue > 1e-4
    assert drawn["color_jitter"].mean() == pytest.approx(0.8, abs=0.03)
    correlation = np.corrcoef(np.stack([*drawn["factors"].T, *drawn["box"].T[:2], drawn["color_jitter"]]))
    assert np.abs(correlation[:4, 4:]).max() < 0.08  # five standard deviations


def test_draws_are_functions_of_their_keys():
    keys = np.arange(1000)
    numbers = Draws(3, 7, keys).uniform(50)
    assert numbers.min() >= 0 and numbers.max() < 1 and len(np.unique(numbers)) == numbers.size
    assert scipy.stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(numbers.T) - np.eye(50)).max() < 0.17  # of 1,000, five standard deviations
    assert np.array_equal(Draws(3, 7, keys[500:501]).uniform(50)[0], numbers[500])
    assert np.array_equal([one.uniform(50)[0] for one in Draws(3, 7, keys[:3])], numbers[:3])
    draws = Draws(3, 7, keys)
    assert np.array_equal(np.hstack([draws.uniform(20), draws.uniform(30)]), numbers)
    others = [Draws(7, 3, keys), Draws(3, 7, keys + 1000), draws.split(0), draws.split(1), Draws(3, keys + 8, 7)]
    assert len(np.unique([numbers, *(other.uniform(50) for other in others)])) == 6 * numbers.size
    # As on every machine.
    assert [number.hex() for number in Draws(1, 2).uniform(2)[0]] == ["0x1.004b752bc456cp-1", "0x1.38c2843202deap-2"]


def test_defaults_are_the_crop_alone(square):
    assert torch.equal(whole()(square), functional.pil_to_tensor(square))
    off = {"hflip": 0.0, "color_jitter": {**JITTER, "p": 0.0}, "gaussian_blur": {"p": 0}, "solarize": {"p": 0}}
    assert torch.equal(whole(grayscale=0, **off)(square), functional.pil_to_tensor(square))


def test_each_step(square):
    pixels = functional.pil_to_tensor(square)
    assert torch.equal(whole(hflip=1)(square), pixels.flip(-1))

    gray = whole(grayscale=1.0)(square)
    assert torch.equal(gray[0], gray[2])
    torch.testing.assert_close(gray[0].int(), functional.pil_to_tensor(square.convert("L"))[0].int(), atol=1, rtol=0)

    blurred = functional.gaussian_blur(pixels, [9, 9], [1.5, 1.5])
    inside = whole(gaussian_blur={"p": 1, "sigma": [1.5, 1.5]})(square)[:, 4:-4, 4:-4]  # beyond it, the border counts
    torch.testing.assert_close(inside.int(), blurred[:, 4:-4, 4:-4].int(), atol=2, rtol=0)

    assert torch.equal(whole(solarize={"p": 1})(square), torch.where(pixels >= 128, 255 - pixels, pixels))
    assert torch.equal(whole(solarize={"p": 1, "threshold": 0})(square), 255 - pixels)

    jittered = whole(color_jitter={"p": 1, "brightness": 0.5})(square).float()
    ratio = jittered.mean() / pixels.float().mean()
    assert 0.5 <= ratio <= 1.5 and abs(ratio - 1) > 0.01

    mean = whole(grayscale={"p": 1, "weights": "mean"})(square)
    torch.testing.assert_close(mean.float(), pixels.float().mean(0).expand(3, -1, -1), atol=1, rtol=0)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("brightness", 1), ("contrast", 1), ("saturation", 2), ("hue", 10), (None, 20)]
)
def test_the_colors_are_torchvisions(photo, name, tolerance):
    """Of the same draws, but for the rounding to 8 bits of each step; Pillow cuts."""
    every = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.3}
    strengths = every if name is None else {name: every[name]}
    smooth = photo.resize((16, 16)).resize((64, 64), Image.Resampling.BICUBIC)
    (view,) = build_views([{"size": 64, "scale": [1, 1], "ratio": [1, 1], "color_jitter": {"p": 1, **strengths}}])
    theirs = v2.ColorJitter(**strengths)
    for parameters in draw_many(view, 20, 64, 64):
        changed = view.render(np.asarray(smooth), parameters)["pixel_values"]
        factors = {f"{name}_factor": None for name in every}
        factors |= dict(zip([f"{name}_factor" for name in strengths], parameters["factors"].tolist(), strict=True))
        order = [[*every].index(list(strengths)[i]) for i in parameters["order"]]
        drawn = {"fn_idx": torch.tensor(order), **factors}
        expected = functional.pil_to_tensor(theirs.transform(smooth, drawn))
        difference = (changed.int() - expected.int()).abs().float()
        assert difference.quantile(0.99) <= tolerance


def test_order_of_the_steps(square):
    both = whole(grayscale=1, solarize={"p": 1})(square)
    gray = whole(grayscale=1)(square)
    assert torch.equal(both, torch.where(gray >= 128, 255 - gray, gray))


def test_rotation(square):
    (view,) = build_views([{"size": 32, "scale": [1, 1], "ratio": [1, 1], "rotation": 20}])
    drawn = draw_many(view, 100, 32, 32)
    angles = torch.tensor([parameters["angle"] for parameters in drawn])
    assert -20 <= angles.min() < -10 and 10 < angles.max() <= 20
    turned = view.render(np.asarray(square), drawn[0])["pixel_values"]
    assert torch.equal(turned, functional.pil_to_tensor(square.rotate(angles[0].item())))  # nearest, black outside


def test_grayscale_before_the_jitter(square):
    jitter = {"p": 1, "saturation": 0.9, "hue": 0.5}  # leaves gray as it is
    gray = whole(grayscale=1)(square)
    assert torch.equal(whole(color_jitter=jitter, grayscale={"p": 1, "before_jitter": True})(square), gray)
    assert not torch.equal(whole(color_jitter=jitter, grayscale={"p": 1})(square), gray)


def test_rendering_is_deterministic(photo):
    crop = {
        **{"size": 16, "hflip": 0.5, "rotation": 2, "color_jitter": JITTER, "grayscale": 0.2},
        **{"gaussian_blur": {"p": 0.5}, "solarize": {"p": 0.5}, "target": {"size": 8}},
        "mask": {"kind": "random", "patch": 4, "ratio": 0.5},
    }
    for view in build_views([crop, {"kind": "patches", "size": 10, "jitter": 2, "resize": 40}]):
        (parameters,) = draw_many(view, 1, photo.height, photo.width)
        state = torch.get_rng_state()
        first, second = view.render(np.asarray(photo), parameters), view.render(np.asarray(photo), parameters)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert view.statistics.keys() == {name for name, tensor in first.items() if tensor.dtype == torch.uint8}
        assert first.keys() - {"pixel_values"} <= INPUT_KEYS.keys()


def test_the_target_shows_the_same_crop():
    # Position is color: red says which column a pixel comes from, green which row.
    ramp = torch.arange(256, dtype=torch.uint8)
    pixels = torch.stack(
        [ramp.expand(256, -1), ramp[:, None].expand(-1, 256), torch.zeros(256, 256, dtype=torch.uint8)]
    )
    image = functional.to_pil_image(pixels)
    view = {"size": 32, "scale": [0.2, 0.5], "hflip": 0.5, "target": {"size": 16, "interpolation": "bilinear"}}
    (view,) = build_views([view])
    (solarized,) = build_views([{"size": 32, "solarize": {"p": 0.5}, "target": {"size": 16}}])
    flips, corners = set(), set()
    for seed in range(20):
        outputs = render(view, image, seed)
        crop, target = outputs["pixel_values"].float(), outputs["target_pixel_values"].float()
        halved = functional.resize(crop, [16, 16], antialias=True)
        assert (halved - target)[:2].abs().max() < 4  # of 256; a pixel of the target is worth up to 12
        flips.add(bool(crop[0, 0, 0] > crop[0, 0, -1]))
        corners.add(tuple(crop[:2, 0, 0].tolist()))
        outputs = {name: tensor.float().mean((1, 2)) for name, tensor in render(solarized, image, seed).items()}
        torch.testing.assert_close(outputs["pixel_values"], outputs["target_pixel_values"], atol=6, rtol=0)
    assert flips == {True, False} and len(corners) > 15


def masks_of(view, count):
    return torch.from_numpy(view.draw(np.full(count, 64), np.full(count, 64), Draws(0, np.arange(count)))["mask"])


def test_random_mask():
    for mask, count in (({"ratio": 0.6}, 10), ({"count": 3}, 3)):
        (view,) = build_views([{"size": 64, "mask": {"kind": "random", **mask}}])
        masks = masks_of(view, 1000)
        assert masks.shape == (1000, 16) and masks.dtype == torch.bool
        assert view.mask.count == count and (masks.sum(1) == count).all()
        assert (masks.float().mean(0) - count / 16).abs().max() < 0.08  # five standard deviations


# MMSelfSup 1.0 (SimMIM): masked tokens of every mask, tokens of a cell's edge
@pytest.mark.parametrize(
    ("size", "cell", "patch", "ratio", "count", "block"), [(192, 32, 4, 0.6, 1408, 8), (64, 16, 8, 0.35, 24, 2)]
)
def test_aligned_mask(size, cell, patch, ratio, count, block):
    mask = {"kind": "aligned", "ratio": ratio, "cell": cell, "patch": patch}
    (view,) = build_views([{"size": size, "mask": mask}])
    masks = masks_of(view, 400)
    assert view.mask.count == count and (masks.sum(1) == count).all()
    grid = size // patch
    cells = masks.view(-1, grid // block, block, grid // block, block).transpose(2, 3).flatten(3)
    assert torch.equal(cells.any(-1), cells.all(-1))
    share = cells[..., 0].float().mean(0)
    assert (share - count / grid**2).abs().max() < 0.13  # five standard deviations


def test_blockwise_mask():
    # MMSelfSup 1.0 (BEiT, CAE), 8,000 masks: the masked share of the rings of patches, from the border to the centre
    rings = [0.1429, 0.2903, 0.4317, 0.5471, 0.6364, 0.6937, 0.7200]
    (view,) = build_views([{"size": 224, "mask": {"kind": "blockwise", "count": 75, "patch": 16}}])
    masks = masks_of(view, 2000).view(-1, 14, 14)
    assert view.mask.count == 75 and (masks.sum((1, 2)) == 75).all()
    share = masks.float().mean(0)
    from_border = torch.minimum(torch.arange(14), 13 - torch.arange(14))
    ring = torch.minimum(from_border[:, None], from_border)
    assert [share[ring == k].mean().item() for k in range(7)] == pytest.approx(rings, abs=0.02)
    for same in (share.T, share.flip(0), share.flip(1)):
        torch.testing.assert_close(share, same, atol=0.07, rtol=0)
    # and how often neighbours are alike
    assert (masks[:, :, 1:] == masks[:, :, :-1]).float().mean().item() == pytest.approx(0.888, abs=0.005)
    assert (masks[:, 1:] == masks[:, :-1]).float().mean().item() == pytest.approx(0.888, abs=0.005)


@pytest.mark.parametrize(("grid", "count"), [(2, 1), (2, 3), (3, 8), (7, 48)])
def test_blockwise_mask_always_ends(grid, count):
    mask = {"kind": "blockwise", "count": count, "patch": 2, "min_num_patches": 1, "max_num_patches": 1}
    (view,) = build_views([{"size": 2 * grid, "mask": mask}])
    assert (masks_of(view, 20).sum(1) == count).all()
    mask = {"kind": "blockwise", "count": count, "patch": 2, "min_num_patches": count}
    (view,) = build_views([{"size": 2 * grid, "mask": mask}])
    assert masks_of(view, 1).sum() == count


def test_patches_column_by_column():
    # Position is color: red says which column a pixel comes from, green which row.
    ramp = (torch.arange(60) * 4).to(torch.uint8)
    pixels = torch.stack([ramp.expand(60, -1), ramp[:, None].expand(-1, 60), torch.zeros(60, 60, dtype=torch.uint8)])
    (view,) = build_views([{"kind": "patches", "grid": 3, "size": 12, "jitter": 6, "resize": 60, "grayscale": 0}])
    corners = torch.stack(
        [render(view, functional.to_pil_image(pixels), seed)["pixel_values"][:, :2, 0, 0] for seed in range(200)]
    )
    corners = corners.float() / 4  # (200, 9, 2): left and top edge of each patch
    cell = torch.arange(9) // 3, torch.arange(9) % 3  # column, row
    for axis in (0, 1):
        inside = corners[:, :, axis] - 18 * cell[axis]
        assert inside.min() == 0 and inside.max() == 6 + 6  # the jitter, and the place of the grid
        assert 5 < inside.mean() < 7
        apart = corners[:, :, axis].view(200, 3, 3).diff(dim=1 + axis)
        assert apart.min() >= 12 and apart.max() <= 24  # no two overlap


def test_patches_of_a_default(photo):
    (view,) = build_views([{"kind": "patches"}])
    drawn = draw_many(view, 300, photo.height, photo.width)
    tops = {parameters["grid"][0].item() for parameters in drawn}
    assert (min(tops), max(tops)) == (0, 292 - 255)
    pixels = [view.render(np.asarray(photo), parameters)["pixel_values"] for parameters in drawn[:40]]
    assert all(p.shape == (9, 3, 64, 64) and p.dtype == torch.uint8 for p in pixels)
    gray = sum(torch.equal(p[:, 0], p[:, 2]) for p in pixels)
    assert gray == sum(parameters["grayscale"] for parameters in drawn[:40])
    assert 0.55 < sum(parameters["grayscale"] for parameters in drawn) / 300 < 0.77


def test_probabilities(square):
    pixels, half = functional.pil_to_tensor(square), whole(hflip=0.5)
    flipped = sum(not torch.equal(half(square, seed), pixels) for seed in range(200))
    assert 70 < flipped < 130


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1)])
def test_tiny_images(size):
    view = {"size": 8, "color_jitter": JITTER, "gaussian_blur": {"p": 1}}
    assert pixels_of(build_views([view])[0])(Image.new("RGB", size)).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({}, "needs the key 'size'"),
        ("size", "must be a mapping"),
        ({"size": 0}, "size must be a whole number from 1 to 8192, got 0"),
        ({"size": 22.4}, "size must be a whole number"),
        ({"size": 8, "count": 0}, "count must be .* from 1 to 100, got 0"),
        ({"size": 8, "grayscal": 0.2}, "unknown key 'grayscal'.*hflip.*Did you mean 'grayscale'"),
        ({"size": 8, "hflip": 1.5}, "hflip must be a number from 0 to 1, got 1.5"),
        ({"size": 8, "hflip": True}, "hflip must be a number"),
        ({"size": 8, "grayscale": float("nan")}, "grayscale must be"),
        ({"size": 8, "scale": [0, 1]}, "scale must be .*1e-06 <= low <= high <= 1, got"),
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
        ({"size": 8, "rotation": -2}, "rotation must be a number from 0 to 180, got -2"),
        ({"size": 8, "grayscale": {"p": 1, "weights": "red"}}, "grayscale: weights must be one of luma, mean; got"),
        ({"size": 8, "grayscale": {"p": 1, "before_jitter": 1}}, "before_jitter must be true or false, got 1"),
        ({"size": 8, "mean": [0.5] * 3}, "mean and std must be three numbers each.*std=None"),
        ({"size": 8, "mean": [127] * 3, "std": [58] * 3}, "Divide statistics of 0..255"),
        ({"size": 8, "kind": "crops"}, "kind must be one of crop, patches; got 'crops'"),
        ({"size": 8, "target": 4}, "target must be a mapping"),
        ({"size": 8, "target": {"siz": 4}}, "Did you mean 'size'"),
        ({"size": 8, "target": {}}, "target needs the key 'size'"),
        ({"size": 8, "target": {"size": 4, "std": [0, 1, 1]}}, "target: mean and std must be"),
        ({"size": 32, "mask": {"ratio": 0.6}}, "mask must be a mapping with a kind out of random, aligned, blockwise"),
        ({"size": 32, "mask": {"kind": "block"}}, "mask: kind must be one of random, aligned, blockwise; got 'block'"),
        ({"size": 32, "mask": {"kind": "random", "ration": 0.6}}, "Did you mean 'ratio'"),
        ({"size": 32, "mask": {"kind": "random"}}, "either a ratio or a count"),
        ({"size": 32, "mask": {"kind": "random", "ratio": 0.5, "count": 2}}, "either a ratio or a count"),
        ({"size": 40, "mask": {"kind": "random", "ratio": 0.5}}, "multiple of the patch's, got 40 and patch=16"),
        ({"size": 32, "mask": {"kind": "random", "ratio": 0.0}}, "0.0 masks 0 of them"),
        ({"size": 32, "mask": {"kind": "random", "ratio": 0.9}}, "the 4 patches and keep some; 0.9 masks 4 of them"),
        ({"size": 32, "mask": {"kind": "random", "count": 4}}, "count must be a whole number from 1 to 3, got 4"),
        ({"size": 16, "mask": {"kind": "random", "count": 1}}, "masks the only patch"),
        ({"size": 96, "mask": {"kind": "aligned", "ratio": 1.0}}, "the 9 cells and keep some; 1.0 masks 9"),
        ({"size": 96, "mask": {"kind": "aligned", "ratio": 1.2}}, "ratio must be a number from 0 to 1"),
        ({"size": 96, "mask": {"kind": "aligned", "cell": 40, "patch": 4}}, "cell=40, patch=4 and a size of 96"),
        ({"size": 96, "mask": {"kind": "aligned", "cell": 24}}, "cell=24, patch=16 and a size of 96"),
        ({"size": 32, "mask": {"kind": "blockwise"}}, "count must be a whole number from 1 to 3, got None"),
        ({"size": 64, "mask": {"kind": "blockwise", "count": 5, "min_num_patches": 6}}, "min_num_patches must be"),
        ({"size": 64, "mask": {"kind": "blockwise", "count": 5, "aspect": [2, 1]}}, "aspect must be"),
        ({"kind": "patches", "grid": 1}, "grid must be a whole number of at least 2"),
        ({"kind": "patches", "hflip": 0.5}, "unknown key 'hflip'"),
        ({"kind": "patches", "resize": 254}, "smaller than the grid of 3 cells of .* 85 pixels.* at least 255"),
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
