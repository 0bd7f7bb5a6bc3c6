"""The one table of algorithms. Public names, Auto registration and tests by algorithm derive from it.

It lies beside `models/`, which imports transformers, so that `import ssl_hub` can read the table for free.
"""

# model_type, which is the name of its folder too: how the names of its classes begin
ALGORITHMS = {
    "barlowtwins": "BarlowTwins",
    "beitv1": "BEiTV1",
    "beitv2": "BEiTV2",
    "byol": "BYOL",
    "cae": "CAE",
    "deepcluster": "DeepCluster",
    "densecl": "DenseCL",
    "mae": "MAE",
    "maskfeat": "MaskFeat",
    "moco": "MoCo",
    "mocov3": "MoCoV3",
    "npid": "NPID",
    "odc": "ODC",
    "relativeloc": "RelativeLoc",
    "rotationpred": "RotationPred",
    "simclr": "SimCLR",
    "simmim": "SimMIM",
    "simsiam": "SimSiam",
    "swav": "SwAV",
}


def class_modules(model_type: str) -> dict[str, str]:
    """The names of an algorithm's configuration, model and image classifier, each with its module in `models`."""
    name = ALGORITHMS[model_type]
    modeling = f"{model_type}.modeling_{model_type}"
    return {
        f"{name}Config": f"{model_type}.configuration_{model_type}",
        f"{name}Model": modeling,
        f"{name}ForImageClassification": modeling,
    }
