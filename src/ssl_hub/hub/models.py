"""The models that are published under `ssl-hub/` on the Hub: one table, from which cards and commands derive."""

from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import urlsplit

NAMESPACE = "ssl-hub"


@dataclass(frozen=True)
class Paper:
    """Where an algorithm comes from; the year is that of the arXiv id."""

    title: str
    authors: str
    arxiv_id: str


@dataclass(frozen=True)
class Result:
    """A published top-1 accuracy on ImageNet-1k's validation images, in percent.

    Args:
        protocol: what was trained on the features.
        recipe: what repeats it, of `ssl-hub probe --augment` or `ssl-hub finetune`; empty if none does.
    """

    protocol: str
    top1: float
    recipe: str = ""


@dataclass(frozen=True)
class PublishedModel:
    """A model of the Hub, and the public checkpoint that it is converted from.

    Args:
        name: of its repository, under `ssl-hub/`.
        algorithm: a key of `PAPERS`.
        architecture: of the backbone.
        epochs: of ImageNet-1k that it was pretrained for.
        recipe: the recipe with the same model, and but for the epochs the same training.
        source_url: of the checkpoint.
        key_format: the code base whose names its tensors have, one of `ssl_hub.conversion.sources.SOURCES`.
        license: of the checkpoint, as an identifier of the Hub.
        released_at: the address of those who trained it, with what they say of the license.
        results: as they published them.
        limits: what to know besides what holds for all models.
    """

    name: str
    algorithm: str
    architecture: str
    epochs: int
    recipe: str
    source_url: str
    key_format: str
    license: str
    released_at: str
    results: tuple[Result, ...]
    limits: str = ""

    @property
    def repo_id(self) -> str:
        return f"{NAMESPACE}/{self.name}"

    @property
    def card(self) -> str:
        """The path of its card in the source repository."""
        return f"model_cards/{self.name}.md"

    @property
    def source_file(self) -> str:
        return urlsplit(self.source_url).path.rpartition("/")[2]

    @property
    def paper(self) -> Paper:
        return PAPERS[self.algorithm]


PAPERS = {
    "Barlow Twins": Paper(
        "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
        "Zbontar, Jure and Jing, Li and Misra, Ishan and LeCun, Yann and Deny, Stéphane",
        "2103.03230",
    ),
    "BYOL": Paper(
        "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
        "Grill, Jean-Bastien and Strub, Florian and Altché, Florent and Tallec, Corentin and Richemond, Pierre H. and "
        "Buchatskaya, Elena and Doersch, Carl and Avila Pires, Bernardo and Guo, Zhaohan Daniel and Gheshlaghi Azar, "
        "Mohammad and Piot, Bilal and Kavukcuoglu, Koray and Munos, Rémi and Valko, Michal",
        "2006.07733",
    ),
    "CAE": Paper(
        "Context Autoencoder for Self-Supervised Representation Learning",
        "Chen, Xiaokang and Ding, Mingyu and Wang, Xiaodi and Xin, Ying and Mo, Shentong and Wang, Yunhao and "
        "Han, Shumin and Luo, Ping and Zeng, Gang and Wang, Jingdong",
        "2202.03026",
    ),
    "DeepCluster": Paper(
        "Deep Clustering for Unsupervised Learning of Visual Features",
        "Caron, Mathilde and Bojanowski, Piotr and Joulin, Armand and Douze, Matthijs",
        "1807.05520",
    ),
    "DenseCL": Paper(
        "Dense Contrastive Learning for Self-Supervised Visual Pre-Training",
        "Wang, Xinlong and Zhang, Rufeng and Shen, Chunhua and Kong, Tao and Li, Lei",
        "2011.09157",
    ),
    "MAE": Paper(
        "Masked Autoencoders Are Scalable Vision Learners",
        "He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Dollár, Piotr and Girshick, Ross",
        "2111.06377",
    ),
    "MaskFeat": Paper(
        "Masked Feature Prediction for Self-Supervised Visual Pre-Training",
        "Wei, Chen and Fan, Haoqi and Xie, Saining and Wu, Chao-Yuan and Yuille, Alan and Feichtenhofer, Christoph",
        "2112.09133",
    ),
    "MoCo v1": Paper(
        "Momentum Contrast for Unsupervised Visual Representation Learning",
        "He, Kaiming and Fan, Haoqi and Wu, Yuxin and Xie, Saining and Girshick, Ross",
        "1911.05722",
    ),
    "MoCo v2": Paper(
        "Improved Baselines with Momentum Contrastive Learning",
        "Chen, Xinlei and Fan, Haoqi and Girshick, Ross and He, Kaiming",
        "2003.04297",
    ),
    "MoCo v3": Paper(
        "An Empirical Study of Training Self-Supervised Vision Transformers",
        "Chen, Xinlei and Xie, Saining and He, Kaiming",
        "2104.02057",
    ),
    "NPID": Paper(
        "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
        "Wu, Zhirong and Xiong, Yuanjun and Yu, Stella X. and Lin, Dahua",
        "1805.01978",
    ),
    "ODC": Paper(
        "Online Deep Clustering for Unsupervised Representation Learning",
        "Zhan, Xiaohang and Xie, Jiahao and Liu, Ziwei and Ong, Yew Soon and Loy, Chen Change",
        "2006.10645",
    ),
    "RelativeLoc": Paper(
        "Unsupervised Visual Representation Learning by Context Prediction",
        "Doersch, Carl and Gupta, Abhinav and Efros, Alexei A.",
        "1505.05192",
    ),
    "RotationPred": Paper(
        "Unsupervised Representation Learning by Predicting Image Rotations",
        "Gidaris, Spyros and Singh, Praveer and Komodakis, Nikos",
        "1803.07728",
    ),
    "SimCLR": Paper(
        "A Simple Framework for Contrastive Learning of Visual Representations",
        "Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey",
        "2002.05709",
    ),
    "SimMIM": Paper(
        "SimMIM: A Simple Framework for Masked Image Modeling",
        "Xie, Zhenda and Zhang, Zheng and Cao, Yue and Lin, Yutong and Bao, Jianmin and Yao, Zhuliang and Dai, Qi and "
        "Hu, Han",
        "2111.09886",
    ),
    "SimSiam": Paper(
        "Exploring Simple Siamese Representation Learning",
        "Chen, Xinlei and He, Kaiming",
        "2011.10566",
    ),
    "SwAV": Paper(
        "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
        "Caron, Mathilde and Misra, Ishan and Mairal, Julien and Goyal, Priya and Bojanowski, Piotr and Joulin, Armand",
        "2006.09882",
    ),
}

_FINE_TUNE = "Its features are made to be fine-tuned: frozen, they tell classes apart less well."
_DECODER = f"{_FINE_TUNE} The decoder is there too: `ssl-hub reconstruct` draws what it fills in."
_THIRD_STAGE = (
    "The features of the third stage transfer better than those of the last: `hidden_states[3]` with "
    "`output_hidden_states=True`."
)
_NO_MEMORY = "What it kept of every image of ImageNet is left out: to continue pretraining, the memory starts anew."
_FACEBOOK_FILES = "https://dl.fbaipublicfiles.com"


def _mmselfsup(
    name: str,
    algorithm: str,
    architecture: str,
    epochs: int,
    recipe: str,
    path: str,
    *results: Result,
    limits: str = "",
) -> PublishedModel:
    """A model that MMSelfSup trained and released, at `path` of its storage."""
    return PublishedModel(
        name,
        algorithm,
        architecture,
        epochs,
        recipe,
        f"https://download.openmmlab.com/mmselfsup/{path}",
        "mmselfsup",
        "apache-2.0",
        "https://github.com/open-mmlab/mmselfsup",
        results,
        limits,
    )


def _linear(top1: float, recipe: str) -> Result:
    return Result("linear classifier", top1, recipe)


def _fine_tuned(top1: float, recipe: str, at: str = "") -> Result:
    return Result(f"fine-tuned{at}", top1, recipe)


def _knn(top1: float) -> Result:
    return Result("kNN, k = 20", top1)


def _listed(*models: PublishedModel) -> dict[str, PublishedModel]:
    return {model.name: model for model in models}


_MODELS = _listed(
    _mmselfsup(
        "barlowtwins-resnet50",
        "Barlow Twins",
        "ResNet-50",
        300,
        "barlowtwins-resnet50-300e",
        "1.x/barlowtwins/barlowtwins_resnet50_8xb256-coslr-300e_in1k/barlowtwins_resnet50_8xb256-coslr-300e_in1k_20220825-57307488.pth",
        _linear(71.8, "linear-resnet50-cosine-100e"),
        _knn(63.8),
    ),
    PublishedModel(
        "barlowtwins-resnet50-1000e",
        "Barlow Twins",
        "ResNet-50",
        1000,
        "barlowtwins-resnet50-1000e",
        f"{_FACEBOOK_FILES}/barlowtwins/ep1000_bs2048_lrw0.2_lrb0.0048_lambd0.0051/checkpoint.pth",
        "authors",
        "mit",
        "https://github.com/facebookresearch/barlowtwins",
        (_linear(73.5, "linear-resnet50-cosine-100e"),),
        "The paper reports 73.2; 73.5 is what the authors say of this file.",
    ),
    _mmselfsup(
        "byol-resnet50",
        "BYOL",
        "ResNet-50",
        200,
        "byol-resnet50-200e",
        "1.x/byol/byol_resnet50_16xb256-coslr-200e_in1k/byol_resnet50_16xb256-coslr-200e_in1k_20220825-de817331.pth",
        _linear(71.8, "linear-resnet50-lars-90e"),
    ),
    _mmselfsup(
        "cae-vit-base",
        "CAE",
        "ViT-B/16",
        300,
        "cae-vit-base-16xb128-300e",
        "1.x/cae/cae_vit-base-p16_16xb128-fp16-coslr-300e_in1k/cae_vit-base-p16_16xb128-fp16-coslr-300e_in1k_20220825-404a1929.pth",
        _fine_tuned(83.3, "finetune-vit-base-cae-100e"),
        limits=f"{_FINE_TUNE} The tokenizer of its targets, DALL-E's encoder, is a model of its own and not in this one.",
    ),
    _mmselfsup(
        "deepcluster-sobel-resnet50",
        "DeepCluster",
        "ResNet-50",
        200,
        "deepcluster-sobel-resnet50-200e",
        "deepcluster/deepcluster-sobel_resnet50_8xb64-steplr-200e_in1k-bb8681e2.pth",
        Result("linear classifier, by MMSelfSup 0.x", 46.92),
        limits=_NO_MEMORY,
    ),
    _mmselfsup(
        "densecl-resnet50",
        "DenseCL",
        "ResNet-50",
        200,
        "densecl-resnet50-200e",
        "1.x/densecl/densecl_resnet50_8xb32-coslr-200e_in1k/densecl_resnet50_8xb32-coslr-200e_in1k_20220825-3078723b.pth",
        _linear(63.5, "linear-resnet50-sgd-100e"),
        _knn(48.5),
        limits="It is made for detection and segmentation: pooled, its features tell classes apart less well.",
    ),
    _mmselfsup(
        "mae-vit-base",
        "MAE",
        "ViT-B/16",
        1600,
        "mae-vit-base-1600e",
        "1.x/mae/mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k/mae_vit-base-p16_8xb512-fp16-coslr-1600e_in1k_20220825-f7569ca2.pth",
        _linear(67.1, "linear-vit-lars-90e"),
        _fine_tuned(83.5, "finetune-vit-base-100e"),
        limits=_DECODER,
    ),
    _mmselfsup(
        "mae-vit-large",
        "MAE",
        "ViT-L/16",
        1600,
        "mae-vit-large-1600e",
        "1.x/mae/mae_vit-large-p16_8xb512-fp16-coslr-1600e_in1k/mae_vit-large-p16_8xb512-fp16-coslr-1600e_in1k_20220825-cc7e98c9.pth",
        _linear(75.5, "linear-vit-lars-90e"),
        _fine_tuned(85.7, "finetune-vit-large-50e"),
        limits=_DECODER,
    ),
    _mmselfsup(
        "mae-vit-huge",
        "MAE",
        "ViT-H/14",
        1600,
        "mae-vit-huge-1600e",
        "1.x/mae/mae_vit-huge-p16_8xb512-fp16-coslr-1600e_in1k/mae_vit-huge-p16_8xb512-fp16-coslr-1600e_in1k_20220916-ff848775.pth",
        _fine_tuned(86.9, "finetune-vit-huge-50e"),
        _fine_tuned(87.3, "finetune-vit-huge-448-50e", " at 448 pixels"),
        limits=f"{_DECODER} The file's name says p16; the patches are of 14 pixels.",
    ),
    _mmselfsup(
        "maskfeat-vit-base",
        "MaskFeat",
        "ViT-B/16",
        300,
        "maskfeat-vit-base-300e",
        "1.x/maskfeat/maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k/maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k_20221101-6dfc8bf3.pth",
        _fine_tuned(83.4, "finetune-vit-base-maskfeat-100e"),
        limits=_FINE_TUNE,
    ),
    PublishedModel(
        "mocov1-resnet50",
        "MoCo v1",
        "ResNet-50",
        200,
        "mocov1-resnet50-200e",
        f"{_FACEBOOK_FILES}/moco/moco_checkpoints/moco_v1_200ep/moco_v1_200ep_pretrain.pth.tar",
        "authors",
        "cc-by-nc-4.0",
        "https://github.com/facebookresearch/moco",
        (_linear(60.6, "linear-resnet50-sgd-100e"),),
    ),
    _mmselfsup(
        "mocov2-resnet50",
        "MoCo v2",
        "ResNet-50",
        200,
        "mocov2-resnet50-200e",
        "1.x/mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k/mocov2_resnet50_8xb32-coslr-200e_in1k_20220825-b6d23c86.pth",
        _linear(67.5, "linear-resnet50-sgd-100e"),
        _knn(55.7),
    ),
    PublishedModel(
        "mocov2-resnet50-800e",
        "MoCo v2",
        "ResNet-50",
        800,
        "mocov2-resnet50-200e",
        f"{_FACEBOOK_FILES}/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
        "authors",
        "cc-by-nc-4.0",
        "https://github.com/facebookresearch/moco",
        (_linear(71.1, "linear-resnet50-sgd-100e"),),
    ),
    _mmselfsup(
        "mocov3-resnet50",
        "MoCo v3",
        "ResNet-50",
        800,
        "mocov3-resnet50-800e",
        "1.x/mocov3/mocov3_resnet50_8xb512-amp-coslr-800e_in1k/mocov3_resnet50_8xb512-amp-coslr-800e_in1k_20220927-e043f51a.pth",
        _linear(74.4, "linear-resnet50-mocov3-90e"),
    ),
    _mmselfsup(
        "mocov3-vit-small",
        "MoCo v3",
        "ViT-S/16",
        300,
        "mocov3-vit-small-300e",
        "1.x/mocov3/mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k/mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k-224_20220826-08bc52f7.pth",
        _linear(73.6, "linear-vit-sgd-90e"),
        limits="This ViT-S has 12 attention heads, where most others have 6.",
    ),
    _mmselfsup(
        "mocov3-vit-base",
        "MoCo v3",
        "ViT-B/16",
        300,
        "mocov3-vit-base-300e",
        "1.x/mocov3/mocov3_vit-base-p16_16xb256-amp-coslr-300e_in1k/mocov3_vit-base-p16_16xb256-amp-coslr-300e_in1k-224_20220826-25213343.pth",
        _linear(76.9, "linear-vit-sgd-90e"),
        _fine_tuned(83.0, "finetune-vit-base-mocov3-150e"),
    ),
    _mmselfsup(
        "mocov3-vit-large",
        "MoCo v3",
        "ViT-L/16",
        300,
        "mocov3-vit-large-300e",
        "1.x/mocov3/mocov3_vit-large-p16_64xb64-amp-coslr-300e_in1k/mocov3_vit-large-p16_64xb64-amp-coslr-300e_in1k-224_20220829-9b88a442.pth",
        _fine_tuned(83.7, "finetune-vit-large-mocov3-100e"),
    ),
    _mmselfsup(
        "npid-resnet50",
        "NPID",
        "ResNet-50",
        200,
        "npid-resnet50-200e",
        "1.x/npid/npid_resnet50_8xb32-steplr-200e_in1k/npid_resnet50_8xb32-steplr-200e_in1k_20220825-a67c5440.pth",
        _linear(58.3, "linear-resnet50-sgd-100e"),
        _knn(44.0),
        limits=_NO_MEMORY,
    ),
    _mmselfsup(
        "odc-resnet50",
        "ODC",
        "ResNet-50",
        440,
        "odc-resnet50-440e",
        "odc/odc_resnet50_8xb64-steplr-440e_in1k_20220225-a755d9c0.pth",
        Result("linear classifier, by MMSelfSup 0.x", 53.42),
        _knn(39.1),
        limits=_NO_MEMORY,
    ),
    _mmselfsup(
        "relativeloc-resnet50",
        "RelativeLoc",
        "ResNet-50",
        70,
        "relativeloc-resnet50-70e",
        "1.x/relative_loc/relative-loc_resnet50_8xb64-steplr-70e_in1k/relative-loc_resnet50_8xb64-steplr-70e_in1k_20220825-daae1b41.pth",
        _linear(40.4, "linear-resnet50-sgd-100e"),
        _knn(15.0),
        limits=f"It was trained on patches of 64 pixels. {_THIRD_STAGE}",
    ),
    _mmselfsup(
        "rotationpred-resnet50",
        "RotationPred",
        "ResNet-50",
        70,
        "rotationpred-resnet50-70e",
        "1.x/rotation_pred/rotation-pred_resnet50_8xb16-steplr-70e_in1k/rotation-pred_resnet50_8xb16-steplr-70e_in1k_20220825-a8bf5f69.pth",
        _linear(47.0, "linear-resnet50-sgd-100e"),
        _knn(11.9),
        limits=_THIRD_STAGE,
    ),
    _mmselfsup(
        "simclr-resnet50",
        "SimCLR",
        "ResNet-50",
        800,
        "simclr-resnet50-800e",
        "1.x/simclr/simclr_resnet50_16xb256-coslr-800e_in1k/simclr_resnet50_16xb256-coslr-800e_in1k_20220825-85fcc4de.pth",
        _linear(69.2, "linear-resnet50-lars-90e"),
    ),
    _mmselfsup(
        "simmim-swin-base",
        "SimMIM",
        "Swin-B",
        800,
        "simmim-swin-base-800e",
        "1.x/simmim/simmim_swin-base_16xb128-amp-coslr-800e_in1k-192/simmim_swin-base_16xb128-amp-coslr-800e_in1k-192_20220916-a0e931ac.pth",
        _fine_tuned(83.7, "finetune-swin-base-224-100e", " at 224 pixels"),
        limits=_DECODER,
    ),
    _mmselfsup(
        "simmim-swin-large",
        "SimMIM",
        "Swin-L",
        800,
        "simmim-swin-large-800e",
        "1.x/simmim/simmim_swin-large_16xb128-amp-coslr-800e_in1k-192/simmim_swin-large_16xb128-amp-coslr-800e_in1k-192_20220916-4ad216d3.pth",
        _fine_tuned(84.8, "finetune-swin-large-224-100e", " at 224 pixels"),
        limits=_DECODER,
    ),
    _mmselfsup(
        "simsiam-resnet50",
        "SimSiam",
        "ResNet-50",
        200,
        "simsiam-resnet50-200e",
        "1.x/simsiam/simsiam_resnet50_8xb32-coslr-200e_in1k/simsiam_resnet50_8xb32-coslr-200e_in1k_20220825-efe91299.pth",
        _linear(69.8, "linear-resnet50-lars-90e"),
        _knn(60.4),
    ),
    _mmselfsup(
        "swav-resnet50",
        "SwAV",
        "ResNet-50",
        200,
        "swav-resnet50-200e",
        "1.x/swav/swav_resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96/swav_resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96_20220825-5b3fc7fc.pth",
        _linear(70.5, "linear-resnet50-cosine-100e"),
        _knn(60.6),
        limits="The queue of embeddings is left out: to continue pretraining, it starts anew.",
    ),
)


def list_models() -> list[PublishedModel]:
    """The models that are published under `ssl-hub/` on the Hub, or will be, by name."""
    return list(_MODELS.values())


def model_info(name: str) -> PublishedModel:
    """The published model of a name, such as `"mae-vit-base"`.

    Raises:
        ValueError: there is none.
    """
    if name not in _MODELS:
        near = get_close_matches(name, _MODELS, n=5, cutoff=0.5)
        raise ValueError(
            f"there is no published model {name!r}; "
            + (f"near it: {', '.join(near)}" if near else f"the models are {', '.join(_MODELS)}")
        )
    return _MODELS[name]
