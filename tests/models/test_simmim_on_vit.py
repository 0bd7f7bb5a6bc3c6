import test_simmim
import torch


class TestSimMIMOnViT(test_simmim.TestSimMIM):
    backbone = test_simmim.VIT

    def test_pooling(self):
        images = self.one_view()
        for pooling, pool in (("cls", lambda tokens: tokens[:, 0]), ("mean", lambda tokens: tokens[:, 1:].mean(1))):
            outputs = self.model(pooling=pooling).eval()(images)
            assert torch.equal(outputs.pooler_output, pool(outputs.last_hidden_state))
