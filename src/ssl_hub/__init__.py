"""ssl_hub: self-supervised vision models the Hugging Face way.

`import ssl_hub` makes every algorithm known to the Auto classes of transformers and is nearly free: a name below is
imported when it is first used, and the registration waits until transformers imports its Auto classes.
"""

import importlib
import importlib.abc
import importlib.util
import sys

__version__ = "0.1.0"

_PUBLIC = {
    "SSLConfig": "configuration_utils",
    "JointEmbeddingConfig": "configuration_utils",
    "SSLModel": "modeling_utils",
    "JointEmbeddingModel": "modeling_utils",
    "SSLForImageClassification": "modeling_utils",
    "SSLLossOutput": "modeling_outputs",
    "ReconstructionOutput": "modeling_outputs",
    "ProjectionOutput": "modeling_outputs",
    "MAEConfig": "models.mae.configuration_mae",
    "MAEModel": "models.mae.modeling_mae",
    "MAEForImageClassification": "models.mae.modeling_mae",
    "SimCLRConfig": "models.simclr.configuration_simclr",
    "SimCLRModel": "models.simclr.modeling_simclr",
    "SimCLRForImageClassification": "models.simclr.modeling_simclr",
    "BarlowTwinsConfig": "models.barlowtwins.configuration_barlowtwins",
    "BarlowTwinsModel": "models.barlowtwins.modeling_barlowtwins",
    "BarlowTwinsForImageClassification": "models.barlowtwins.modeling_barlowtwins",
    "BYOLConfig": "models.byol.configuration_byol",
    "BYOLModel": "models.byol.modeling_byol",
    "BYOLForImageClassification": "models.byol.modeling_byol",
    "DenseCLConfig": "models.densecl.configuration_densecl",
    "DenseCLModel": "models.densecl.modeling_densecl",
    "DenseCLForImageClassification": "models.densecl.modeling_densecl",
    "MoCoConfig": "models.moco.configuration_moco",
    "MoCoModel": "models.moco.modeling_moco",
    "MoCoForImageClassification": "models.moco.modeling_moco",
    "MoCoV3Config": "models.mocov3.configuration_mocov3",
    "MoCoV3Model": "models.mocov3.modeling_mocov3",
    "MoCoV3ForImageClassification": "models.mocov3.modeling_mocov3",
    "SimSiamConfig": "models.simsiam.configuration_simsiam",
    "SimSiamModel": "models.simsiam.modeling_simsiam",
    "SimSiamForImageClassification": "models.simsiam.modeling_simsiam",
    "SwAVConfig": "models.swav.configuration_swav",
    "SwAVModel": "models.swav.modeling_swav",
    "SwAVForImageClassification": "models.swav.modeling_swav",
    "register_algorithm": "models.auto",
    "load_image_dataset": "data.datasets",
    "SSLTrainer": "training.trainer",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ssl_hub' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)


_AUTO_MODULES = ("transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto")


def _register_configs():
    importlib.import_module(".models.auto", __name__).register_configs()
    importlib.import_module(".configuration_utils", __name__).SSLConfig.push_model = staticmethod(_push_model)


def _push_model(*args, **kwargs):
    return importlib.import_module(".hub.publishing", __name__).push_model(*args, **kwargs)


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Registers our configurations once transformers has imported its Auto classes.

    That import takes seconds, which someone who only imports ssl_hub should not pay. Our configurations need both
    modules whole, and either may be the one that imports the other.
    """

    def __init__(self):
        self.waiting_for = set(_AUTO_MODULES)
        self.loading = set()

    def find_spec(self, fullname, path, target=None):
        if fullname not in self.waiting_for:
            return None
        self.waiting_for.remove(fullname)
        self.loading.add(fullname)
        spec = importlib.util.find_spec(fullname)
        execute = spec.loader.exec_module

        def execute_and_register(module):
            execute(module)
            self.loading.remove(fullname)
            if not self.loading and self in sys.meta_path:
                sys.meta_path.remove(self)
                _register_configs()

        spec.loader.exec_module = execute_and_register
        return spec


if _AUTO_MODULES[0] in sys.modules:
    _register_configs()
else:
    sys.meta_path.insert(0, _RegisterAfterImport())
