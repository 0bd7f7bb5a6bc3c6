"""A training step beside lightly's and transformers'.

    pip install -r benchmarks/requirements.txt
    python benchmarks/steps.py [--algorithms MAE DenseCL] [--rounds 5]

Forward, backward, optimizer and teacher on random images, batches of 16 at 96 pixels. The peer of MAE is transformers' ViTMAE;
that of the others is put together from lightly's heads and losses around torchvision's ResNet-50 (MoCo v3: transformers'
ViT), as in lightly's examples. Both have the same shapes, as many parameters to within 1 %, and the same optimizer: SGD, and
AdamW for the ViTs, both fused. Time is that of the processor, one thread, the sides in turn. "channels last" is how the
trainer runs a ResNet. Memory is what a process of its own holds at most in three steps beyond what it held before them,
gradients and the optimizer's state among it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import harness

harness.use_one_thread()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import torchvision  # noqa: E402
from torch import nn  # noqa: E402
from transformers import AutoModelForPreTraining, ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

import ssl_hub  # noqa: E402, F401  it registers the algorithms
from ssl_hub.lifecycle import Progress  # noqa: E402
from ssl_hub.training.trainer import use_channels_last  # noqa: E402

QUEUE_SIZE, NUM_PROTOTYPES, TEACHER_MOMENTUM = 4096, 3000, 0.99
RESNETS = {
    "resnet50": {"model_type": "resnet"},
    "resnet18": {
        **{"model_type": "resnet", "layer_type": "basic"},
        **{"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    },
}


@dataclass(frozen=True)
class Sizes:
    image_size: int = 96
    batch_size: int = 16
    resnet: str = "resnet50"
    vit_layers: int = 6
    head_width: int = 2048

    @property
    def resnet_width(self) -> int:
        return 2048 if self.resnet == "resnet50" else 512

    @property
    def vit(self) -> dict:
        return {
            **{"image_size": self.image_size, "hidden_size": 384, "num_hidden_layers": self.vit_layers},
            **{"num_attention_heads": 6, "intermediate_size": 1536, "layer_norm_eps": 1e-6},
        }


MAE_DECODER = {
    **{"decoder_hidden_size": 192, "decoder_num_hidden_layers": 2},
    **{"decoder_num_attention_heads": 6, "decoder_intermediate_size": 768},
}


def our_fields(algorithm: str, sizes: Sizes) -> dict:
    """The configuration of ours, but for its backbone."""
    width = sizes.head_width
    return {
        "MAE": MAE_DECODER,
        "SimCLR": {"projection_hidden_size": width},
        "MoCo": {"projection_hidden_size": width, "queue_size": QUEUE_SIZE},
        "BYOL": {"projection_hidden_size": width, "predictor_hidden_size": width},
        "SimSiam": {"projection_hidden_size": width, "projection_size": width},
        "Barlow Twins": {"projection_hidden_size": width, "projection_size": width},
        "MoCo v3": {"projection_hidden_size": width, "predictor_hidden_size": width, "freeze_patch_projection": False},
        "DenseCL": {"projection_hidden_size": width, "queue_size": QUEUE_SIZE},
        "SwAV": {"projection_hidden_size": width, "queue_size": 0, "num_small_crops": 4, "freeze_prototypes_steps": 0},
    }[algorithm]


ALGORITHMS = ("MAE", "MoCo", "BYOL", "SimSiam", "Barlow Twins", "MoCo v3", "DenseCL", "SimCLR", "SwAV")
VITS = ("MAE", "MoCo v3")


def build_ours(algorithm: str, sizes: Sizes) -> nn.Module:
    config_class = CONFIG_MAPPING[algorithm.lower().replace(" ", "")]
    backbone = {"model_type": "vit", **sizes.vit} if algorithm in VITS else RESNETS[sizes.resnet]
    return AutoModelForPreTraining.from_config(config_class(backbone_config=backbone, **our_fields(algorithm, sizes)))


class PeerMAE(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.model = ViTMAEForPreTraining(ViTMAEConfig(**sizes.vit, **MAE_DECODER, norm_pix_loss=True))

    def forward(self, images):
        return self.model(images).loss


class Peer(nn.Module):
    """Backbone and head of lightly's examples, and the same with momentum where the algorithm has a teacher."""

    has_teacher = False

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.backbone = self.build_backbone(sizes)
        self.projection_head = self.build_head(sizes.resnet_width, sizes.head_width)
        if self.has_teacher:
            self.backbone_momentum = copy.deepcopy(self.backbone).requires_grad_(False)
            self.projection_head_momentum = copy.deepcopy(self.projection_head).requires_grad_(False)

    def build_backbone(self, sizes: Sizes) -> nn.Module:
        resnet = getattr(torchvision.models, sizes.resnet)()
        return nn.Sequential(*list(resnet.children())[:-1], nn.Flatten())

    def project(self, images):
        return self.projection_head(self.backbone(images))

    @torch.no_grad()
    def project_momentum(self, images):
        return self.projection_head_momentum(self.backbone_momentum(images))

    def update_teacher(self) -> None:
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.backbone_momentum, TEACHER_MOMENTUM)
        update_momentum(self.projection_head, self.projection_head_momentum, TEACHER_MOMENTUM)


class PeerSimCLR(Peer):
    def build_head(self, features, width):
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        self.criterion = NTXentLoss(temperature=0.1)
        return SimCLRProjectionHead(features, width, 128)

    def forward(self, views):
        return self.criterion(*(self.project(view) for view in views))


class PeerMoCo(Peer):
    has_teacher = True

    def build_head(self, features, width):
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead

        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(QUEUE_SIZE, 128))
        return MoCoProjectionHead(features, width, 128)

    def forward(self, views):
        return self.criterion(self.project(views[0]), self.project_momentum(views[1]))


class PeerBYOL(Peer):
    has_teacher = True

    def build_head(self, features, width):
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

        self.prediction_head = BYOLPredictionHead(256, width, 256)
        self.criterion = NegativeCosineSimilarity()
        return BYOLProjectionHead(features, width, 256)

    def forward(self, views):
        predictions = [self.prediction_head(self.project(view)) for view in views]
        first, second = (self.project_momentum(view) for view in views)
        return 0.5 * (self.criterion(predictions[0], second) + self.criterion(predictions[1], first))


class PeerSimSiam(Peer):
    def build_head(self, features, width):
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

        self.prediction_head = SimSiamPredictionHead(width, 512, width)
        self.criterion = NegativeCosineSimilarity()
        return SimSiamProjectionHead(features, width, width)

    def forward(self, views):
        first, second = (self.project(view) for view in views)
        predictions = [self.prediction_head(each) for each in (first, second)]
        first, second = first.detach(), second.detach()
        return 0.5 * (self.criterion(first, predictions[1]) + self.criterion(second, predictions[0]))


class PeerBarlowTwins(Peer):
    def build_head(self, features, width):
        from lightly.loss import BarlowTwinsLoss
        from lightly.models.modules import BarlowTwinsProjectionHead

        self.criterion = BarlowTwinsLoss()
        return BarlowTwinsProjectionHead(features, width, width)

    def forward(self, views):
        return self.criterion(*(self.project(view) for view in views))


class PeerMoCoV3(Peer):
    """lightly has the heads; the loss is the paper's pseudo-code."""

    has_teacher = True

    def build_backbone(self, sizes: Sizes) -> nn.Module:
        return ViTModel(ViTConfig(**sizes.vit), add_pooling_layer=False)

    def build_head(self, features, width):
        from lightly.models.modules import MoCoProjectionHead

        self.prediction_head = MoCoProjectionHead(256, width, 256, num_layers=2, batch_norm=True)
        return MoCoProjectionHead(384, width, 256, num_layers=3, batch_norm=True)

    def project(self, images):
        return self.projection_head(self.backbone(images).last_hidden_state[:, 0])

    @torch.no_grad()
    def project_momentum(self, images):
        return self.projection_head_momentum(self.backbone_momentum(images).last_hidden_state[:, 0])

    def forward(self, views):
        queries = [self.prediction_head(self.project(view)) for view in views]
        keys = [self.project_momentum(view) for view in views]
        return self.contrast(queries[0], keys[1]) + self.contrast(queries[1], keys[0])

    def contrast(self, query, key):
        logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / 0.2
        return 0.4 * F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


class PeerDenseCL(Peer):
    has_teacher = True

    def build_backbone(self, sizes: Sizes) -> nn.Module:
        resnet = getattr(torchvision.models, sizes.resnet)()
        return nn.Sequential(*list(resnet.children())[:-2])

    def build_head(self, features, width):
        from lightly.loss import NTXentLoss
        from lightly.models.modules import DenseCLProjectionHead

        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(QUEUE_SIZE, 128))
        self.criterion_local = NTXentLoss(temperature=0.2, memory_bank_size=(QUEUE_SIZE, 128))
        return nn.ModuleList(DenseCLProjectionHead(features, width, 128) for _ in range(2))

    def encode(self, backbone, heads, images):
        features = backbone(images)
        global_projection = heads[0](features.mean(dim=(2, 3)))
        features = features.flatten(start_dim=2).permute(0, 2, 1)
        return features, global_projection, heads[1](features)

    def forward(self, views):
        from lightly.models.utils import select_most_similar

        features, query, local_query = self.encode(self.backbone, self.projection_head, views[0])
        with torch.no_grad():
            key_features, key, local_key = self.encode(self.backbone_momentum, self.projection_head_momentum, views[1])
        local_key = select_most_similar(features, key_features, local_key)
        loss = self.criterion(query, key)
        return 0.5 * (loss + self.criterion_local(local_query.flatten(end_dim=1), local_key.flatten(end_dim=1)))


class PeerSwAV(Peer):
    def build_head(self, features, width):
        from lightly.loss import SwaVLoss
        from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes

        self.prototypes = SwaVPrototypes(128, NUM_PROTOTYPES)
        self.criterion = SwaVLoss()
        return SwaVProjectionHead(features, width, 128)

    def forward(self, views):
        self.prototypes.normalize()
        scores = [self.prototypes(F.normalize(self.project(view), dim=1)) for view in views]
        return self.criterion(scores[:2], scores[2:])


PEERS = {
    **{"MAE": PeerMAE, "SimCLR": PeerSimCLR, "MoCo": PeerMoCo, "BYOL": PeerBYOL, "SimSiam": PeerSimSiam},
    **{"Barlow Twins": PeerBarlowTwins, "MoCo v3": PeerMoCoV3, "DenseCL": PeerDenseCL, "SwAV": PeerSwAV},
}


def build_step(
    algorithm: str,
    side: str,
    sizes: Sizes,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    compiled: bool = False,
) -> Callable[[], None]:
    """A function that does one step.

    Args:
        side: "ours", "ours, channels last", or "peer".
        dtype: of autocast; none by default.
    """
    device = device or torch.device("cpu")
    torch.manual_seed(0)
    is_ours = side != "peer"
    model = build_ours(algorithm, sizes) if is_ours else PEERS[algorithm](sizes)
    model.to(device).train()
    if side == "ours, channels last":
        use_channels_last(model, device)
    if compiled and is_ours:
        model.loss = torch.compile(model.loss)  # as the trainer does
    elif compiled:
        model.compile()
    optimizer_class = torch.optim.AdamW if algorithm in VITS else torch.optim.SGD
    settings = {} if algorithm in VITS else {"momentum": 0.9}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer_class(trainable, lr=1e-4, fused=True, **settings)
    views = make_views(algorithm, sizes, device)
    progress = Progress(1, 100, 10)

    def step() -> None:
        if is_ours:
            model.begin_step(progress)
        elif getattr(model, "has_teacher", False):
            model.update_teacher()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = model(views, mode="loss").loss if is_ours else model(views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if is_ours:
            model.end_step(progress)
        if device.type == "cuda":
            torch.cuda.synchronize()

    step.num_parameters = sum(parameter.numel() for parameter in trainable)
    return step


def make_views(algorithm: str, sizes: Sizes, device: torch.device):
    def images(size: int) -> torch.Tensor:
        return torch.randn(sizes.batch_size, 3, size, size, device=device)

    if algorithm == "MAE":
        return images(sizes.image_size)
    small = [images(sizes.image_size // 2) for _ in range(4)] if algorithm == "SwAV" else []
    return [images(sizes.image_size), images(sizes.image_size), *small]


def step_memory(algorithm: str, side: str, sizes: Sizes) -> float:
    step = build_step(algorithm, side, sizes)
    return harness.added_memory(lambda: [step() for _ in range(3)])


def main():
    parser = harness.argument_parser(__doc__, rounds=5)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    args = parser.parse_args()
    sizes, rows = Sizes(), []
    for algorithm in args.algorithms:
        peer_name = "transformers" if algorithm == "MAE" else "lightly"
        sides = ["ours", "peer"] if algorithm in VITS else ["ours", "peer", "ours, channels last"]
        steps = {side: build_step(algorithm, side, sizes) for side in sides}
        check_sizes(algorithm, *(step.num_parameters for step in steps.values()))
        runs = {side: lambda step=step: 1e3 * harness.cpu_seconds(step) for side, step in steps.items()}
        times = harness.in_turn(runs, args.rounds, warm_up=2)
        del steps, runs
        rows.append(harness.row(algorithm, "ms", times["ours"], times["peer"], peer_name, target=1.0))
        if algorithm not in VITS:
            ours = times["ours, channels last"]
            rows.append(harness.row(f"{algorithm}, channels last", "ms", ours, times["peer"], peer_name, target=0.85))
    for algorithm in args.algorithms:
        peer_name = "transformers" if algorithm == "MAE" else "lightly"
        side = "ours" if algorithm in VITS else "ours, channels last"
        ours, peer = ([harness.apart(step_memory, algorithm, each, sizes)] for each in (side, "peer"))
        rows.append(harness.row(f"{algorithm}, memory", "MiB", ours, peer, peer_name))
    harness.save("steps", __doc__, rows)


def check_sizes(algorithm: str, *numbers: int) -> None:
    if max(numbers) > 1.01 * min(numbers):
        raise RuntimeError(f"the sides of {algorithm} differ in size: {numbers}")


if __name__ == "__main__":
    main()
