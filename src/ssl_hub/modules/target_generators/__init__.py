"""Target generators: what a masked-image model predicts of each patch, from the image itself or from a frozen network.

They are no modules: a network that makes targets is neither trained, nor saved with the model, nor seen by
DistributedDataParallel. It is loaded when a run begins, or when a target is first asked for.
"""

from difflib import get_close_matches

from ...field_types import check_value
from .base import TargetGenerator
from .clip import CLIPTargets
from .dalle import DALLETargets
from .features import FeatureTargets
from .hog import HOGTargets
from .pixels import LowFrequencyTargets, NormalizedPixelTargets, PixelTargets
from .vqkd import VQKDTargets

TARGET_GENERATORS: dict[str, type[TargetGenerator]] = {
    "pixels": PixelTargets,
    "normalized_pixels": NormalizedPixelTargets,
    "low_frequency_pixels": LowFrequencyTargets,
    "hog": HOGTargets,
    "dalle": DALLETargets,
    "vqkd": VQKDTargets,
    "clip": CLIPTargets,
    "features": FeatureTargets,
}


def build_target_generator(config, patch_size: int) -> TargetGenerator:
    """Builds the target generator that a configuration names.

    Args:
        config: a `MaskedTargetConfig`.
        patch_size: side of the model's patches, in pixels.

    Raises:
        ValueError: there is no such generator, it has no such option, or it does not fit the patches.
    """
    if config.target_type not in TARGET_GENERATORS:
        near = get_close_matches(config.target_type, TARGET_GENERATORS, n=1)
        raise ValueError(
            f"target_type must be one of {', '.join(TARGET_GENERATORS)}; got {config.target_type!r}"
            + (f", which is near {near[0]!r}" if near else "")
        )
    generator_class = TARGET_GENERATORS[config.target_type]
    unknown = sorted(set(config.target_options) - set(generator_class.options))
    if unknown:
        raise ValueError(
            f"target_options of {config.target_type!r} may be {', '.join(generator_class.options) or 'none'}; got "
            f"{', '.join(unknown)}"
        )
    for name, value in config.target_options.items():
        check_value(f"target_options.{name}", value, generator_class.options[name])
    return generator_class(config, patch_size)
