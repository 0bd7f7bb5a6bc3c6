"""Time of a training step of MAE: ssl_hub beside transformers' ViTMAE, in turns, on the same images.

    python benchmarks/mae_training_step.py [--image_size 224] [--batch_size 8] [--rounds 10]

Prints the median time of a step (forward, backward, AdamW) of both and the median of the ratios of neighbours, which
is what to look at: the times depend on the machine and on what else it does.
"""

import argparse
import statistics
import time

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from ssl_hub import MAEConfig, MAEModel

SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
DECODER = {
    "decoder_hidden_size": 192,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 6,
    "decoder_intermediate_size": 768,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    ours = MAEModel(MAEConfig(backbone_config={**SIZES, "image_size": args.image_size}, **DECODER))
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**SIZES, **DECODER, image_size=args.image_size, norm_pix_loss=True))
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=device)
    steps = {
        "ssl_hub": make_step(ours.to(device), lambda: ours(images, mode="loss").loss),
        "transformers": make_step(theirs.to(device), lambda: theirs(images).loss),
    }
    times = {name: [] for name in steps}
    for round_number in range(args.rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number >= 2:  # the first ones warm up
                times[name].append(time.perf_counter() - start)
    for name, values in times.items():
        print(f"{name:12}  {1000 * statistics.median(values):8.1f} ms a step")
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    print(f"ssl_hub / transformers  {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


def make_step(model, loss):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
