"""Time and memory of one re-clustering of DeepCluster, on random features of growing datasets.

    python benchmarks/reclustering.py [--num_images 1000 10000 100000] [--hidden_size 2048] [--images_per_cluster 128]

Each size runs in a process of its own. Prints the seconds of whitening and of k-means (20 iterations), and the largest
memory of the process above that before, with the table of features in it.
"""

import argparse
import multiprocessing
import resource
import time

import torch

from ssl_hub.modules.clustering import all_cores, cluster_sizes, fit_whitening, kmeans, whiten


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--hidden_size", type=int, default=2048)
    parser.add_argument("--pca_size", type=int, default=256)
    parser.add_argument("--images_per_cluster", type=int, default=128)  # ImageNet-1k with 10,000 clusters
    args = parser.parse_args()
    print(f"{'images':>9} {'clusters':>9} {'whitening':>11} {'k-means':>11} {'memory':>11} {'table alone':>11}")
    context = multiprocessing.get_context("spawn")
    for num_images in args.num_images:
        job = (num_images, max(num_images // args.images_per_cluster, 2), args.hidden_size, args.pca_size)
        process = context.Process(target=measure, args=job)
        process.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"the run with {num_images} images failed")


def measure(num_images: int, num_clusters: int, hidden_size: int, pca_size: int) -> None:
    kmeans(torch.randn(8, 2), 2, iterations=1, seed=0)  # loads the library
    before = peak_memory()
    generator = torch.Generator().manual_seed(0)
    # Rows around as many points as clusters, with a falling spectrum.
    points = torch.randn(num_clusters, hidden_size, generator=generator) / torch.arange(1, hidden_size + 1) ** 0.5
    features = torch.empty(num_images, hidden_size)
    for chunk, rows in zip(features.split(10_000), torch.arange(num_images).split(10_000), strict=True):
        chunk.normal_(std=0.02, generator=generator).add_(points[rows % num_clusters])
    start = time.perf_counter()
    with all_cores():
        whitened = whiten(features, *fit_whitening(features, min(pca_size, hidden_size)))
        middle = time.perf_counter()
        labels, _ = kmeans(whitened, num_clusters, iterations=20, seed=0)
        end = time.perf_counter()
    if not (cluster_sizes(labels, num_clusters) > 0).all():
        raise RuntimeError("a cluster is empty")
    memory, table = peak_memory() - before, features.numel() * 4 / 2**20
    print(
        f"{num_images:9,} {num_clusters:9,} {middle - start:9.2f} s {end - middle:9.2f} s {memory:7.0f} MiB "
        f"{table:7.0f} MiB",
        flush=True,
    )


def peak_memory() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
