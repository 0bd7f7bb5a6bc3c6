"""Extracts the features of a dataset's images, and finds the nearest neighbours of an image among them.

    accelerate launch -m ssl_hub embed --model_name_or_path demo --dataset_name digits --output_dir features
    ssl-hub embed --model_name_or_path demo --dataset_name digits --output_dir features \
        --neighbors image.png

The model is one of ours, or any of transformers or timm. The folder is read by `datasets.load_from_disk` and has the
columns file_name, index, label, readable and embedding. An extraction that was stopped resumes when it is started again;
one that is complete is not repeated.
"""

from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from datasets import disable_progress_bars
from transformers.utils.logging import disable_progress_bar

from ..data.images import decode_image
from ..evaluation.embeddings import (
    DTYPES,
    add_index,
    embed_image,
    extract_embeddings,
    nearest_neighbors,
    readable_rows,
)
from ..evaluation.feature_models import load_feature_model
from ..field_types import PositiveInt
from ..printing import name_some, printable, set_up_logging
from ..visualization.embeddings import plot_neighbors
from ..visualization.model_pictures import RowImages
from . import parse
from .arguments import FeatureArguments


@dataclass(kw_only=True)
class ExtractionArguments(FeatureArguments):
    output_dir: str = field(metadata={"help": "The folder of the features."})
    split: str = field(default="train", metadata={"help": "The dataset's split."})
    dtype: str = field(default="float32", metadata={"help": "What the features are stored as.", "choices": DTYPES})
    patch_tokens: bool = field(default=False, metadata={"help": "Store the features of every patch besides."})
    per_device_batch_size: PositiveInt = field(default=64, metadata={"help": "Images a process and forward pass."})
    rows_per_shard: PositiveInt = field(default=4096, metadata={"help": "Images after which what is done is kept."})
    save_index: bool = field(default=False, metadata={"help": "Keep the faiss index, as output_dir.faiss."})
    neighbors: str | None = field(default=None, metadata={"help": "An image file whose nearest neighbours to show."})
    num_neighbors: PositiveInt = field(default=8, metadata={"help": "How many of them."})
    neighbors_file: str = field(default="neighbors.png", metadata={"help": "Where their picture goes."})


def main(args: list[str]) -> None:
    set_up_logging()
    args = parse("embed", ExtractionArguments, args)
    disable_progress_bar()
    disable_progress_bars()
    accelerator = Accelerator()
    # What is cheap to find out comes before the extraction.
    query = None if args.neighbors is None else decode_image({"bytes": None, "path": args.neighbors})
    dataset = args.load_split(args.split)
    if query is not None and not 1 <= args.num_neighbors <= len(dataset):
        raise ValueError(
            f"--num_neighbors must be from 1 to {len(dataset)}, the images there are; got {args.num_neighbors}"
        )
    model, image_processor = load_feature_model(args.model_name_or_path, args.pooling)
    embeddings = extract_embeddings(
        model,
        image_processor,
        dataset,
        args.output_dir,
        batch_size=args.per_device_batch_size,
        num_workers=args.dataloader_num_workers,
        rows_per_shard=args.rows_per_shard,
        dtype=args.dtype,
        with_patch_tokens=args.patch_tokens,
    )
    if not accelerator.is_main_process:
        return
    unreadable = (~readable_rows(embeddings)).nonzero().flatten().tolist()
    print(
        f"{len(embeddings)} features of {embeddings.features['embedding'].length} dimensions are in {args.output_dir}"
    )
    if unreadable:
        names = name_some(embeddings.select_columns("file_name")[unreadable[:6]]["file_name"])
        print(f"{len(unreadable)} images cannot be read; their rows are marked, and zero: {names}")
    if query is None and not args.save_index:
        return
    add_index(embeddings)
    if args.save_index:
        file = f"{Path(args.output_dir)}.faiss"
        embeddings.save_faiss_index("embedding", file)
        print(f"the index is {file}")
    if query is not None:
        show_neighbors(args, query, model, image_processor, dataset, embeddings)


def show_neighbors(args, query, model, image_processor, dataset, embeddings):
    embedding = embed_image(model, image_processor, query)
    neighbors = nearest_neighbors(embeddings, embedding, args.num_neighbors)
    class_names = getattr(dataset.features.get("label"), "names", None)
    titles = []
    print(f"\n{'similarity':>10}  {'row':>7}  image")
    for neighbor in neighbors:
        label = dataset.select_columns("label")[neighbor.index]["label"] if class_names else None
        label = "" if label is None else f"  ({class_names[label]})"
        print(f"{neighbor.similarity:10.4f}  {neighbor.index:7}  {printable(neighbor.file_name + label)}")
        titles.append(f"{neighbor.similarity:.3f}{label.replace('  ', chr(10))}")
    images = RowImages(dataset, [neighbor.index for neighbor in neighbors])
    plot_neighbors([query], [images], args.neighbors_file, titles=[titles])
    print(f"\nthe picture is {args.neighbors_file}")
