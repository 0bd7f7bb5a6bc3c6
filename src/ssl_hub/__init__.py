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
    "SSLModel": "modeling_utils",
    "SSLForImageClassification": "modeling_utils",
    "SSLLossOutput": "modeling_outputs",
    "ReconstructionOutput": "modeling_outputs",
    "MAEConfig": "models.mae.configuration_mae",
    "MAEModel": "models.mae.modeling_mae",
    "MAEForImageClassification": "models.mae.modeling_mae",
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


_AUTO_CONFIG_MODULE = "transformers.models.auto.configuration_auto"


def _register_configs():
    importlib.import_module(".models.auto", __name__).register_configs()


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Registers our configurations right after transformers has imported its `AutoConfig`.

    Importing the Auto classes takes seconds, which someone who only imports ssl_hub should not pay.
    """

    def find_spec(self, fullname, path, target=None):
        if fullname != _AUTO_CONFIG_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        execute = spec.loader.exec_module

        def execute_and_register(module):
            execute(module)
            _register_configs()

        spec.loader.exec_module = execute_and_register
        return spec


if _AUTO_CONFIG_MODULE in sys.modules:
    _register_configs()
else:
    sys.meta_path.insert(0, _RegisterAfterImport())
