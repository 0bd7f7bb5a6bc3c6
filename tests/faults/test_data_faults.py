"""Bad and hostile data: every case ends in a sentence, or in a run without the bad part and a line that says so."""

import http.server
import io
import math
import os
import re
import runpy
import signal
import threading
import warnings
import zlib
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from transformers import AutoModelForPreTraining

from ssl_hub import SSLTrainer
from ssl_hub.data.datasets import load_image_dataset, match_labels
from ssl_hub.data.images import UnreadableImageError, decode_image
from ssl_hub.data.loading import build_train_loader
from ssl_hub.data.views import build_views
from ssl_hub.data.views.crop import CropView
from ssl_hub.training.arguments import PretrainingArguments
from ssl_hub.training.recipes import list_recipes, load_recipe

ESCAPE = "\x1b[31m"


def encode(image, file_format="PNG"):
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


PNG = encode(Image.new("RGB", (6, 4)))


def write(folder, *names, content=PNG):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def labelled(names, labels):
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    )
    images = [{"bytes": PNG, "path": None}] * len(labels)
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def paths(folder):
    return [os.path.relpath(row["image"]["path"], folder) for row in load_image_dataset(folder)]


def digits_trainer(
    output_dir, train_dataset, eval_dataset=None, *, recipe="mae-vit-tiny-digits", batch_size=4, **options
):
    recipe = load_recipe(recipe)
    views = options.pop("views", recipe.views)
    model = AutoModelForPreTraining.from_config(recipe.build_config(options.pop("config_overrides", None)))
    args = {"max_train_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": batch_size, **options}
    args = PretrainingArguments(str(output_dir), **args)
    if eval_dataset is None:
        eval_dataset = digits(8).remove_columns("label")
    return SSLTrainer(model, args, train_dataset, views, eval_dataset)


def digits(count=32):
    return load_image_dataset("digits").select(range(count))


def link(name, target):
    return lambda folder: (folder / name).symlink_to(target)


class TestFolders:
    """Whatever a folder holds, the scan ends, takes each image once and says what it leaves out."""

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (link("a/loop", "."), "a/loop"),
            (link("a/loop", ".."), "a/loop"),
            (link("loop", "."), r"links to folders that are listed already \(loop\)"),
            (link("a/loop", "../.."), "a/loop"),
            (link("a/loop", "/"), "a/loop"),
            (link("a/itself", "itself"), None),
            (link("a/gone.png", "nowhere"), r"1 entries of .* no regular files.*a/gone\.png"),
            (lambda folder: os.mkfifo(folder / "a" / "pipe.jpg"), r"no regular files.*pipe\.jpg"),
            (link("a/zero.png", "/dev/zero"), r"no regular files.*zero\.png"),
            (
                lambda folder: write(folder, b"a/\xff.png".decode(errors="surrogateescape")),
                r"not UTF-8.*a/\\udcff\.png",
            ),
            (lambda folder: write(folder, b"\xff/1.png".decode(errors="surrogateescape")), r"not UTF-8.*\\udcff"),
        ],
    )
    @pytest.mark.timeout(10)
    def test_what_is_left_out(self, tmp_path, caplog, make, said):
        folder = write(tmp_path / "images", "a/1.png", "b/deep/2.png")
        make(folder)
        assert paths(folder) == ["a/1.png", "b/deep/2.png"]
        if said is not None:
            (line,) = caplog.messages
            assert re.search(said, line)

    def test_links_that_lead_elsewhere_are_followed(self, tmp_path):
        """Two splits or classes may share a folder, and a folder may lie on another disk."""
        store = write(tmp_path / "store", "a/1.png", "b/2.png")
        (tmp_path / "images").mkdir()
        for split in ("train", "val"):
            (tmp_path / "images" / split).symlink_to(store)
        assert paths(tmp_path / "images") == ["train/a/1.png", "train/b/2.png"]
        assert len(load_image_dataset(tmp_path / "images", "validation")) == 2

    @pytest.mark.timeout(10)
    def test_links_to_links_are_not_multiplied(self, tmp_path):
        """Twenty folders, each with two links to the next: a million ways to one image."""
        for i in range(20):
            (tmp_path / "images" / "a" / str(i)).mkdir(parents=True)
            for name in "xy":
                (tmp_path / "images" / "a" / str(i) / name).symlink_to(f"../{i + 1}")
        write(tmp_path / "images", "a/20/1.png", "b/2.png")
        assert len(load_image_dataset(tmp_path / "images")) == 2

    def test_a_folder_that_cannot_be_listed(self, tmp_path, monkeypatch):
        write(tmp_path, "a/1.png", "b/2.png")
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("b"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(OSError, match=r"/b' cannot be listed \(Permission denied\).*make it readable, or move"):
            load_image_dataset(tmp_path)

    def test_no_images(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no file at all"):
            load_image_dataset(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"1 files \(\.\\x1b\[31m\)"):
            load_image_dataset(write(tmp_path, f"1.{ESCAPE}"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("state.json", b"[]"), ("state.json", b"{"), ("dataset_info.json", b"{")],
)
def test_a_damaged_saved_dataset(tmp_path, name, content):
    labelled(["a"], [0]).save_to_disk(tmp_path)
    write(tmp_path, name, content=content)
    with pytest.raises(ValueError, match="saved dataset .* cannot be read"):
        load_image_dataset(tmp_path)


def test_no_control_character_reaches_a_terminal(tmp_path, caplog):
    name = f"{ESCAPE}\u202e\n.png"
    texts = []
    write(tmp_path / "bad", name, content=b"text")
    with pytest.raises(ValueError) as caught:
        load_image_dataset(tmp_path / "bad")
    texts.append(str(caught.value))
    row = {"bytes": None, "path": str(tmp_path / "bad" / name)}
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(row)
    texts += [str(caught.value), caught.value.name]
    for wrong in ({"split": ESCAPE}, {"label_column": ESCAPE}):
        labelled(None, [0]).add_column(ESCAPE, ["a"]).to_parquet(tmp_path / "data" / f"{ESCAPE}-00000-of-00001.parquet")
        with pytest.raises(ValueError) as caught:
            load_image_dataset(tmp_path / "data", **{"split": ESCAPE, **wrong} if "split" not in wrong else {})
        texts.append(str(caught.value))
    match_labels(labelled(["a", ESCAPE], [0, 1]), labelled(["a", "b"], [0, 1]))
    texts += caplog.messages
    assert len(texts) >= 7
    assert [text for text in texts if not text.isprintable()] == []


def png_header(width, height):
    """A PNG file of so many pixels, of which none is there."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x00\x00\x00\x00") + chunk(b"IDAT", zlib.compress(b""))


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "no known format"),
            (encode(Image.new("RGB", (4, 4)), "ICO"), "no known format"),
            (encode(Image.new("RGB", (4, 4)), "TGA"), "no known format"),
            (
                png_header(13_000, 13_000),
                r"13000 x 13000 pixels, more than the 89478485 of PIL\.Image\.MAX_IMAGE_PIXELS",
            ),
            (png_header(60_000, 60_000), "DecompressionBomb"),
            (png_header(1, 50_000), "1 x 50000 pixels, longer than 100 times its width"),
            (png_header(50_000, 1), "50000 x 1 pixels"),
        ],
    )
    def test_what_is_not_decoded(self, monkeypatch, tmp_path, content, why):
        monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: pytest.fail("ran Ghostscript"))
        file = tmp_path / "x.jpg"
        file.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for image in ({"bytes": content, "path": "x.jpg"}, {"bytes": None, "path": str(file)}):
                with pytest.raises(UnreadableImageError, match=why):
                    decode_image(image)

    @pytest.mark.timeout(10)
    @pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
    def test_no_regular_file(self, tmp_path, kind):
        path = {"pipe": tmp_path / "x.jpg", "device": "/dev/zero", "folder": tmp_path}[kind]
        if kind == "pipe":
            os.mkfifo(path)
        with pytest.raises(UnreadableImageError, match="no regular file"):
            decode_image({"bytes": None, "path": str(path)})

    @pytest.mark.parametrize("image", [None, {"bytes": None, "path": None}, {"bytes": None, "path": ""}])
    def test_rows_without_an_image(self, image):
        with pytest.raises(UnreadableImageError, match="^row 3: neither bytes nor a path"):
            decode_image(image, "row 3")

    def test_one_image_that_is_not_decoded_leaves_the_others(self, tmp_path):
        """What is not decoded is left out, counted and named like a damaged file."""
        write(tmp_path, *(f"{i}.png" for i in range(7)))
        write(tmp_path, "7.png", content=png_header(1, 50_000))
        loader = build_train_loader(load_image_dataset(tmp_path), build_views([{"size": 4}]), batch_size=8, seed=0)
        (batch,) = loader
        assert batch["pixel_values"].shape == (8, 3, 4, 4)
        assert batch["unreadable"] == [str(tmp_path / "7.png")]


class TestAddresses:
    @pytest.fixture
    def server(self):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_response(200)
                self.end_headers()
                if self.path == "/slow.png":
                    release.wait(20)
                self.wfile.write(PNG)

            def log_message(self, *args):
                pass

        release = threading.Event()
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.asked, server.address = asked, f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        release.set()
        server.shutdown()
        thread.join()
        server.server_close()

    @staticmethod
    def dataset(addresses):
        features = datasets.Features(image=datasets.Value("string"))
        return datasets.Dataset.from_dict({"image": addresses}, features=features)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_local_data_connect_to_nothing(self, server, tmp_path, streaming):
        addresses = [f"{server.address}/1.png", "hf://datasets/me/cats/1.png", f"zip://1.png::{server.address}/1.zip"]
        # A local file may claim what it likes.
        typed = self.dataset(addresses).cast_column("image", datasets.Image(decode=False, id="remote"))
        table = typed.data.table.replace_schema_metadata(typed.features.arrow_schema.metadata)
        pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
        with pytest.raises(
            ValueError, match="an address on the network, which is followed in datasets of the Hub only"
        ):
            load_image_dataset(tmp_path / "train.parquet", streaming=streaming)
        assert server.asked == []

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_dataset_of_the_hub_may_name_addresses(self, server, monkeypatch, streaming):
        rows = self.dataset([f"{server.address}/{i}.png" for i in range(4)])
        monkeypatch.setattr(
            datasets, "load_dataset", lambda *_, **__: rows.to_iterable_dataset() if streaming else rows
        )
        dataset = load_image_dataset("me/cats", streaming=streaming)
        for num_workers in (0, 1):
            server.asked.clear()
            loader = build_train_loader(
                dataset, build_views([{"size": 4}]), batch_size=4, seed=0, num_workers=num_workers
            )
            assert next(iter(loader))["unreadable"] == []
            assert sorted(server.asked) == [f"/{i}.png" for i in range(4)]

    def test_a_server_that_does_not_answer(self, server, monkeypatch):
        monkeypatch.setattr("ssl_hub.data.images._TIMEOUT", 0.2)
        with pytest.raises(UnreadableImageError, match="TimeoutError: timed out"):
            decode_image({"bytes": None, "path": f"{server.address}/slow.png"}, remote=True)

    def test_a_file_without_end(self, server, monkeypatch):
        monkeypatch.setattr("ssl_hub.data.images._MAX_BYTES", 10)
        with pytest.raises(UnreadableImageError, match="more than 10 bytes"):
            decode_image({"bytes": None, "path": f"{server.address}/1.png"}, remote=True)

    @pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/1.png", "zip://1.png::/tmp/1.zip"])
    def test_other_protocols(self, address):
        with pytest.raises(UnreadableImageError, match="begins with none of hf://, http:// and https://"):
            decode_image({"bytes": None, "path": address}, remote=True)


class TestLabels:
    @pytest.mark.parametrize(
        ("train", "evaluation", "labels", "lines"),
        [
            (["a", "b", "c"], ["a", "b", "c"], [0, 1, 2, 0], []),
            (["a", "b", "c"], ["c", "a", "b"], [2, 0, 1, 2], []),
            (["b", "c"], ["a", "b", "c"], [2, 0, 1, 2], ["classes that the training split lacks (1): a"]),
            (["a", "b", "c", "d"], ["b", "c", "d"], [1, 2, 3, 1], ["classes that the evaluation split lacks (1): a"]),
            (["a", "b", "c"], None, [0, 1, 2, 0], ["the labels of the training split have names and those of the "]),
            (None, ["a", "b", "c"], [0, 1, 2, 0], ["the labels of the evaluation split have names and those of the "]),
            (None, None, [0, 1, 2, 0], []),
            # Folders that are called by numbers are sorted as text.
            (["0", "1", "10", "2"], None, [0, 1, 3, 0], []),
            (None, ["0", "10", "2"], [0, 10, 2, 0], []),
            (["x", "y", "z"], ["a", "b", "c"], None, ["classes that", "classes that", "evaluation and training split"]),
        ],
    )
    @pytest.mark.parametrize("streaming", [False, True])
    def test_they_are_matched_by_name(self, caplog, train, evaluation, labels, lines, streaming):
        train_dataset = labelled(train, [0, 1, 1])
        train_dataset = train_dataset.to_iterable_dataset() if streaming else train_dataset
        matched = match_labels(labelled(evaluation, [0, 1, 2, 0]), train_dataset)
        assert (matched["label"][:] if "label" in matched.column_names else None) == labels
        assert len(matched) == 4 and len(caplog.messages) == len(lines)
        for message, line in zip(caplog.messages, lines, strict=True):
            assert message.startswith(line)

    def test_splits_in_parquet_files(self, tmp_path):
        """The schema of one split is not put upon another, nor that of one file upon its neighbour."""
        labelled(["a", "b"], [0, 1]).to_parquet(tmp_path / "train.parquet")
        labelled(["b", "a"], [0, 1]).to_parquet(tmp_path / "test.parquet")
        train, test = (load_image_dataset(tmp_path, split) for split in ("train", "test"))
        assert test.features["label"].names == ["b", "a"]
        assert match_labels(test, train)["label"][:] == [1, 0]
        labelled(["b", "a"], [0, 1]).to_parquet(tmp_path / "train-2.parquet")
        with pytest.raises(ValueError, match=r"train-2\.parquet' and .*train\.parquet' have other class names.*alike"):
            load_image_dataset(tmp_path)

    def test_a_run_matches_them(self, tmp_path, caplog):
        """kNN on features that tell the classes apart is right although one class is missing."""
        for split, classes in (("train", "bc"), ("validation", "abc")):
            for name in classes:
                content = encode(Image.new("RGB", (8, 8), {"a": "red", "b": "green", "c": "blue"}[name]))
                write(tmp_path / split, *(f"{name}/{i}.png" for i in range(8)), content=content)
        train, evaluation = (load_image_dataset(tmp_path, split) for split in ("train", "validation"))
        trainer = digits_trainer(tmp_path / "out", train, evaluation, batch_size=8)
        metrics = trainer.run_evaluation(trainer.model)
        assert metrics["knn_accuracy"] == pytest.approx(2 / 3)
        assert caplog.messages == ["classes that the training split lacks (1): a"]

    def test_features_keep_to_their_labels_where_images_cannot_be_read(self, tmp_path):
        for split in ("train", "validation"):
            for i in range(24):
                color = ("red", "green", "blue")[i % 3]
                content = b"" if i in (0, 1, 10, 22) else encode(Image.new("RGB", (8, 8), color))
                write(tmp_path / split, f"{color}/{i}.png", content=content)
        train, evaluation = (load_image_dataset(tmp_path, split) for split in ("train", "validation"))
        trainer = digits_trainer(tmp_path / "out", train, evaluation, evaluation="[{type: knn, k: 3}]")
        metrics = trainer.run_evaluation(trainer.model)
        assert metrics["knn_accuracy"] == 1.0

    @pytest.mark.parametrize("labels", [[0, None, 1], [0, -1, 1], [None, None, None], [0, 1, 2]])
    def test_images_without_a_label(self, tmp_path, caplog, labels):
        table = labelled(None, labels).data.table
        table = table.replace_schema_metadata(labelled(["a", "b"], [0]).features.arrow_schema.metadata)
        pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
        assert load_image_dataset(tmp_path).column_names == ["image"]
        missing = sum(label not in (0, 1) for label in labels)
        assert caplog.messages == [
            f"{missing} of the 3 images of '{tmp_path}' have no label from 0 to 1, so that the others' are left out too"
        ]
        with pytest.raises(ValueError, match=r"in the column 'label': remove these images, or leave label_column out"):
            load_image_dataset(tmp_path, label_column="label")

    @pytest.mark.parametrize("label", [2**40, -1])
    def test_numbers_that_are_no_classes(self, tmp_path, caplog, label):
        labelled(None, [0, label]).to_parquet(tmp_path / "train.parquet")
        assert load_image_dataset(tmp_path).column_names == ["image"]
        assert "1 of the 2 images" in caplog.text and "have no label from 0 to 99999" in caplog.text

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["1.png", "2.png"], "needs labels, and the training split has none: sort its images into class folders"),
            (["a/1.png", "b/2.png", "logo.png"], r"has 1 images outside of its 2 class folders \(logo\.png\)"),
            (["1.png", "metadata.csv"], r"labels come from class folders: did not read metadata\.csv"),
        ],
    )
    def test_a_folder_without_classes(self, tmp_path, caplog, names, said):
        """kNN is left out with the reason."""
        train = load_image_dataset(write(tmp_path / "train", *names))
        evaluation = load_image_dataset(write(tmp_path / "validation", "a/1.png", "b/2.png"))
        trainer = digits_trainer(tmp_path / "out", train, evaluation, batch_size=1)
        assert [evaluator.type for evaluator in trainer.run_evaluation.evaluators] == ["label_free"]
        assert any(re.search(said, message) for message in caplog.messages)
        assert any("left out the evaluation 'knn'" in message for message in caplog.messages)


class TestViews:
    @pytest.mark.parametrize(
        ("overrides", "size"),
        [
            (None, 16),
            ("image_size=24", 24),
            ("backbone_config.image_size=24", 24),
        ],
    )
    @pytest.mark.parametrize("recipe", ["mae-vit-tiny-digits", "simmim-swin-tiny-digits"])
    def test_they_follow_the_models_image_size(self, tmp_path, recipe, overrides, size):
        trainer = digits_trainer(tmp_path, digits(), recipe=recipe, config_overrides=overrides)
        assert next(iter(trainer.loader))["pixel_values"].shape == (4, 3, size, size)
        assert trainer.image_processor.crop_size == {"height": size, "width": size}
        if overrides == "image_size=24":
            trainer.train()
            saved = load_recipe(str(tmp_path / "recipe.yaml"))
            assert build_views(saved.views, saved.build_config().image_size)[0].size == size

    def test_no_recipe_says_its_size_twice(self):
        for name in list_recipes():
            recipe = load_recipe(name)
            sizes = [view.get("size") for view in recipe.views if view.get("kind", "crop") == "crop"]
            assert recipe.build_config().image_size not in sizes, name

    def test_a_size_that_is_not_the_models(self, caplog):
        build_views([{}, {"size": 8}], image_size=16)
        assert caplog.messages == []
        build_views([{"size": 8}, {"size": 4}], image_size=16)
        (line,) = caplog.messages
        assert "images of 16 pixels (image_size), and the views have 4, 8" in line

    @pytest.mark.parametrize(
        ("view", "message"),
        [
            ({"count": 1_000_000_000}, "count must be a whole number from 1 to 100, got 1000000000"),
            ({"size": 1_000_000_000}, "size must be a whole number from 1 to 8192"),
            ({"target": {"size": 1_000_000_000}}, "target: size must be a whole number from 1 to 8192"),
            ({"kind": "patches", "resize": 1_000_000_000}, "resize must be a whole number from 1 to 8192"),
            ({"kind": "patches", "grid": 1_000_000_000}, "smaller than the grid of 1000000000"),
            ({"mask": {"kind": "random", "patch": 0, "count": 1}}, "patch must be a whole number of at least 1, got 0"),
            ({"mask": {"kind": "aligned", "cell": 0}}, "cell must be a whole number of at least 1, got 0"),
            ({"ratio": [1e-300, 1e300]}, "ratio must be .*1e-06 <= low <= high <= 1e.06, got"),
            ({"gaussian_blur": {"p": 1, "sigma": [1, math.inf]}}, "sigma must be"),
            ({"color_jitter": {"p": 1, "brightness": math.inf}}, "brightness must be a number from 0 to 100, got inf"),
            ({"scale": [True, True]}, "scale must be"),
            *(({key: None}, key) for key in ("count", "size", "scale", "kind", "hflip", "mask", "target", "mean")),
        ],
    )
    def test_values_without_bound_or_type(self, view, message):
        with pytest.raises(ValueError, match=message):
            build_views([view], image_size=16)


class TestBatches:
    """Every algorithm refuses pixels that are no floats, and no images at all: `test_modeling_common.py`."""

    def test_targets_of_8_bits(self):
        model = AutoModelForPreTraining.from_config(load_recipe("maskfeat-vit-tiny-digits").build_config())
        pixels = torch.zeros(2, 3, 16, 16)
        with pytest.raises(ValueError, match="target_pixel_values must be normalised floats, got torch.uint8"):
            model(pixels, mode="loss", target_pixel_values=pixels.byte())

    def test_two_views_for_an_algorithm_of_one(self, tmp_path):
        trainer = digits_trainer(tmp_path, digits(), views=[{"count": 2}])
        with pytest.raises(
            ValueError, match="one view of each image; got a list of 2. In a recipe, the counts of the vie"
        ):
            trainer.train()


class TestWorkers:
    @pytest.mark.parametrize("end", ["killed", "exited"])
    def test_one_that_is_gone(self, tmp_path, monkeypatch, end):
        def render(view, image, parameters):
            os.kill(os.getpid(), signal.SIGKILL) if end == "killed" else os._exit(1)

        monkeypatch.setattr(CropView, "render", render)
        trainer = digits_trainer(tmp_path, digits(), dataloader_num_workers=1)
        with pytest.raises(OSError) as caught:
            trainer.train()
        how = "is killed by signal: Killed" if end == "killed" else "exited unexpectedly with exit code 1"
        assert how in str(caught.value) and "\n" not in str(caught.value)
        assert "memory ran out" in str(caught.value) and "--dataloader_num_workers" in str(caught.value)

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_a_batch_of_which_nothing_can_be_read(self, tmp_path, num_workers):
        train = load_image_dataset(write(tmp_path, "1.png", "2.png"))
        trainer = digits_trainer(tmp_path / "out", train, batch_size=2, dataloader_num_workers=num_workers)
        write(tmp_path, "1.png", "2.png", content=b"")
        trainer.run_evaluation.evaluators = []  # which would find them first
        with pytest.raises(UnreadableImageError) as caught:
            trainer.train()
        assert str(caught.value).startswith(f"None of the images of a batch can be read: {tmp_path}")
        assert "\n" not in str(caught.value)


class TestNames:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"--train_dir": "nowhere"}, "There is no file or folder 'nowhere': check the path."),
            ({"--train_dir": "digits"}, "There is no file or folder 'digits': check the path."),
            ({"--train_dir": "images", "--validation_dir": "no"}, "There is no file or folder 'no': check the path."),
            (
                {"--train_dir": "images/a/1.png"},
                "'images/a/1.png' is neither an image folder nor parquet or WebDataset files",
            ),
            (
                {"--dataset_name": "./nowhere"},
                "'./nowhere' is neither a local file or folder nor a dataset that can be",
            ),
            ({"--dataset_name": "digits", "--eval_split": "no"}, "'digits' has no split 'no'; the splits there are"),
            (
                {"--model_name_or_path": "./no/where"},
                "there is no model folder ./no/where",
            ),
            (
                {"--model_name_or_path": "images"},
                "the model images cannot be loaded: ",
            ),
        ],
    )
    def test_what_is_not_there_is_told_in_one_line(self, tmp_path, monkeypatch, arguments, message):
        write(tmp_path / "images", "a/1.png", "b/2.png")
        monkeypatch.chdir(tmp_path)
        arguments = {"--recipe": "mae-vit-tiny-digits", "--output_dir": "out", **arguments}
        monkeypatch.setattr("sys.argv", ["run_pretrain.py", *(text for pair in arguments.items() for text in pair)])
        # No look-up on the network.
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the Hub"))
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(Path(__file__).parents[2] / "examples" / "run_pretrain.py"), run_name="__main__")
        assert str(caught.value.code).startswith(f"error: {message}") and "\n" not in caught.value.code

    def test_a_path_is_never_a_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(write(tmp_path, "digits/1.png"))
        assert len(load_image_dataset("digits")) == 1437
        assert len(load_image_dataset(Path("digits"))) == 1
