"""What the online probe costs: a training step with it beside one without, in turns, on the same images.

    python benchmarks/online_probe.py [--batch_size 16] [--rounds 10]

Prints for algorithms of either kind the median of the ratios of neighbours, which is what to look at: the times depend on
the machine and on what else it does.
"""

import argparse
import statistics
import time

import torch
from transformers import AutoModelForPreTraining

from ssl_hub.training.online_probe import OnlineProbe
from ssl_hub.training.recipes import load_recipe

# By recipe the number of views, and changes: MAE's encoder sees a quarter of the patches; a quarter of its layers, and of
# its decoder's, have the ratio of all of them.
RECIPES = {
    "simclr-resnet18-cifar10": (2, None),
    "mae-vit-base-300e": (1, "backbone_config.num_hidden_layers=3,decoder_num_hidden_layers=2"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for recipe, (num_views, overrides) in RECIPES.items():
        config = load_recipe(recipe).build_config(overrides)
        model = AutoModelForPreTraining.from_config(config).to(device).train()
        views = [torch.randn(args.batch_size, 3, config.image_size, config.image_size, device=device)] * num_views
        pixel_values = views if num_views > 1 else views[0]
        rows = torch.arange(args.batch_size, device=device)
        probe = OnlineProbe(rows.cpu() % 10, 10, learning_rate=1.0, chunk_size=256, device=device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        times = {False: [], True: []}
        for round_number in range(args.rounds + 2):
            for has_probe, durations in times.items():
                start = time.perf_counter()
                model(pixel_values, mode="loss").loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if has_probe:
                    probe.observe(model, pixel_values, rows, share=1.0)
                    probe.step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if round_number >= 2:  # the first ones warm up
                    durations.append(time.perf_counter() - start)
        ratios = [probed / plain for plain, probed in zip(times[False], times[True], strict=True)]
        print(f"{recipe:24}  {1000 * statistics.median(times[False]):8.1f} ms a step without the probe")
        print(f"{'':24}  with it {statistics.median(ratios):.2f} times that ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
