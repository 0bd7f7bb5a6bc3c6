import random

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.images import DecodedImage, UnreadableImageError
from ssl_hub.data.loading import ViewDataset, build_eval_loader, build_train_loader
from ssl_hub.data.processing import build_image_processor
from ssl_hub.data.sampling import EpochBatchSampler, ViewKey
from ssl_hub.data.views import build_views

NUM_IMAGES = 21
DAMAGED = (5, 6, 20)
VIEWS = build_views(
    [
        {
            "count": 2,
            "size": 16,
            "hflip": 0.5,
            "color_jitter": {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
            "gaussian_blur": {"p": 0.5},
        },
        {"size": 8, "scale": [0.2, 0.5]},
    ]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos of many sizes in two classes; two neighbours and the last one are damaged."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        path = folder / ("a" if i < 12 else "b") / f"{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (20 + i, 45 - i, 3), dtype=np.uint8)).save(path)
        if i in DAMAGED:
            path.write_bytes(path.read_bytes()[:300])
    return folder


@pytest.fixture(scope="module", params=["map-style", "streamed"])
def dataset(request, folder):
    return load_image_dataset(folder, streaming=request.param == "streamed")


def train_loader(dataset, batch_size=4, views=VIEWS, **options):
    return build_train_loader(dataset, views, **{"seed": 7, "shuffle_buffer_size": 8, **options}, batch_size=batch_size)


def epoch_of(loader, epoch, start_batch=0):
    loader.batch_sampler.set_epoch(epoch, start_batch)
    return list(loader)


def assert_same(batches, expected):
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch["indices"], other["indices"])
        assert batch["unreadable"] == other["unreadable"]
        for view, other_view in zip(batch["pixel_values"], other["pixel_values"], strict=True):
            assert torch.equal(view, other_view)


def test_batches(dataset):
    batches = epoch_of(train_loader(dataset), 0)
    assert len(batches) == NUM_IMAGES // 4
    for batch in batches:
        assert [tuple(view.shape) for view in batch["pixel_values"]] == [(4, 3, 16, 16), (4, 3, 16, 16), (4, 3, 8, 8)]
        assert all(view.dtype == torch.uint8 and view.is_contiguous() for view in batch["pixel_values"])
        assert batch["indices"].shape == (4,) and batch["indices"].dtype == torch.int64


def test_workers_change_nothing(dataset):
    alone, helped = train_loader(dataset), train_loader(dataset, num_workers=2)
    first = epoch_of(alone, 0)
    assert_same(epoch_of(helped, 0), first)
    second = epoch_of(alone, 1)
    assert_same(epoch_of(helped, 1), second)  # by the same, persistent workers
    next(iter(helped))  # an epoch that is given up with batches in flight
    assert_same(epoch_of(helped, 0, start_batch=1), first[1:])
    assert not torch.equal(first[0]["pixel_values"][0], second[0]["pixel_values"][0])


def test_two_processes_are_one(folder):
    rows = load_image_dataset(folder).select([i for i in range(NUM_IMAGES) if i not in DAMAGED])
    for dataset in (rows, rows.to_iterable_dataset()):
        whole = epoch_of(train_loader(dataset, batch_size=8), 3)
        parts = [epoch_of(train_loader(dataset, num_processes=2, process_index=i), 3) for i in range(2)]
        assert len(whole) == len(parts[0]) == len(parts[1]) == 2
        for batch, first, second in zip(whole, *parts, strict=True):
            assert torch.equal(batch["indices"], torch.cat([first["indices"], second["indices"]]))
            for views in zip(batch["pixel_values"], first["pixel_values"], second["pixel_values"], strict=True):
                assert torch.equal(views[0], torch.cat(views[1:]))


def test_resume(dataset):
    batches = epoch_of(train_loader(dataset), 2)
    assert_same(epoch_of(train_loader(dataset), 2, start_batch=3), batches[3:])
    loader = train_loader(dataset)
    epoch_of(loader, 2, start_batch=3)
    assert len(epoch_of(loader, 3)) == len(batches)
    assert epoch_of(loader, 2, start_batch=len(batches)) == []


def test_seed_and_epoch_change_the_order(folder):
    dataset = load_image_dataset(folder)
    orders = [epoch_of(train_loader(dataset, seed=seed), epoch)[0] for seed, epoch in ((7, 0), (7, 1), (8, 0))]
    assert len({tuple(batch["indices"].tolist()) for batch in orders}) == 3


def test_views_are_drawn_from_seed_epoch_and_index():
    same = datasets.Dataset.from_dict({"image": [Image.effect_noise((30, 30), 80)] * 2})
    same = same.cast_column("image", datasets.Image(decode=False))

    def view(seed, *key):
        return ViewDataset(same, VIEWS[:1], seed)[key]["views"][0]["pixel_values"]

    assert torch.equal(view(7, 0, 0), view(7, 0, 0))
    for other in (view(8, 0, 0), view(7, 1, 0), view(7, 0, 1), view(7, 0, 0, 1)):
        assert not torch.equal(view(7, 0, 0), other)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_generators_are_left_alone(dataset, num_workers):
    torch.manual_seed(0)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    loader = train_loader(dataset, num_workers=num_workers)
    epoch_of(loader, 0)
    epoch_of(loader, 1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_an_unreadable_image_is_replaced_by_the_next_one(folder):
    dataset = load_image_dataset(folder)
    batches = epoch_of(train_loader(dataset, batch_size=NUM_IMAGES), 0)
    indices = batches[0]["indices"].tolist()
    assert len(indices) == NUM_IMAGES
    assert indices.count(7) == 3 and indices.count(0) == 2  # for 5 and 6, for 20
    assert not {*DAMAGED} & {*indices}
    names = [name[-6:] for name in batches[0]["unreadable"]]
    assert sorted(names) == ["05.jpg", "06.jpg", "06.jpg", "20.jpg"]
    first, second = [i for i, index in enumerate(indices) if index == 0]
    assert not torch.equal(batches[0]["pixel_values"][0][first], batches[0]["pixel_values"][0][second])


def test_an_unreadable_streamed_image_is_replaced_within_its_batch(folder):
    dataset = load_image_dataset(folder, streaming=True)
    (batch,) = epoch_of(train_loader(dataset, batch_size=NUM_IMAGES), 0)
    assert sorted(name[-6:] for name in batch["unreadable"]) == ["05.jpg", "06.jpg", "20.jpg"]
    assert len(batch["indices"]) == len(batch["pixel_values"][0]) == NUM_IMAGES
    assert len(set(batch["indices"].tolist())) == NUM_IMAGES - 3


def test_nothing_readable():
    features = datasets.Features(image=datasets.Image(decode=False))
    dataset = datasets.Dataset.from_dict({"image": [{"bytes": b"", "path": "x.jpg"}] * 4}, features=features)
    with pytest.raises(UnreadableImageError, match=r"x\.jpg"):
        next(iter(train_loader(dataset)))
    assert str(UnreadableImageError("text")) == "text"  # a worker's error is raised again from its text alone


def test_a_batch_larger_than_the_dataset(folder):
    for streaming in (False, True):
        with pytest.raises(ValueError, match="21 rows, fewer than the 24 of a batch"):
            next(iter(train_loader(load_image_dataset(folder, streaming=streaming), batch_size=12, num_processes=2)))


def test_bad_numbers(dataset):
    for wrong in ({"batch_size": 0}, {"seed": -1}, {"num_processes": 2, "process_index": 2}):
        with pytest.raises(ValueError, match=r"batch_size=.*seed=.*process_index="):
            train_loader(dataset, **wrong)


def test_an_epoch_sees_every_row_once():
    samplers = [EpochBatchSampler(103, 5, 0, num_processes=2, process_index=i) for i in range(2)]
    seen = [key.index for sampler in samplers for batch in sampler for key in batch]
    assert len(seen) == len(set(seen)) == 100
    assert len(samplers[0]) == 10


def test_weights_decide_how_often_a_row_is_shown():
    sampler = EpochBatchSampler(1000, 10, 3)
    weights = torch.zeros(1000)
    weights[:500], weights[500] = 1.0, 250.0
    sampler.set_epoch(2, weights=weights)
    keys = [key for batch in sampler for key in batch]
    shown = torch.tensor([key.index for key in keys])
    assert len(shown) == 1000 and shown.max() == 500
    assert (shown == 500).sum() == pytest.approx(1000 / 3, abs=60)  # four standard deviations
    assert [key.repeat for key in keys if key.index == 500] == list(range((shown == 500).sum()))
    assert len(set(keys)) == 1000  # the same row twice is drawn anew

    sampler.set_epoch(2, start_batch=40, weights=weights)
    assert [key for batch in sampler for key in batch] == keys[400:]
    sampler.set_epoch(3, weights=weights)
    assert [key for batch in sampler for key in batch] != keys
    sampler.set_epoch(2, weights=weights.double() * 7)
    assert [key for batch in sampler for key in batch] == keys
    parts = [EpochBatchSampler(1000, 5, 3, num_processes=2, process_index=i) for i in range(2)]
    for part in parts:
        part.set_epoch(2, weights=weights)
    assert [key for first, second in zip(*parts, strict=True) for key in first + second] == keys

    sampler.set_epoch(2)  # the weights are those of one epoch
    assert len({key.index for batch in sampler for key in batch}) == 1000


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(20), r"one number a row of the dataset, \(21,\); got \(20,\)"),
        (torch.ones(21, 1), r"got \(21, 1\)"),
        (torch.zeros(21), "got nothing but 0"),
        (torch.tensor([1.0] * 20 + [-1.0]), "got -1.0 for row 20"),
        (torch.tensor([float("nan")] + [1.0] * 20), "got nan for row 0"),
        (torch.tensor([1.0, float("inf")] + [1.0] * 19), "got inf for row 1"),
    ],
)
def test_bad_weights(folder, weights, message):
    with pytest.raises(ValueError, match=message):
        train_loader(load_image_dataset(folder)).batch_sampler.set_epoch(0, weights=weights)


def test_a_stream_takes_no_weights(folder):
    with pytest.raises(ValueError, match="streaming=False"):
        train_loader(load_image_dataset(folder, streaming=True)).batch_sampler.set_epoch(0, weights=torch.ones(21))


def test_names_of_a_batch(dataset):
    masked = {
        "size": 16,
        "mask": {"kind": "random", "patch": 4, "count": 5},
        "target": {"size": 8},
    }
    patches = {"kind": "patches", "grid": 2, "size": 6, "jitter": 2, "resize": 20}

    def shapes(*views):
        batch = epoch_of(train_loader(dataset, views=build_views(views)), 0)[0]
        assert torch.equal(batch.pop("indices"), epoch_of(train_loader(dataset), 0)[0]["indices"])
        batch.pop("unreadable")
        return {
            name: [tuple(t.shape) for t in value] if isinstance(value, list) else tuple(value.shape)
            for name, value in batch.items()
        }

    assert shapes({"size": 16}) == {"pixel_values": (4, 3, 16, 16)}
    assert shapes(masked) == {
        "pixel_values": (4, 3, 16, 16),
        "bool_masked_pos": (4, 16),
        "target_pixel_values": (4, 3, 8, 8),
    }
    assert shapes({"size": 8}, masked) == {
        "pixel_values": [(4, 3, 8, 8), (4, 3, 16, 16)],
        "bool_masked_pos": (4, 16),
        "target_pixel_values": (4, 3, 8, 8),
    }
    assert shapes({"count": 2, **masked})["bool_masked_pos"] == [(4, 16), (4, 16)]
    assert shapes(patches) == {"pixel_values": (4, 4, 3, 6, 6)}


def test_workers_change_no_mask(dataset):
    views = build_views([{"size": 64, "mask": {"kind": "blockwise", "patch": 8, "count": 20, "min_num_patches": 4}}])
    alone, helped = (train_loader(dataset, views=views, num_workers=n) for n in (0, 2))
    for batch, other in zip(epoch_of(alone, 1), epoch_of(helped, 1), strict=True):
        assert torch.equal(batch["bool_masked_pos"], other["bool_masked_pos"])
        assert len(batch["bool_masked_pos"].unique(dim=0)) == len(batch["indices"].unique())


def test_no_two_draws_of_a_run_coincide():
    dataset = ViewDataset([], VIEWS[2:], 5)
    keys = [ViewKey(epoch, index, repeat) for epoch in range(40) for index in range(40) for repeat in range(2)]
    drawn = dataset._draw(keys, [DecodedImage(torch.empty(1500, 2000, 3, device="meta"))] * len(keys))
    assert len({tuple(view["box"]) for _, (view,) in drawn}) == len(keys)


def test_a_large_photo_is_decoded_no_larger_than_its_views_need(tmp_path, monkeypatch):
    smooth = Image.effect_noise((9, 6), 90).convert("RGB").resize((1200, 800), Image.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    for name in ("a.jpg", "b.png"):
        smooth.save(tmp_path / name, exif=exif, quality=98)
    sizes = []
    views = build_views(
        [
            {"size": 40, "scale": [0.3, 1.0], "target": {"size": 50}},
            {"kind": "patches", "size": 20, "jitter": 4, "resize": 90, "grayscale": 0},
        ]
    )
    for view in {type(view) for view in views}:
        render = view.render
        monkeypatch.setattr(
            view,
            "render",
            lambda self, image, parameters, r=render: sizes.append(image.shape[1::-1]) or r(self, image, parameters),
        )
    jpeg, png = (
        [
            ViewDataset([{"image": {"bytes": None, "path": str(tmp_path / name)}}], views, 0)[epoch, 0]
            for epoch in range(8)
        ]
        for name in ("a.jpg", "b.png")
    )
    assert len(sizes) == 2 * 2 * 8
    assert set(sizes[16:]) == {(800, 1200)}
    assert set(sizes[:16]) <= {(100, 150), (200, 300)} and len(set(sizes[:16])) > 0
    for reduced, whole in zip(jpeg, png, strict=True):
        for view, other in zip(reduced["views"], whole["views"], strict=True):
            for name in view:
                difference = (view[name].float() - other[name].float()).abs().mean()
                assert difference < 8  # of 256; another crop is off by 20 to 80


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation(folder, num_workers):
    dataset = load_image_dataset(folder)
    processor = build_image_processor(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    state = torch.get_rng_state()
    batches = list(build_eval_loader(dataset, processor, batch_size=4, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.cat([batch["indices"] for batch in batches]).tolist() == [
        i for i in range(NUM_IMAGES) if i not in DAMAGED
    ]
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [0] * 10 + [1] * 8
    assert [name[-6:] for batch in batches for name in batch["unreadable"]] == ["05.jpg", "06.jpg", "20.jpg"]
    assert [tuple(b["pixel_values"].shape[:2]) for b in batches] == [(n, 3) for n in (4, 2, 4, 4, 4, 0)]
    image = Image.open(dataset[7]["image"]["path"])
    assert torch.equal(batches[1]["pixel_values"][1], processor(image, return_tensors="pt")["pixel_values"][0])


def test_evaluation_without_labels(folder):
    dataset = load_image_dataset(folder).remove_columns("label")
    processor = build_image_processor(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert "labels" not in next(iter(build_eval_loader(dataset, processor, batch_size=4)))
    with pytest.raises(TypeError, match="streaming=False"):
        build_eval_loader(dataset.to_iterable_dataset(), processor, batch_size=4)
