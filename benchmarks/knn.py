"""kNN classification beside faiss.

    python benchmarks/knn.py [--num_train 50000] [--num_test 10000] [--dimensions 512]

The 20 most similar of random L2-normalised features vote. Each side runs in a process of its own, in turn, one thread, in the
processor's time; memory is what is held at most beside the features. A run in which the accuracies differ by more than
0.1 points is an error.
"""

import harness

harness.use_one_thread()


def main():
    parser = harness.argument_parser(__doc__, rounds=3)
    parser.add_argument("--num_train", type=int, default=50_000)
    parser.add_argument("--num_test", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=512)
    args = parser.parse_args()
    sizes = (args.num_train, args.num_test, args.dimensions)
    sides = {name: lambda name=name: harness.apart(measure, name, *sizes) for name in CLASSIFIERS}
    results = harness.in_turn(sides, args.rounds, warm_up=0)
    accuracies = [accuracy for values in results.values() for _, _, accuracy in values]
    if max(accuracies) - min(accuracies) > 0.001:
        raise RuntimeError(f"the sides find different neighbors: accuracies {min(accuracies)} to {max(accuracies)}")
    label, rows = f"{args.num_train:,} x {args.num_test:,} x {args.dimensions}", []
    for column, (what, unit) in enumerate((("time", "s"), ("memory", "MiB"))):
        ours, theirs = ([value[column] for value in results[name]] for name in CLASSIFIERS)
        target = 1.0 if what == "time" else None
        rows.append(harness.row(f"{label}, {what}", unit, ours, theirs, "faiss", target=target))
    harness.save("knn", __doc__, rows)


def measure(name: str, num_train: int, num_test: int, dimensions: int) -> tuple[float, float, float]:
    """Seconds, MiB and the accuracy."""
    import torch

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(100, (num_train + num_test,), generator=generator)
    centers = torch.randn(100, dimensions, generator=generator)
    features = torch.empty(num_train + num_test, dimensions)
    for part, part_labels in zip(features.split(1000), labels.split(1000), strict=True):  # which takes no memory beside
        part.normal_(generator=generator).add_(centers[part_labels], alpha=0.15)
    train, test = (features[:num_train], labels[:num_train]), (features[num_train:], labels[num_train:])
    classify = CLASSIFIERS[name]
    classify((train[0][:1000], train[1][:1000]), (test[0][:10], test[1][:10]))  # loads the libraries
    found = []
    seconds = 0.0

    def run() -> None:
        nonlocal seconds
        seconds = harness.cpu_seconds(lambda: found.append(classify(train, test)))

    memory = harness.added_memory(run)
    return seconds, memory, found[0]


def ssl_hub(train, test) -> float:
    from ssl_hub.evaluation.knn import knn_accuracy

    return knn_accuracy(*train, *test, k=20)


def faiss(train, test) -> float:
    import faiss
    import numpy as np

    bank, queries = (features.numpy().copy() for features, _ in (train, test))
    faiss.normalize_L2(bank)
    faiss.normalize_L2(queries)
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank)
    similarities, neighbors = index.search(queries, 20)
    scores = np.zeros((len(queries), 100))
    rows = np.arange(len(queries))[:, None]
    np.add.at(scores, (rows, train[1].numpy()[neighbors]), np.exp(similarities / 0.07))
    return float((scores.argmax(1) == test[1].numpy()).mean())


CLASSIFIERS = {"ssl_hub": ssl_hub, "faiss": faiss}

if __name__ == "__main__":
    main()
