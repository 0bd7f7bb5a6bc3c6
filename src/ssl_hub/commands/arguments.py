"""The arguments that commands share which compute features of a dataset."""

from dataclasses import dataclass, field

import datasets

from ..data.datasets import load_image_dataset
from ..field_types import NonNegativeInt, check_fields


@dataclass(kw_only=True)
class FeatureArguments:
    model_name_or_path: str = field(
        metadata={"help": "A folder or Hub id of one of our models, or of any of transformers or timm."}
    )
    dataset_name: str = field(metadata={"help": "A folder of images, 'digits', or any dataset that pretraining takes."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    image_column_name: str | None = field(default=None, metadata={"help": "Found by its type when not given."})
    label_column_name: str | None = field(default=None, metadata={"help": "Found by its type when not given."})
    pooling: str | None = field(
        default=None,
        metadata={"help": "Of a ViT: the class token or the mean of the patches.", "choices": ["cls", "mean"]},
    )
    dataloader_num_workers: NonNegativeInt = field(
        default=0, metadata={"help": "Processes that decode, for each that embeds."}
    )

    def __post_init__(self):
        check_fields(self, "--")

    def load_split(self, split: str, **options) -> datasets.Dataset:
        """Loads a split of the dataset.

        Args:
            options: of `load_image_dataset`, besides.
        """
        return load_image_dataset(
            self.dataset_name,
            split,
            config_name=self.dataset_config_name,
            image_column=self.image_column_name,
            label_column=self.label_column_name,
            **options,
        )
