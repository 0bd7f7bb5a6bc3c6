"""Starting up, beside what importing torch and transformers takes.

    python benchmarks/startup.py [--rounds 3]

Each command is a new process, in turn with the peer's, in the processor's time. A first model is a ResNet-50: SimCLR's of ours, the
plain one of transformers.
"""

import sys

import harness

harness.use_one_thread()

IMPORTS = "import torch, transformers"
FIRST_MODEL = "from transformers import ResNetConfig, ResNetModel; ResNetModel(ResNetConfig())"
COMMANDS = {  # ours, and the code of the peer's
    "ssl-hub --help": (["-m", "ssl_hub", "--help"], IMPORTS),
    "ssl-hub recipes": (["-m", "ssl_hub", "recipes"], IMPORTS),
    "ssl-hub pretrain --help": (["-m", "ssl_hub", "pretrain", "--help"], IMPORTS),
    "import ssl_hub": (["-c", "import ssl_hub"], IMPORTS),
    "first model": (["-c", "import ssl_hub; ssl_hub.SimCLRModel(ssl_hub.SimCLRConfig())"], FIRST_MODEL),
}


def main():
    args = harness.argument_parser(__doc__, rounds=3).parse_args()
    rows = []
    for name, (ours, peer) in COMMANDS.items():
        sides = {
            side: lambda words=words: harness.command_cpu_seconds([sys.executable, *words])
            for side, words in (("ours", ours), ("peer", ["-c", peer]))
        }
        times = harness.in_turn(sides, args.rounds, warm_up=0)
        rows.append(harness.row(name, "s", times["ours"], times["peer"], "torch and transformers"))
    harness.save("startup", __doc__, rows)


if __name__ == "__main__":
    main()
