"""What the online probe costs: a training step with it beside one without.

    python benchmarks/online_probe.py [--batch_size 16] [--rounds 5]

The same images and model, in turn, one thread, in the processor's time. MAE's encoder sees a quarter of the patches; a quarter of
its layers, and of its decoder's, have the ratio of all of them.
"""

import harness

harness.use_one_thread()

import torch  # noqa: E402
from transformers import AutoModelForPreTraining  # noqa: E402

from ssl_hub.training.online_probe import OnlineProbe  # noqa: E402
from ssl_hub.training.recipes import load_recipe  # noqa: E402

# By recipe the number of views, and changes.
RECIPES = {
    "simclr-resnet18-cifar10": (2, None),
    "mae-vit-base-300e": (1, "backbone_config.num_hidden_layers=3,decoder_num_hidden_layers=2"),
}


def main():
    parser = harness.argument_parser(__doc__, rounds=5)
    parser.add_argument("--batch_size", type=int, default=16)
    args = parser.parse_args()
    rows = []
    for recipe, (num_views, overrides) in RECIPES.items():
        times = harness.in_turn(build_sides(recipe, num_views, overrides, args.batch_size), args.rounds, warm_up=2)
        rows.append(harness.row(recipe, "ms", times["probed"], times["plain"], "without the probe"))
    harness.save("online_probe", __doc__, rows)


def build_sides(recipe: str, num_views: int, overrides: str | None, batch_size: int) -> dict:
    """Milliseconds a step."""
    config = load_recipe(recipe).build_config(overrides)
    model = AutoModelForPreTraining.from_config(config).train()
    views = [torch.randn(batch_size, 3, config.image_size, config.image_size)] * num_views
    pixel_values = views if num_views > 1 else views[0]
    rows = torch.arange(batch_size)
    probe = OnlineProbe(rows % 10, 10, learning_rate=1.0, chunk_size=256, device=torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def plain() -> None:
        model(pixel_values, mode="loss").loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def probed() -> None:
        plain()
        probe.observe(model, pixel_values, rows, share=1.0)
        probe.step()

    return {
        name: lambda step=step: 1e3 * harness.cpu_seconds(step) for name, step in (("plain", plain), ("probed", probed))
    }


if __name__ == "__main__":
    main()
