"""ssl_hub: self-supervised vision models the Hugging Face way.

`import ssl_hub` makes every algorithm known to the Auto classes of transformers and is nearly free: a name below is
imported when it is first used, and the registration waits until transformers imports its Auto classes. `__init__.pyi`
tells the names to editors and type checkers.
"""

import importlib

from ._registration import register_algorithms
from .registry import ALGORITHMS, class_modules

__version__ = "0.1.0"

_PUBLIC = {
    "SSLConfig": "configuration_utils",
    "JointEmbeddingConfig": "configuration_utils",
    "ClusteringConfig": "configuration_utils",
    "MaskedPatchConfig": "configuration_utils",
    "SSLModel": "modeling_utils",
    "JointEmbeddingModel": "modeling_joint_embedding",
    "ClusteringModel": "modeling_clustering",
    "MaskedPatchModel": "modeling_masked_image",
    "SSLForImageClassification": "modeling_utils",
    "SSLLossOutput": "modeling_outputs",
    "ReconstructionOutput": "modeling_outputs",
    "MaskedTargetConfig": "modules.target_config",
    "MaskedTargetModel": "modeling_masked_image",
    "PatchPredictionOutput": "modeling_outputs",
    "ProjectionOutput": "modeling_outputs",
    "ClusterOutput": "modeling_outputs",
    "InstanceOutput": "modeling_outputs",
    "RelativeLocationOutput": "modeling_outputs",
    "RotationOutput": "modeling_outputs",
    "Progress": "lifecycle",
    "ParameterRule": "lifecycle",
    "FeatureTable": "lifecycle",
    "register_algorithm": "models.auto",
    "load_image_dataset": "data.datasets",
    "load_backbone": "model_loading",
    "SSLTrainer": "training.trainer",
    "EpochViews": "training.hf_trainer",
    "ViewCollator": "training.hf_trainer",
    "SSLCallback": "training.hf_trainer",
    "list_models": "hub.models",
    "pretrain": "training.pretraining",
}
for _model_type in ALGORITHMS:
    _PUBLIC |= {name: f"models.{module}" for name, module in class_modules(_model_type).items()}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ssl_hub' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)


register_algorithms()
