from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings
from transformers import ViTConfig, ViTForImageClassification

from eenet.backbones import ResNet, resnet
from eenet.backbones.weights import load_weights
from eenet.errors import UserError


def model(classes: int = 3, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, classes))


def same(first: nn.Module, second: nn.Module) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)]


FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": dict,
    **{
        key: lambda state, key=key: {key: state, "epoch": 7}
        for key in ("state_dict", "model", "model_state_dict", "net", "ema", "teacher")
    },
    **{
        prefix: lambda state, prefix=prefix: {prefix + name: value for name, value in state.items()}
        for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "network.backbone.")
    },
    "namespace": lambda state: {"model": state, "args": Namespace(lr=0.1)},
    "inner": lambda state: {name.replace("1.", "1._orig_mod."): value for name, value in state.items()},
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_of_file_loads(form: str, ending: str, tmp_path: Path) -> None:
    saved, loaded = model(), model()
    content, path = FORMS[form](saved.state_dict()), tmp_path / f"w{ending}"
    if ending == ".pth":
        torch.save(content, path)
    elif all(isinstance(value, Tensor) for value in content.values()):
        save_file(content, path)
    else:
        pytest.skip("safetensors has no levels")
    assert not all(same(saved, loaded))
    load_weights(loaded, path)
    assert all(same(saved, loaded))


def test_torchs_average_loads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved, loaded = model(), model()
    torch.save(AveragedModel(saved).state_dict(), tmp_path / "w.pth")
    load_weights(loaded, tmp_path / "w.pth")
    assert all(same(saved, loaded))
    assert "left out n_averaged" in caplog.text


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"lr": 0.1})
        self.net, self.loss = model(), nn.CrossEntropyLoss(torch.ones(3))


def test_lightnings_checkpoint_loads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, loaded = Module(), model()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "w.ckpt", weights_only=True)
    load_weights(loaded, tmp_path / "w.ckpt")
    assert all(same(module.net, loaded))
    assert "left out loss.weight" in caplog.text


@pytest.mark.parametrize(
    "keep",
    [
        lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
        lambda raw, ema: {"student": raw, "teacher": ema},
        lambda raw, ema: {"current_model_state": raw, "state_dict": ema},
        lambda raw, ema: {f"{place}.{n}": v for place, one in (("net", raw), ("net_ema", ema)) for n, v in one.items()},
    ],
    ids=["timm", "teacher", "lightning", "prefix"],
)
def test_of_weights_and_their_average_one_is_chosen(
    keep: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw, average, loaded = model(), model(), model()
    torch.save(keep(raw.state_dict(), average.state_dict()), tmp_path / "w.pth")
    load_weights(loaded, tmp_path / "w.pth")
    assert all(same(average, loaded))
    assert "this takes the average" in caplog.text
    load_weights(loaded, tmp_path / "w.pth", "raw")
    assert all(same(raw, loaded))


def test_raw_weights_that_are_not_there_and_two_models_are_refused(tmp_path: Path) -> None:
    torch.save({"ema": model().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="averaged weights alone"):
        load_weights(model(), tmp_path / "w.pth", "raw")
    both = {f"{place}.{name}": value for place in "ab" for name, value in model().state_dict().items()}
    torch.save(both, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"different weights under a\. and b\."):
        load_weights(model(), tmp_path / "w.pth")


def test_a_file_that_needs_code_names_it(tmp_path: Path) -> None:
    torch.save({"model": model().state_dict(), "args": Namespace(out=Path("x"))}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"it needs pathlib\.\w+"):
        load_weights(model(), tmp_path / "w.pth")


def test_a_file_without_head_loads_and_one_with_another_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved, loaded = model(), model()
    body = {name: value for name, value in saved.state_dict().items() if not name.startswith("2.")}
    for other in ({}, {"head.mlp.weight": torch.ones(2)}):
        torch.save(body | other, tmp_path / "w.pth")
        load_weights(loaded, tmp_path / "w.pth")
        assert torch.equal(loaded[0].weight, saved[0].weight)
        assert "the file has no 2.weight, 2.bias, which starts untrained" in caplog.text
    assert "left out head.mlp.weight" in caplog.text


TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "small", "options"),
    [
        ("vit_tiny_patch16_224", TINY, {"img_size": 48, "in_chans": 1}),
        ("deit3_small_patch16_224", TINY, {"img_size": 48}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}, {"img_size": 64}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8)}, {"in_chans": 1}),
        ("resnet18", {"channels": (4, 4, 8, 8)}, {"in_chans": 5}),
    ],
)
@pytest.mark.parametrize("head", [5, 4, None], ids=["same", "other", "none"])
def test_sizes_channels_and_heads_are_adapted_as_timm_does(
    name: str, small: dict[str, Any], options: dict[str, Any], head: int | None, tmp_path: Path
) -> None:
    before = {"img_size": 96} if "img_size" in options else {}
    state = timm.create_model(name, num_classes=5, **small, **before).state_dict()
    if head is None:
        state = {
            key: value for key, value in state.items() if not key.startswith(("head.fc", "fc", "head.w", "head.b"))
        }
    torch.save(state, tmp_path / "w.pth")
    classes = head or 5
    overlay = {"state_dict": dict(state), "num_classes": 5 if head else 0, "custom_load": False}
    expected = timm.create_model(
        name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay, **small, **options
    )
    found = timm.create_model(name, num_classes=classes, **small, **options)
    load_weights(found, tmp_path / "w.pth")
    images = torch.randn(2, options.get("in_chans", 3), options.get("img_size", 48), options.get("img_size", 48))
    assert torch.equal(found.eval().forward_features(images), expected.eval().forward_features(images))
    if head == 5:
        assert torch.equal(found(images), expected(images))


def test_positions_are_resampled_as_torchvision_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def make(size: int) -> VisionTransformer:
        return VisionTransformer(size, 8, 1, 2, 16, 32, num_classes=3)

    saved, expected, found = make(48), make(32), make(32)
    torch.save(saved.state_dict(), tmp_path / "w.pth")
    expected.load_state_dict(interpolate_embeddings(32, 8, saved.state_dict()))
    load_weights(found, tmp_path / "w.pth")
    assert all(same(found, expected))
    assert "adapted encoder.pos_embedding from [1, 37, 16] to [1, 17, 16]" in caplog.text


@torch.no_grad()
def test_transformers_folders_load_at_another_size_and_without_head(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    saved = ViTForImageClassification(ViTConfig(image_size=48, patch_size=8, num_labels=4, **sizes)).eval()
    found = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=4, **sizes)).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = saved(images, interpolate_pos_encoding=True).logits
    saved.save_pretrained(tmp_path / "whole", max_shard_size=10_000)
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) > 1
    load_weights(found, tmp_path / "whole")
    torch.testing.assert_close(found(images).logits, expected)
    saved.vit.save_pretrained(tmp_path / "body")
    found.vit.layernorm.weight.zero_()
    load_weights(found, tmp_path / "body")
    torch.testing.assert_close(found(images).logits, expected)


class Basic(nn.Module):
    """A block of the widespread CIFAR code."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class CifarCode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        for i, (before, width) in enumerate([(64, 4), (4, 4), (4, 8), (8, 8)], 1):
            setattr(self, f"layer{i}", nn.Sequential(Basic(before, width, 1 + (i > 1)), Basic(width, width, 1)))
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.linear(x.mean((2, 3)))


def small_resnet(pretrained: str | bool, **options: Any) -> ResNet:
    return ResNet("resnet18", 3, 32, pretrained=pretrained, overrides={"channels": [4, 4, 8, 8]}, **options).eval()


@torch.no_grad()
def test_the_usual_cifar_checkpoint_loads(tmp_path: Path) -> None:
    saved = CifarCode().eval()
    state = {f"module.{name}": value for name, value in saved.state_dict().items()}
    torch.save({"net": state, "acc": 95.1, "epoch": 3}, tmp_path / "w.pth")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(small_resnet(str(tmp_path / "w.pth"), small_images=True)(images), saved(images))


@torch.no_grad()
def test_a_stem_that_was_replaced_is_kept_or_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images, path = torch.randn(2, 3, 32, 32), str(tmp_path / "w.pth")
    small, usual = small_resnet(False, small_images=True), small_resnet(False)
    torch.save(small.model.state_dict(), path)
    assert torch.equal(small_resnet(path, small_images=True)(images), small(images))
    assert caplog.text == ""
    torch.save(usual.model.state_dict(), path)
    monkeypatch.setattr(resnet, "_timm_published", lambda name, overrides: usual.model.state_dict())
    for given in (path, True):
        caplog.clear()
        found = small_resnet(given, small_images=True)
        assert torch.equal(found.model.layer4[1].conv2.weight, usual.model.layer4[1].conv2.weight)
        assert "conv1 differs in the file and starts untrained" in caplog.text


def test_a_head_for_other_classes_stays_untrained_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved, loaded = model(classes=5), model(classes=3)
    head = loaded[2].weight.clone()
    torch.save(saved.state_dict(), tmp_path / "w.pth")
    load_weights(loaded, tmp_path / "w.pth")
    assert torch.equal(loaded[2].weight, head)
    assert torch.equal(loaded[0].weight, saved[0].weight)
    assert "2 has other classes" in caplog.text


def test_tied_weights_need_no_second_copy(tmp_path: Path) -> None:
    def tied() -> nn.ModuleDict:
        parts = nn.ModuleDict({"embed": nn.Embedding(5, 2), "head": nn.Linear(2, 5, bias=False)})
        parts["head"].weight = parts["embed"].weight
        return parts

    saved, loaded = tied(), tied()
    torch.save({"embed.weight": saved["embed"].weight.detach()}, tmp_path / "w.pth")
    load_weights(loaded, tmp_path / "w.pth")
    assert torch.equal(loaded["head"].weight, saved["head"].weight)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model(width=6).state_dict(), r"other shapes 1\.weight from \[6\] to \[4\]"),
        ({"0.weight": torch.zeros(4, 2)}, r"missing 0\.bias, 1\.weight"),
        (model().state_dict() | {"extra": torch.zeros(1)}, "unknown extra"),
        ([1, 2], "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        (model(), "no file of plain tensors"),
    ],
)
def test_files_that_do_not_fit_are_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        load_weights(model(), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_and_missing_files_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such weight file"):
        load_weights(model(), tmp_path / name)
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="no file of plain tensors"):
        load_weights(model(), tmp_path / name)
