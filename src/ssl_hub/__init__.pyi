"""The public names, for editors and type checkers; `__init__.py` imports them when they are first used."""

from .configuration_utils import ClusteringConfig as ClusteringConfig
from .configuration_utils import JointEmbeddingConfig as JointEmbeddingConfig
from .configuration_utils import MaskedPatchConfig as MaskedPatchConfig
from .configuration_utils import SSLConfig as SSLConfig
from .data.datasets import load_image_dataset as load_image_dataset
from .hub.models import list_models as list_models
from .lifecycle import FeatureTable as FeatureTable
from .lifecycle import ParameterRule as ParameterRule
from .lifecycle import Progress as Progress
from .model_loading import load_backbone as load_backbone
from .modeling_clustering import ClusteringModel as ClusteringModel
from .modeling_joint_embedding import JointEmbeddingModel as JointEmbeddingModel
from .modeling_masked_image import MaskedPatchModel as MaskedPatchModel
from .modeling_masked_image import MaskedTargetModel as MaskedTargetModel
from .modeling_outputs import ClusterOutput as ClusterOutput
from .modeling_outputs import InstanceOutput as InstanceOutput
from .modeling_outputs import PatchPredictionOutput as PatchPredictionOutput
from .modeling_outputs import ProjectionOutput as ProjectionOutput
from .modeling_outputs import ReconstructionOutput as ReconstructionOutput
from .modeling_outputs import RelativeLocationOutput as RelativeLocationOutput
from .modeling_outputs import RotationOutput as RotationOutput
from .modeling_outputs import SSLLossOutput as SSLLossOutput
from .modeling_utils import SSLForImageClassification as SSLForImageClassification
from .modeling_utils import SSLModel as SSLModel
from .models.auto import register_algorithm as register_algorithm
from .models.barlowtwins.configuration_barlowtwins import BarlowTwinsConfig as BarlowTwinsConfig
from .models.barlowtwins.modeling_barlowtwins import (
    BarlowTwinsForImageClassification as BarlowTwinsForImageClassification,
)
from .models.barlowtwins.modeling_barlowtwins import BarlowTwinsModel as BarlowTwinsModel
from .models.beitv1.configuration_beitv1 import BEiTV1Config as BEiTV1Config
from .models.beitv1.modeling_beitv1 import BEiTV1ForImageClassification as BEiTV1ForImageClassification
from .models.beitv1.modeling_beitv1 import BEiTV1Model as BEiTV1Model
from .models.beitv2.configuration_beitv2 import BEiTV2Config as BEiTV2Config
from .models.beitv2.modeling_beitv2 import BEiTV2ForImageClassification as BEiTV2ForImageClassification
from .models.beitv2.modeling_beitv2 import BEiTV2Model as BEiTV2Model
from .models.byol.configuration_byol import BYOLConfig as BYOLConfig
from .models.byol.modeling_byol import BYOLForImageClassification as BYOLForImageClassification
from .models.byol.modeling_byol import BYOLModel as BYOLModel
from .models.cae.configuration_cae import CAEConfig as CAEConfig
from .models.cae.modeling_cae import CAEForImageClassification as CAEForImageClassification
from .models.cae.modeling_cae import CAEModel as CAEModel
from .models.deepcluster.configuration_deepcluster import DeepClusterConfig as DeepClusterConfig
from .models.deepcluster.modeling_deepcluster import (
    DeepClusterForImageClassification as DeepClusterForImageClassification,
)
from .models.deepcluster.modeling_deepcluster import DeepClusterModel as DeepClusterModel
from .models.densecl.configuration_densecl import DenseCLConfig as DenseCLConfig
from .models.densecl.modeling_densecl import DenseCLForImageClassification as DenseCLForImageClassification
from .models.densecl.modeling_densecl import DenseCLModel as DenseCLModel
from .models.mae.configuration_mae import MAEConfig as MAEConfig
from .models.mae.modeling_mae import MAEForImageClassification as MAEForImageClassification
from .models.mae.modeling_mae import MAEModel as MAEModel
from .models.maskfeat.configuration_maskfeat import MaskFeatConfig as MaskFeatConfig
from .models.maskfeat.modeling_maskfeat import MaskFeatForImageClassification as MaskFeatForImageClassification
from .models.maskfeat.modeling_maskfeat import MaskFeatModel as MaskFeatModel
from .models.moco.configuration_moco import MoCoConfig as MoCoConfig
from .models.moco.modeling_moco import MoCoForImageClassification as MoCoForImageClassification
from .models.moco.modeling_moco import MoCoModel as MoCoModel
from .models.mocov3.configuration_mocov3 import MoCoV3Config as MoCoV3Config
from .models.mocov3.modeling_mocov3 import MoCoV3ForImageClassification as MoCoV3ForImageClassification
from .models.mocov3.modeling_mocov3 import MoCoV3Model as MoCoV3Model
from .models.npid.configuration_npid import NPIDConfig as NPIDConfig
from .models.npid.modeling_npid import NPIDForImageClassification as NPIDForImageClassification
from .models.npid.modeling_npid import NPIDModel as NPIDModel
from .models.odc.configuration_odc import ODCConfig as ODCConfig
from .models.odc.modeling_odc import ODCForImageClassification as ODCForImageClassification
from .models.odc.modeling_odc import ODCModel as ODCModel
from .models.relativeloc.configuration_relativeloc import RelativeLocConfig as RelativeLocConfig
from .models.relativeloc.modeling_relativeloc import (
    RelativeLocForImageClassification as RelativeLocForImageClassification,
)
from .models.relativeloc.modeling_relativeloc import RelativeLocModel as RelativeLocModel
from .models.rotationpred.configuration_rotationpred import RotationPredConfig as RotationPredConfig
from .models.rotationpred.modeling_rotationpred import (
    RotationPredForImageClassification as RotationPredForImageClassification,
)
from .models.rotationpred.modeling_rotationpred import RotationPredModel as RotationPredModel
from .models.simclr.configuration_simclr import SimCLRConfig as SimCLRConfig
from .models.simclr.modeling_simclr import SimCLRForImageClassification as SimCLRForImageClassification
from .models.simclr.modeling_simclr import SimCLRModel as SimCLRModel
from .models.simmim.configuration_simmim import SimMIMConfig as SimMIMConfig
from .models.simmim.modeling_simmim import SimMIMForImageClassification as SimMIMForImageClassification
from .models.simmim.modeling_simmim import SimMIMModel as SimMIMModel
from .models.simsiam.configuration_simsiam import SimSiamConfig as SimSiamConfig
from .models.simsiam.modeling_simsiam import SimSiamForImageClassification as SimSiamForImageClassification
from .models.simsiam.modeling_simsiam import SimSiamModel as SimSiamModel
from .models.swav.configuration_swav import SwAVConfig as SwAVConfig
from .models.swav.modeling_swav import SwAVForImageClassification as SwAVForImageClassification
from .models.swav.modeling_swav import SwAVModel as SwAVModel
from .modules.target_config import MaskedTargetConfig as MaskedTargetConfig
from .training.hf_trainer import EpochViews as EpochViews
from .training.hf_trainer import SSLCallback as SSLCallback
from .training.hf_trainer import ViewCollator as ViewCollator
from .training.pretraining import pretrain as pretrain
from .training.trainer import SSLTrainer as SSLTrainer

__version__: str
