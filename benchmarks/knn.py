"""Time and memory of the kNN classification beside those of faiss and scikit-learn, on random features.

    python benchmarks/knn.py [--num_train 50000] [--num_test 10000] [--dimensions 512]

Each runs in a process of its own, in turn, three times; the medians are printed, and their ratios to faiss. The memory
is what is held at most beside the features themselves. All find the 20 most similar of L2-normalised features and let
them vote.
"""

import argparse
import multiprocessing
import resource
import statistics
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_train", type=int, default=50_000)
    parser.add_argument("--num_test", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=512)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results: dict[str, list] = {name: [] for name in CLASSIFIERS}
    for _ in range(3):
        for name, values in results.items():
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=measure, args=(name, args.num_train, args.num_test, args.dimensions, sender)
            )
            process.start()
            values.append(receiver.recv())
            process.join()
    medians = {
        name: [statistics.median(value[column] for value in values) for column in range(3)]
        for name, values in results.items()
    }
    faiss_seconds, faiss_memory, _ = medians["faiss"]
    print(f"{'':13}{'time':>9}{'ratio':>8}{'memory':>11}{'ratio':>8}  accuracy")
    for name, (seconds, memory, accuracy) in medians.items():
        print(
            f"{name:13}{seconds:7.2f} s{seconds / faiss_seconds:8.2f}{memory:7.0f} MiB{memory / faiss_memory:8.2f}"
            f"  {accuracy:.4f}"
        )


def measure(name: str, num_train: int, num_test: int, dimensions: int, sender) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(100, (num_train + num_test,), generator=generator)
    centers = torch.randn(100, dimensions, generator=generator)
    features = torch.empty(num_train + num_test, dimensions)
    for part, part_labels in zip(features.split(1000), labels.split(1000), strict=True):  # which takes no memory beside
        part.normal_(generator=generator).add_(centers[part_labels], alpha=0.15)
    train, test = (features[:num_train], labels[:num_train]), (features[num_train:], labels[num_train:])
    CLASSIFIERS[name]((train[0][:1000], train[1][:1000]), (test[0][:10], test[1][:10]))  # loads the libraries
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    accuracy = CLASSIFIERS[name](train, test)
    seconds = time.perf_counter() - start
    sender.send((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, accuracy))


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


def scikit_learn(train, test) -> float:
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    classifier = KNeighborsClassifier(20, weights=lambda distances: np.exp((1 - distances) / 0.07), metric="cosine")
    classifier.fit(normalize(train[0].numpy()), train[1].numpy())
    return float(classifier.score(normalize(test[0].numpy()), test[1].numpy()))


CLASSIFIERS = {"ssl_hub": ssl_hub, "faiss": faiss, "scikit-learn": scikit_learn}

if __name__ == "__main__":
    main()
