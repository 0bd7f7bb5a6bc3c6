"""Embeddings of a whole dataset, kept as a `datasets` folder, and the nearest neighbours in it."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import BaseImageProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..data.loading import build_eval_loader
from .feature_models import patch_tokens

DTYPES = ("float32", "float16")

_SETTINGS_FILE = "extraction.json"


@dataclass(frozen=True)
class Neighbor:
    """A row of an embedded dataset that is near to a query, and the cosine similarity of their embeddings."""

    index: int
    file_name: str
    similarity: float


def extract_embeddings(
    model: nn.Module,
    image_processor: BaseImageProcessor,
    dataset: datasets.Dataset,
    output_dir: str | os.PathLike,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    rows_per_shard: int = 4096,
    dtype: str = "float32",
    with_patch_tokens: bool = False,
) -> datasets.Dataset:
    """Writes the embedding of every image of a dataset, row by row, to a folder that `datasets.load_from_disk` reads.

    Several processes share the work: each takes every n-th shard of rows. A shard is written under another name and
    renamed when it is whole, so that an extraction that was stopped resumes with the shards that are missing, also with
    another number of processes. They lie in `output_dir` with the ending `.shards` until all are there.

    A row has the columns
        * file_name: the image's file, or "row 3" where it has none,
        * index: the row in the dataset,
        * label: where the dataset has labels,
        * readable: False for an image that cannot be read; its embedding is zero,
        * embedding: the pooled features `(D,)`,
        * patch_tokens: `(L, D)`, if asked for: the patches, row by row, without class and register tokens.

    Args:
        model: `model(pixel_values).pooler_output` must be `(B, D)`; for patch tokens one of `load_feature_model`. It is
            put in eval mode and on the process' device.
        dataset: what `load_image_dataset` returned, not streamed.
        output_dir: must not exist, or hold the same extraction.
        batch_size: images a forward pass. The last digits of an embedding can depend on it, not on the number of
            processes.
        dtype: of what is stored, "float32" or "float16".

    Returns:
        The dataset of embeddings, on every process.

    Raises:
        ValueError: a number or a dtype out of range, features that are not finite (or not in float16), `output_dir` is
            taken by something else.
    """
    if min(batch_size, rows_per_shard) < 1 or num_workers < 0:
        raise ValueError(
            "batch_size and rows_per_shard must be at least 1 and num_workers at least 0; got "
            f"{batch_size}, {rows_per_shard} and {num_workers}"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    accelerator, output_dir = Accelerator(), Path(output_dir).absolute()
    model = model.to(accelerator.device).eval()
    settings = {
        "model": _digest(model, image_processor),
        "dataset": dataset._fingerprint,
        "num_rows": len(dataset),
        "dtype": dtype,
        "patch_tokens": with_patch_tokens,
        "batch_size": batch_size,
        "rows_per_shard": rows_per_shard,
    }
    shards_dir = output_dir.with_name(f"{output_dir.name}.shards")
    if output_dir.exists():
        _check_settings(output_dir, settings)
    else:
        with accelerator.main_process_first():
            _begin(shards_dir, settings, accelerator.is_main_process)
        writer = _ShardWriter(model, image_processor, dataset, batch_size, num_workers, dtype, with_patch_tokens)
        starts = range(0, len(dataset), rows_per_shard)
        shards = {shards_dir / f"rows-{start:010d}.arrow": start for start in starts}
        missing = [(path, start) for path, start in shards.items() if not path.exists()]
        accelerator.wait_for_everyone()  # or one process would find what another has written since
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        for path, start in tqdm(mine, desc="embedding", unit="shard", disable=not accelerator.is_main_process):
            writer.write(path, range(start, min(start + rows_per_shard, len(dataset))))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _put_together(list(shards), output_dir, settings)
            shutil.rmtree(shards_dir)
        accelerator.wait_for_everyone()
    return datasets.load_from_disk(str(output_dir))


def readable_rows(embeddings: datasets.Dataset) -> Tensor:
    """Which rows `(N,)` of what `extract_embeddings` returned are of images that could be read."""
    return torch.tensor(embeddings.select_columns("readable")[:]["readable"], dtype=torch.bool)


def add_index(embeddings: datasets.Dataset) -> None:
    """Adds a faiss index of the column "embedding", by cosine similarity and exact, to a dataset in memory.

    `embeddings.save_faiss_index("embedding", file)` keeps it.
    """
    import faiss  # it takes a while to import

    embeddings.add_faiss_index("embedding", string_factory="L2norm,Flat", metric_type=faiss.METRIC_INNER_PRODUCT)


def nearest_neighbors(embeddings: datasets.Dataset, query: Tensor, k: int) -> list[Neighbor]:
    """The `k` readable images of the highest cosine similarity with a query, the nearest first.

    Args:
        embeddings: what `extract_embeddings` returned, with the index of `add_index`.
        query: `(D,)`, an embedding by the same model.

    Raises:
        ValueError: a query of another width or that is not finite; fewer readable images than `k`.
    """
    width = embeddings.features["embedding"].length
    if query.shape != (width,):
        raise ValueError(
            f"the query has the shape {tuple(query.shape)} and the embeddings have {width} dimensions: embed both with "
            "the same model"
        )
    if not torch.isfinite(query).all():
        raise ValueError("the query's embedding holds NaN or infinity: the model has diverged, or its image is broken")
    num_readable = int(readable_rows(embeddings).sum())
    if not 1 <= k <= num_readable:
        raise ValueError(f"{k} neighbours of {num_readable} readable images: choose a number from 1 to {num_readable}")
    # Images that could not be read have the similarity 0, which may be in front of others.
    wanted = k + len(embeddings) - num_readable
    similarities, rows = embeddings.search("embedding", query.float().cpu().numpy(), k=wanted)
    found = []
    for similarity, row in zip(similarities, rows, strict=True):
        columns = embeddings.select_columns(["index", "file_name", "readable"])[int(row)]
        if columns["readable"]:
            found.append(Neighbor(columns["index"], columns["file_name"], float(similarity)))
    return found[:k]


@torch.no_grad()
def embed_image(model: nn.Module, image_processor: BaseImageProcessor, image: Image.Image) -> Tensor:
    """The embedding `(D,)`, float32 on the CPU, of an RGB image; the model is put in eval mode."""
    return (
        _run(model.eval(), image_processor([image], return_tensors="pt")["pixel_values"]).pooler_output[0].float().cpu()
    )


class _ShardWriter:
    """Embeds ranges of rows, each into a file of its own."""

    def __init__(self, model, image_processor, dataset, batch_size, num_workers, dtype, with_patch_tokens):
        self.model, self.image_processor, self.dataset = model, image_processor, dataset
        self.batch_size, self.num_workers, self.dtype = batch_size, num_workers, dtype
        self.with_patch_tokens = with_patch_tokens
        # The shapes are those of any image: the first ones of the dataset may be unreadable.
        outputs = self._outputs(image_processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"])
        if outputs["embedding"].ndim != 2:
            raise ValueError(f"the features have the shape {outputs['embedding'].shape}, expected (batch, dimensions)")
        self.columns = {name: values.shape[1:] for name, values in outputs.items()}
        self.features = datasets.Features(
            file_name=datasets.Value("string"), index=datasets.Value("int64"), readable=datasets.Value("bool")
        )
        if "label" in dataset.column_names:
            self.features["label"] = dataset.features["label"]
        self.features["embedding"] = datasets.List(datasets.Value(dtype), length=self.columns["embedding"][0])
        if with_patch_tokens:
            self.features["patch_tokens"] = datasets.Array2D(self.columns["patch_tokens"], dtype)
        self.file_names = dataset.flatten().select_columns("image.path")  # without the images' bytes

    def write(self, path: Path, rows: range) -> None:
        images = self.dataset.select_columns("image").select(rows)
        loader = build_eval_loader(
            images, self.image_processor, batch_size=self.batch_size, num_workers=self.num_workers
        )
        unfinished = path.with_suffix(".unfinished")
        with ArrowWriter(path=str(unfinished), features=self.features) as writer:
            for batch, start in zip(loader, range(rows.start, rows.stop, self.batch_size), strict=True):
                stop = min(start + self.batch_size, rows.stop)
                writer.write_batch(self._columns(batch, range(start, stop), batch["indices"] - (start - rows.start)))
            writer.finalize()
        os.replace(unfinished, path)

    def _columns(self, batch: dict, rows: range, known: Tensor) -> dict:
        names = self.file_names[rows.start : rows.stop]["image.path"]
        columns: dict = {
            "file_name": [name or f"row {row}" for name, row in zip(names, rows, strict=True)],
            "index": np.array(rows),
            "readable": np.isin(np.arange(len(rows)), known),
        }
        if "label" in self.features:
            columns["label"] = self.dataset.select_columns("label")[rows.start : rows.stop]["label"]
        for name, shape in self.columns.items():
            columns[name] = np.zeros((len(rows), *shape), self.dtype)
        if len(known) > 0:
            outputs = self._outputs(batch["pixel_values"])
            for name in self.columns:
                with np.errstate(over="ignore"):
                    values = outputs[name].astype(self.dtype)
                finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
                if not finite.all():
                    file = columns["file_name"][int(known[int(np.argmin(finite))])]
                    cause = "the model has diverged, or its values do not fit float16: store float32"
                    raise ValueError(f"the features of {file} hold NaN or infinity as {self.dtype}: {cause}")
                columns[name][known] = values
        # A list of rows: the writer takes a plain list for a column of arrays of a fixed shape.
        return {name: list(values) for name, values in columns.items()}

    def _outputs(self, pixel_values: Tensor) -> dict[str, np.ndarray]:
        outputs = _run(self.model, pixel_values)
        found = {"embedding": outputs.pooler_output.float().cpu().numpy()}
        if self.with_patch_tokens:
            found["patch_tokens"] = patch_tokens(self.model, outputs.last_hidden_state).float().cpu().numpy()
        return found


@torch.no_grad()
def _run(model: nn.Module, pixel_values: Tensor) -> BaseModelOutputWithPooling:
    parameter = next(model.parameters(), None)  # the baseline of pixels has none
    return model(pixel_values if parameter is None else pixel_values.to(parameter.device))


def _digest(model: nn.Module, image_processor: BaseImageProcessor) -> str:
    """What tells two models apart whose embeddings differ, whatever they are called."""
    digest = hashlib.sha256(repr(model).encode())
    digest.update(json.dumps(image_processor.to_dict(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _begin(shards_dir: Path, settings: dict, is_main_process: bool) -> None:
    if (shards_dir / _SETTINGS_FILE).exists():
        _check_settings(shards_dir, settings)
    elif is_main_process:
        shards_dir.mkdir(parents=True, exist_ok=True)
        _write_settings(shards_dir, settings)


def _check_settings(folder: Path, settings: dict) -> None:
    try:
        found = json.loads((folder / _SETTINGS_FILE).read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} exists and holds no embeddings: choose another folder") from None
    if different := [name for name, value in settings.items() if found.get(name) != value]:
        raise ValueError(
            f"{folder} holds embeddings that differ in {', '.join(different)}: choose another folder, or delete this one"
        )


def _write_settings(folder: Path, settings: dict) -> None:
    unfinished = folder / f"{_SETTINGS_FILE}.unfinished"
    unfinished.write_text(json.dumps(settings, indent=2) + "\n")
    os.replace(unfinished, folder / _SETTINGS_FILE)


def _put_together(shards: list[Path], output_dir: Path, settings: dict) -> None:
    whole = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in shards])
    unfinished = output_dir.with_name(f"{output_dir.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    whole.save_to_disk(str(unfinished))
    _write_settings(unfinished, settings)
    os.replace(unfinished, output_dir)
