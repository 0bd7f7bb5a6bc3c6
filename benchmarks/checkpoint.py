"""How long a checkpoint holds training up, beside transformers' Trainer.

    python benchmarks/checkpoint.py [--rounds 3]

The MAE with a ViT-B/16 and the state of AdamW, on the CPU. Ours copies them and writes beside the next steps: what counts is the
time of the thread that trains. The memory for the copies is taken beside the steps before the first checkpoint. The peer does
what transformers' Trainer does: `save_pretrained`, then `torch.save` of the optimizer's state. Its time is the processor's of
that thread too, so that what it waits for the disk is not counted. "in all" is what writing takes of the processor, checksums
among it.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness

harness.use_one_thread()

import torch  # noqa: E402

from ssl_hub import MAEConfig, MAEModel  # noqa: E402
from ssl_hub.data.processing import build_image_processor  # noqa: E402
from ssl_hub.training.checkpointing import CheckpointWriter  # noqa: E402

SECONDS_PER_GB = 1.2 / 1.34  # the target


def main():
    args = harness.argument_parser(__doc__, rounds=3).parse_args()
    config = MAEConfig()
    model = MAEModel(config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()
    processor = build_image_processor(config.image_size, config.image_mean, config.image_std, 0.875)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(model, optimizer, processor, Path(folder), args.rounds)
    harness.save("checkpoint", __doc__, rows)


def measure(model, optimizer, processor, folder: Path, rounds: int) -> list[dict]:
    writer, step, in_all = CheckpointWriter(folder), 0, []

    def ours() -> float:
        nonlocal step
        step += 1
        start = time.process_time()
        held_up = thread_seconds(lambda: writer.save(step, model, processor, optimizer, {}, save_total_limit=1))
        writer.wait()
        in_all.append(time.process_time() - start)
        return held_up

    def peer() -> float:
        shutil.rmtree(folder / "peer", ignore_errors=True)
        return thread_seconds(lambda: save_as_trainer(model, optimizer, folder / "peer"))

    writer.reserve(model, optimizer)
    first = ours()
    size = sum(path.stat().st_size for path in (folder / "checkpoint-1").glob("*.safetensors")) / 1e9
    in_all.clear()
    times = harness.in_turn({"ours": ours, "peer": peer}, rounds)
    writer.close()
    limit = {"target": round(SECONDS_PER_GB * size, 3), "target_of": "ours"}
    name = f"{size:.2f} GB"
    return [
        harness.row(f"{name}, training held up", "s", times["ours"], times["peer"], "transformers", **limit),
        harness.row(f"{name}, training held up by the first one", "s", [first], **limit),
        harness.row(f"{name}, in all", "s", in_all[-rounds:], times["peer"], "transformers"),
    ]


def save_as_trainer(model, optimizer, folder: Path) -> None:
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def thread_seconds(run: Callable[[], object]) -> float:
    """Of the processor, of this thread alone."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


if __name__ == "__main__":
    main()
