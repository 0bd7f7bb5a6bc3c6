import pytest
from joint_embedding_common import JointEmbeddingTests

from ssl_hub import SimCLRConfig, SimCLRForImageClassification, SimCLRModel


class TestSimCLR(JointEmbeddingTests):
    config_class, model_class, classifier_class = SimCLRConfig, SimCLRModel, SimCLRForImageClassification

    def test_temperature_must_be_positive(self):
        with pytest.raises(ValueError, match="temperature must be a number above 0, got 0"):
            self.config(temperature=0.0)
