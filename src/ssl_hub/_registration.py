"""Registers the algorithms with transformers' Auto classes once these are imported.

That import takes seconds, which someone who only imports ssl_hub should not pay.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from pathlib import Path

_AUTO_MODULES = ("transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto")
# What our configurations import. transformers imports its Auto classes in the midst of importing these, and hides it when
# that fails.
_CONFIG_MODULES = tuple(
    f"transformers.models.{name}.configuration_{name}" for name in ("beit", "resnet", "swin", "vit")
)


def register_algorithms() -> None:
    """Registers now if transformers' Auto classes are imported already, else as soon as they are.

    Raises:
        ImportError: transformers has no Auto classes where they are looked for, so that no model could be loaded.
    """
    if _AUTO_MODULES[0] in sys.modules:
        _register_configs()
        return
    for name in _AUTO_MODULES:
        if not _exists(name):
            raise ImportError(
                f"ssl_hub registers its models when {name} is imported, and the installed transformers has no such "
                "module: install a version that ssl_hub supports (pip install --upgrade ssl_hub transformers)"
            )
    sys.meta_path.insert(0, _RegisterAfterImport())


def _exists(name: str) -> bool:
    """Whether there is such a module, without importing the packages that it lies in."""
    top, *rest = name.split(".")
    package = importlib.util.find_spec(top)
    return package is not None and any(
        Path(folder, *rest).with_suffix(".py").is_file() for folder in package.submodule_search_locations or ()
    )


def _register_configs() -> None:
    importlib.import_module("ssl_hub.models.auto").register_configs()
    importlib.import_module("ssl_hub.configuration_utils").SSLConfig.push_model = staticmethod(_push_model)


def _push_model(*args, **kwargs):
    return importlib.import_module("ssl_hub.hub.publishing").push_model(*args, **kwargs)


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Our configurations need all these modules whole, and any of them may be the one that imports another."""

    def __init__(self):
        self.waiting_for = {*_AUTO_MODULES, *_CONFIG_MODULES}
        self.loading = set()

    def find_spec(self, fullname, path, target=None):
        if fullname not in self.waiting_for:
            return None
        self.waiting_for.remove(fullname)
        self.loading.add(fullname)
        spec = importlib.util.find_spec(fullname)
        execute = spec.loader.exec_module

        def execute_and_register(module):
            try:
                execute(module)
            finally:
                self.loading.remove(fullname)
            if not self.loading and _AUTO_MODULES[0] in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                _register_configs()

        spec.loader.exec_module = execute_and_register
        return spec
