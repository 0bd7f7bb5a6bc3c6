"""The fields by which a configuration names its target generator."""

from ..configuration_utils import MaskedPatchConfig


class MaskedTargetConfig(MaskedPatchConfig):
    r"""Base of the configurations of algorithms that predict of masked patches what a target generator makes of them.

    Args:
        target_type (`str`, *optional*, defaults to `"pixels"`):
            What is predicted: `"pixels"`, `"normalized_pixels"`, `"low_frequency_pixels"`, `"hog"`, `"dalle"` or
            `"vqkd"` (tokens), `"clip"` (features) or `"features"` of any other vision model; see `modules/target_generators`.
        target_name_or_path (`str`, *optional*):
            Folder or Hub id of the network that makes the targets, for the types that have one.
        target_random (`bool`, *optional*, defaults to `False`):
            Whether that network is drawn at random instead, for tests.
        target_options (`dict`, *optional*):
            Settings of the target generator, such as `{"num_bins": 9}` for `"hog"`.
    """

    target_type: str = "pixels"
    target_name_or_path: str | None = None
    target_random: bool = False
    target_options: dict | None = None

    def __post_init__(self, **kwargs):
        self.target_options = dict(self.target_options or {})
        super().__post_init__(**kwargs)
        from .target_generators import build_target_generator  # not above: configurations are light

        build_target_generator(self, self.patch_size)  # raises where it does not fit
