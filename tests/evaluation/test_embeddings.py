from pathlib import Path

import datasets
import faiss
import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_processes
from sklearn.metrics.pairwise import cosine_similarity
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ssl_hub.data.datasets import load_image_dataset
from ssl_hub.data.processing import build_image_processor
from ssl_hub.evaluation.embeddings import (
    _ShardWriter,
    add_index,
    embed_image,
    extract_embeddings,
    nearest_neighbors,
    readable_rows,
)
from ssl_hub.evaluation.feature_models import PixelFeatures

PROCESSOR = build_image_processor(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop_ratio=1.0)
UNREADABLE = [0, 1, 2, 7]  # of the images below: the whole first batch, and one more


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    generator = np.random.default_rng(0)
    for i in range(12):
        file = folder / ("a" if i < 6 else "b") / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file)
        if i in UNREADABLE:
            file.write_bytes(b"broken")
    return folder


def extract(images, output_dir, model=None, **options):
    options = {"batch_size": 3, "rows_per_shard": 5, **options}
    return extract_embeddings(model or PixelFeatures(), PROCESSOR, load_image_dataset(images), output_dir, **options)


def test_rows_are_the_datasets(images, tmp_path):
    embeddings = extract(images, tmp_path / "out")
    assert embeddings.column_names == ["file_name", "index", "readable", "label", "embedding"]
    assert [Path(name).name for name in embeddings["file_name"]] == [f"{i:02}.png" for i in range(12)]
    assert embeddings["index"][:] == list(range(12))
    assert embeddings["label"][:] == [0] * 6 + [1] * 6 and embeddings.features["label"].names == ["a", "b"]
    assert (~readable_rows(embeddings)).nonzero().flatten().tolist() == UNREADABLE
    for row in embeddings:
        expected = torch.zeros(192)
        if row["readable"]:
            expected = embed_image(PixelFeatures(), PROCESSOR, Image.open(row["file_name"]))
        assert row["embedding"] == expected.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]
    assert embeddings[:] == datasets.load_from_disk(str(tmp_path / "out"))[:]


def test_rows_without_files_or_labels(tmp_path):
    digits = load_image_dataset("digits", "test").select(range(4)).remove_columns("label")
    embeddings = extract_embeddings(PixelFeatures(), PROCESSOR, digits, tmp_path / "out", dtype="float16")
    assert embeddings["file_name"][:] == [f"row {i}" for i in range(4)] and "label" not in embeddings.column_names
    assert embeddings.features["embedding"] == datasets.List(datasets.Value("float16"), length=192)


def test_labels_that_are_missing_are_kept(images, tmp_path):
    dataset = load_image_dataset(images)
    labels = [None, *dataset["label"][1:]]
    dataset = dataset.remove_columns("label").add_column("label", labels, feature=dataset.features["label"])
    embeddings = extract_embeddings(PixelFeatures(), PROCESSOR, dataset, tmp_path / "out")
    assert embeddings["label"][:] == labels


class PatchModel(nn.Module):
    def __init__(self, width=4, value=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), value))

    def forward(self, pixel_values):
        return BaseModelOutputWithPooling(pooler_output=pixel_values.mean(dim=(1, 2, 3))[:, None] * self.weight)


def test_a_stopped_extraction_resumes(images, tmp_path, monkeypatch):
    whole = extract(images, tmp_path / "whole")
    written, write = [], _ShardWriter.write

    def fail_at_second_shard(self, path, rows):
        if len(written) == 1:
            path.with_suffix(".unfinished").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        written.append(rows)
        write(self, path, rows)

    monkeypatch.setattr(_ShardWriter, "write", fail_at_second_shard)
    with pytest.raises(KeyboardInterrupt):
        extract(images, tmp_path / "out")
    assert not (tmp_path / "out").exists() and written == [range(0, 5)]
    with pytest.raises(ValueError, match=r"out\.shards holds embeddings that differ in dtype: choose another folder"):
        extract(images, tmp_path / "out", dtype="float16")
    monkeypatch.setattr(_ShardWriter, "write", lambda self, path, rows: (written.append(rows), write(self, path, rows)))
    assert extract(images, tmp_path / "out")[:] == whole[:]
    assert written == [range(0, 5), range(5, 10), range(10, 12)]
    assert extract(images, tmp_path / "out")[:] == whole[:] and len(written) == 3  # a complete one is not repeated
    assert not (tmp_path / "out.shards").exists()


def extract_all(images, output_dir):
    assert len(extract(images, output_dir)) == 12


def test_two_processes_are_one(images, tmp_path):
    run_processes(extract_all, 2, images, tmp_path / "two")
    one = extract(images, tmp_path / "one")
    assert datasets.load_from_disk(str(tmp_path / "two"))[:] == one[:]


def test_folders_of_something_else(images, tmp_path):
    with pytest.raises(ValueError, match="exists and holds no embeddings: choose another folder"):
        extract(images, images)
    extract(images, tmp_path / "out", PatchModel())
    with pytest.raises(ValueError, match="holds embeddings that differ in model: choose another folder, or delete"):
        extract(images, tmp_path / "out", PatchModel(value=2.0))
    (images / "b" / "new.png").write_bytes(b"")
    with pytest.raises(ValueError, match="differ in dataset, num_rows"):
        extract(images, tmp_path / "out", PatchModel())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size and rows_per_shard must be at least 1"),
        ({"rows_per_shard": 0}, "batch_size and rows_per_shard must be at least 1"),
        ({"dtype": "int8"}, "dtype must be one of float32, float16; got 'int8'"),
        ({"model": PatchModel(value=float("nan"))}, r"features of .*a.03\.png hold NaN or infinity as float32"),
        ({"model": PatchModel(value=1e9), "dtype": "float16"}, "hold NaN or infinity as float16: .* store float32"),
    ],
)
def test_bad_input(images, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        extract(images, tmp_path / "out", **options)


def test_neighbors_are_those_of_the_cosine_similarity(images, tmp_path):
    embeddings = extract(images, tmp_path / "out")
    add_index(embeddings)
    readable = readable_rows(embeddings)
    vectors = np.array(embeddings["embedding"][:])
    for query in (3, 11):
        neighbors = nearest_neighbors(embeddings, torch.tensor(vectors[query]), 8)
        similarities = cosine_similarity(vectors[query : query + 1], vectors)[0]
        similarities[~readable.numpy()] = -1
        expected = np.argsort(-similarities)[:8]
        assert [neighbor.index for neighbor in neighbors] == expected.tolist() and neighbors[0].index == query
        assert [neighbor.similarity for neighbor in neighbors] == pytest.approx(similarities[expected], rel=1e-5)
        assert Path(neighbors[0].file_name).name == f"{query:02}.png"
    # Also where those that cannot be read are nearer than what points away.
    assert all(readable[neighbor.index] for neighbor in nearest_neighbors(embeddings, -torch.tensor(vectors[3]), 8))

    embeddings.save_faiss_index("embedding", str(tmp_path / "index"))
    assert faiss.read_index(str(tmp_path / "index")).ntotal == 12
    with pytest.raises(ValueError, match="9 neighbours of 8 readable images: choose a number from 1 to 8"):
        nearest_neighbors(embeddings, torch.tensor(vectors[3]), 9)
    with pytest.raises(ValueError, match=r"the query has the shape \(5,\) and the embeddings have 192 dimensions"):
        nearest_neighbors(embeddings, torch.zeros(5), 1)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        nearest_neighbors(embeddings, torch.full((192,), torch.nan), 1)
