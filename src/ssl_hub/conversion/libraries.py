"""Checkpoints of other libraries of self-supervised learning, under the names that their public sources give."""

from .authors import MLP_PROJECTOR, folded_bias, mae_decoder, sequential
from .backbones import RESNET, TIMM_VIT
from .renaming import POINTWISE, WEIGHT_NORM, WITHOUT_BIAS, Layout, Pair, under

BACKBONES = [*RESNET, *TIMM_VIT]
NONLINEAR = sequential("", "")
SWAV_PROJECTOR: list[Pair] = [("{}.", "projection_neck.{}.")]
# A ResNet as an `nn.Sequential` of its children.
_CHILDREN = {"conv1": "0", "bn1": "1", **{f"layer{stage}": str(stage + 3) for stage in range(1, 5)}}
RESNET_CHILDREN: list[Pair] = [
    (f"{_CHILDREN[theirs.split('.', 1)[0]]}.{theirs.split('.', 1)[1]}", ours) for theirs, ours in RESNET
]

BESIDE = "trained beside it, to see how it does"
NO_BATCHNORM = "a projector without BatchNorm, which this algorithm's has here"
FILLS_ANEW = "a queue, which fills anew"


def _at(theirs: tuple[str, ...], ours: str, pairs: list[Pair]) -> list[Pair]:
    """Of a module that has had several names there; the first is given on the way back."""
    return [pair for name in theirs for pair in under(name, ours, pairs)]


# solo-learn; before its version 1.0.3 a backbone was an encoder.
_SOLO_BACKBONE = _at(("backbone.", "encoder."), "backbone.", BACKBONES)
_SOLO_TEACHER = _at(("momentum_backbone.", "momentum_encoder."), "teacher.backbone.", BACKBONES)
_SOLO_PROJECTOR = under("projector.", "neck.", NONLINEAR)
_SOLO_MOMENTUM = [
    *_SOLO_BACKBONE,
    *_SOLO_PROJECTOR,
    *_SOLO_TEACHER,
    *under("momentum_projector.", "teacher.neck.", NONLINEAR),
    *under("predictor.", "head.predictor.", NONLINEAR),
]
_SOLO_DROPPED = {r"(momentum_)?classifier\.(weight|bias)": BESIDE}
SOLO_LEARN = [
    Layout("solo-learn", "barlowtwins", [*_SOLO_BACKBONE, *_SOLO_PROJECTOR], _SOLO_DROPPED, ("head.",)),
    Layout("solo-learn", "byol", _SOLO_MOMENTUM, _SOLO_DROPPED),
    Layout("solo-learn", "mae", [*under("backbone.", "backbone.", TIMM_VIT), *mae_decoder("decoder.")], _SOLO_DROPPED),
    Layout(
        "solo-learn",
        "moco",
        [
            *_SOLO_BACKBONE,
            *_SOLO_TEACHER,
            *under("projector.", "neck.", MLP_PROJECTOR),
            *under("momentum_projector.", "teacher.neck.", MLP_PROJECTOR),
        ],
        {**_SOLO_DROPPED, "queue(_ptr)?": "two queues, one a view, and MoCo has one here; it fills anew"},
        ("memory.",),
    ),
    Layout("solo-learn", "mocov3", _SOLO_MOMENTUM, _SOLO_DROPPED),
    Layout(
        "solo-learn",
        "simsiam",
        [
            *_SOLO_BACKBONE,
            *folded_bias("projector.", "neck."),
            *_SOLO_PROJECTOR,
            *under("predictor.", "head.predictor.", NONLINEAR),
        ],
        _SOLO_DROPPED,
    ),
    Layout(
        "solo-learn",
        "swav",
        [
            *_SOLO_BACKBONE,
            *under("projector.", "neck.", SWAV_PROJECTOR),
            (("prototypes.weight_g", "prototypes.weight_v"), "head.prototypes.weight", WEIGHT_NORM),
        ],
        {**_SOLO_DROPPED, "queue": FILLS_ANEW},
        ("memory.",),
    ),
    # SimCLR's as well
    Layout("solo-learn", None, _SOLO_BACKBONE, {**_SOLO_DROPPED, r"projector\.[02]\.(weight|bias)": NO_BATCHNORM}),
]

# lightly: the names of its benchmarks and of the examples in its documentation.
_LIGHTLY_BACKBONE = under("backbone.", "backbone.", [*RESNET, *RESNET_CHILDREN])
_LIGHTLY_PROJECTOR = under("projection_head.layers.", "neck.", NONLINEAR)
_LIGHTLY_PREDICTOR = under("prediction_head.layers.", "head.predictor.", NONLINEAR)
_LIGHTLY_DROPPED = {r"online_classifier\..*": BESIDE, r"(criterion|queues|memory_bank)\..*": FILLS_ANEW}


def _lightly_moco(student: str, teacher: str) -> list[Pair]:
    return [
        *under(student.format("backbone."), "backbone.", [*RESNET, *RESNET_CHILDREN]),
        *under(student.format("projection_head.layers."), "neck.", MLP_PROJECTOR),
        *under(teacher.format("backbone."), "teacher.backbone.", [*RESNET, *RESNET_CHILDREN]),
        *under(teacher.format("projection_head.layers."), "teacher.neck.", MLP_PROJECTOR),
    ]


def _lightly_densecl(names: str) -> list[Pair]:
    """Both projectors; the dense one is of linear layers there."""
    return [
        (f"{names.format('global')}.layers.{{}}.", "mlp.{}."),
        (f"{names.format('local')}.layers.{{}}.", "mlp2.{}.", POINTWISE),
    ]


LIGHTLY = [
    Layout("lightly", "barlowtwins", [*_LIGHTLY_BACKBONE, *_LIGHTLY_PROJECTOR], _LIGHTLY_DROPPED, ("head.",)),
    Layout(
        "lightly",
        "byol",
        [
            *_LIGHTLY_BACKBONE,
            *_LIGHTLY_PROJECTOR,
            *_LIGHTLY_PREDICTOR,
            *_at(("teacher_backbone.", "backbone_momentum."), "teacher.backbone.", [*RESNET, *RESNET_CHILDREN]),
            *_at(("teacher_projection_head.layers.", "projection_head_momentum.layers."), "teacher.neck.", NONLINEAR),
        ],
        _LIGHTLY_DROPPED,
    ),
    Layout(
        "lightly",
        "densecl",
        [
            *_LIGHTLY_BACKBONE,
            *under("", "neck.", _lightly_densecl("projection_head_{}")),
            *under("backbone_momentum.", "teacher.backbone.", [*RESNET, *RESNET_CHILDREN]),
            *under("", "teacher.neck.", _lightly_densecl("projection_head_{}_momentum")),
        ],
        {**_LIGHTLY_DROPPED, r"criterion_(global|local)\..*": FILLS_ANEW},
        ("memory.",),
    ),
    Layout(
        "lightly",
        "mae",
        [*under("backbone.vit.", "backbone.", TIMM_VIT), *mae_decoder("decoder.")],
        {**_LIGHTLY_DROPPED, r"backbone\.mask_token": "MAE masks in the decoder, and this is never trained"},
    ),
    # of the benchmarks, where the teacher has the plain names, and of the documentation
    Layout("lightly", "moco", _lightly_moco("query_{}", "{}"), _LIGHTLY_DROPPED, ("memory.",)),
    Layout(
        "lightly",
        "moco",
        [
            *_LIGHTLY_BACKBONE,
            *under("projection_head.layers.", "neck.", MLP_PROJECTOR),
            *under("backbone_momentum.", "teacher.backbone.", [*RESNET, *RESNET_CHILDREN]),
            *under("projection_head_momentum.layers.", "teacher.neck.", MLP_PROJECTOR),
        ],
        _LIGHTLY_DROPPED,
        ("memory.",),
    ),
    Layout("lightly", "simclr", [*_LIGHTLY_BACKBONE, *_LIGHTLY_PROJECTOR], _LIGHTLY_DROPPED),
    Layout("lightly", "simsiam", [*_LIGHTLY_BACKBONE, *_LIGHTLY_PROJECTOR, *_LIGHTLY_PREDICTOR], _LIGHTLY_DROPPED),
    Layout(
        "lightly",
        "swav",
        [
            *_LIGHTLY_BACKBONE,
            (
                ("projection_head.layers.0.weight", "projection_head.layers.1.running_mean"),
                (*(f"neck.projection_neck.0.{x}" for x in ("weight", "bias")), "neck.projection_neck.1.running_mean"),
                WITHOUT_BIAS,
            ),
            *under("projection_head.layers.", "neck.", SWAV_PROJECTOR),
            ("prototypes.heads.0.weight", "head.prototypes.weight"),
        ],
        {**_LIGHTLY_DROPPED, r"prototypes\.heads\.0\.bias": "a bias of the prototypes, and SwAV's have none"},
        ("memory.",),
    ),
]

# lightly-train, whose exported models are torchvision's or timm's alone.
_TRAINED: list[Pair] = [
    *_at(
        tuple(f"{wrapper}._features." for wrapper in ("wrapped_model", "model_wrapper")),
        "",
        [*RESNET, *RESNET_CHILDREN],
    ),
    *_at(tuple(f"{wrapper}._model." for wrapper in ("wrapped_model", "model_wrapper")), "", BACKBONES),
]
_LIGHTLY_TRAIN_ENCODER = [
    *under("embedding_model.", "backbone.", _TRAINED),
    *under("", "neck.", _lightly_densecl("{}_projection_head")),
]
LIGHTLY_TRAIN = [
    Layout(
        "lightly-train",
        "densecl",
        [
            *under("query_encoder.", "", _LIGHTLY_TRAIN_ENCODER),
            *under("key_encoder.", "teacher.", _LIGHTLY_TRAIN_ENCODER),
        ],
        {r"(memory_bank|(local|global)_criterion)\..*": FILLS_ANEW},
        ("memory.",),
    ),
    Layout("lightly-train", "simclr", [*under("embedding_model.", "backbone.", _TRAINED), *_LIGHTLY_PROJECTOR]),
]

# VISSL: a trunk, and heads one behind the other.
_VISSL_TRUNK = _at(("trunk._feature_blocks.", "trunk.base_model._feature_blocks."), "backbone.", RESNET)
_VISSL_SWAV = [
    *_VISSL_TRUNK,
    ("heads.0.projection_head.{}.", "neck.projection_neck.{}."),
    ("heads.0.prototypes0.", "head.prototypes."),
]
VISSL = [
    Layout(
        "vissl", "barlowtwins", [*_VISSL_TRUNK, *under("heads.0.clf.", "neck.", NONLINEAR)], kept_elsewhere=("head.",)
    ),
    Layout(
        "vissl",
        "moco",
        [*_VISSL_TRUNK, ("heads.0.clf.0.", "neck.mlp.0."), ("heads.1.clf.0.", "neck.mlp.2.")],
        kept_elsewhere=("teacher.", "memory."),
    ),
    Layout("vissl", "npid", [*_VISSL_TRUNK, ("heads.0.clf.0.", "neck.")], kept_elsewhere=("memory.",)),
    Layout("vissl", "rotationpred", [*_VISSL_TRUNK, ("heads.0.clf.0.", "head.classifier.")]),
    Layout(
        "vissl",
        "swav",
        _VISSL_SWAV,
        {r"heads\.0\.prototypes[1-9]\.weight": "a further set of prototypes, and a SwAV has one"},
        ("memory.",),
    ),
    # SimCLR's as well
    Layout("vissl", None, _VISSL_TRUNK, {r"heads\.[01]\.clf\.0\.(weight|bias)": NO_BATCHNORM}),
]

# stable-pretraining
_STABLE_BACKBONE = under("backbone.", "backbone.", BACKBONES)
_STABLE_PROJECTOR = under("projector.", "neck.", NONLINEAR)
_STABLE_DROPPED = {
    r"_?callbacks_(modules|metrics)\..*": BESIDE,
    r".*\.ema_coefficient": "the teacher's momentum, which the trainer has here",
}
STABLE_PRETRAINING = [
    Layout(
        "stable-pretraining",
        "barlowtwins",
        [*_STABLE_BACKBONE, *_STABLE_PROJECTOR, ("barlow_loss.bn.", "head.bn.")],
        _STABLE_DROPPED,
    ),
    Layout(
        "stable-pretraining",
        "byol",
        [
            *under("backbone.student.", "backbone.", BACKBONES),
            *under("projector.student.", "neck.", NONLINEAR),
            *under("backbone.teacher.", "teacher.backbone.", BACKBONES),
            *under("projector.teacher.", "teacher.neck.", NONLINEAR),
            *under("predictor.", "head.predictor.", NONLINEAR),
        ],
        _STABLE_DROPPED,
    ),
    Layout("stable-pretraining", "simclr", [*_STABLE_BACKBONE, *_STABLE_PROJECTOR], _STABLE_DROPPED),
    Layout(
        "stable-pretraining",
        "swav",
        [
            *_STABLE_BACKBONE,
            *under("projector.", "neck.", SWAV_PROJECTOR),
            ("prototypes.", "head.prototypes."),
        ],
        _STABLE_DROPPED,
        ("memory.",),
    ),
]

# Ports of BYOL: lucidrains/byol-pytorch and sthalles/PyTorch-BYOL (whose misspelling it is).
BYOL_PORTS = [
    Layout(
        "byol-pytorch",
        "byol",
        [
            *under("online_encoder.net.", "backbone.", BACKBONES),
            *under("online_encoder.projector.", "neck.", NONLINEAR),
            *under("target_encoder.net.", "teacher.backbone.", BACKBONES),
            *under("target_encoder.projector.", "teacher.neck.", NONLINEAR),
            *under("online_predictor.", "head.predictor.", NONLINEAR),
        ],
        {
            r"net\..*": "the tensors of online_encoder.net once more",
            r"(online|target)_encoder\.net\.(fc|head)\..*": "a classifier that is not trained",
        },
    ),
    Layout(
        "PyTorch-BYOL",
        "byol",
        [
            pair
            for name, ours in (("online", ""), ("target", "teacher."))
            for pair in under(
                f"{name}_network_state_dict.",
                ours,
                [
                    *under("encoder.", "backbone.", RESNET_CHILDREN),
                    *under("projetion.net.", "neck.", NONLINEAR),
                ],
            )
        ],
        kept_elsewhere=("head.",),
    ),
]

LAYOUTS = [*SOLO_LEARN, *LIGHTLY, *LIGHTLY_TRAIN, *VISSL, *STABLE_PRETRAINING, *BYOL_PORTS]
