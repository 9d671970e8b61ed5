"""The contract that every family keeps, checked against the original model or one built apart."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from eenet.backbones.base import StagedBackbone, select
from eenet.backbones.bert import Bert
from eenet.backbones.cifar_resnet import CifarResNet
from eenet.backbones.efficientnet import EfficientNetLite0
from eenet.backbones.gpt import Gpt
from eenet.backbones.proofs import varied
from eenet.backbones.timm_generic import TimmBackbone
from eenet.backbones.weights import load_weights
from eenet.costs import count_macs

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
LENGTHS = torch.tensor([7, 3, 5])
MASK = (torch.arange(7) < LENGTHS[:, None]).long()
ALL = torch.ones(3, dtype=torch.bool)
ENCODER = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 30,
    "initializer_range": 0.3,  # at the usual 0.02 a small model attends evenly and positions hardly count
}
DECODER = {**ENCODER, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
GATED = {**DECODER, "num_key_value_heads": 1, "intermediate_size": 16}


def tokens(pad: int) -> dict[str, Tensor]:
    ids = torch.randint(3, 30, MASK.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": torch.where(MASK == 1, ids, pad), "attention_mask": MASK}


class Shortcut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        half = torch.zeros(len(x), x.shape[1] // 2, x.shape[2] // 2, x.shape[3] // 2)
        return torch.cat([half, F.interpolate(x, scale_factor=0.5, mode="nearest"), half], dim=1)


def reference_cifar(depth: int) -> nn.Module:
    """The same network from torchvision's blocks."""
    model, width = nn.Sequential(), 16
    model.conv1, model.bn1, model.relu = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    for layer, channels in enumerate((16, 32, 64), start=1):
        first = BasicBlock(width, channels, 1 + (layer > 1), Shortcut() if layer > 1 else None)
        rest = [BasicBlock(channels, channels) for _ in range((depth - 2) // 6 - 1)]
        model.add_module(f"layer{layer}", nn.Sequential(first, *rest))
        width = channels
    model.pool, model.flat, model.linear = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    return model


@dataclass
class Case:
    make: Callable[[], StagedBackbone]
    inputs: Any
    original: Callable[[StagedBackbone], nn.Module] = lambda backbone: backbone.model
    real: Tensor = ALL


def bert(family: str, overrides: dict[str, Any], pad: int = 0) -> Case:
    return Case(lambda: Bert(4, family=family, overrides=overrides, example_tokens=6), tokens(pad))


def gpt(family: str, task: str, overrides: dict[str, Any]) -> Case:
    classes = 4 if task == "classification" else None
    case = Case(lambda: Gpt(classes, task, family=family, overrides=overrides, example_tokens=6), tokens(1))
    return replace(case, real=MASK.bool()) if task == "tokens" else case


def timm_case(name: str, size: int, **overrides: Any) -> Case:
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    return Case(lambda: TimmBackbone(name, 10, size, overrides=overrides), images)


def cifar(depth: int) -> Case:
    def original(backbone: StagedBackbone) -> nn.Module:
        reference = reference_cifar(depth)
        reference.load_state_dict(backbone.model.state_dict())
        return reference

    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Case(lambda: CifarResNet(depth, 10), images, original)


OPT = {key: value for key, value in DECODER.items() if key != "initializer_range"} | {"init_std": 0.3, "ffn_dim": 16}
OPT_350M = {**OPT, "word_embed_proj_dim": 4, "do_layer_norm_before": False}
SLIDING = {**GATED, "use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}
DISTIL = {"dim": 8, "n_heads": 2, "n_layers": 3, "hidden_dim": 16, "vocab_size": 30, "initializer_range": 0.3}
CASES = {
    "bert": bert("bert", ENCODER | {"intermediate_size": 16}),
    "roberta": bert("roberta", ENCODER | {"intermediate_size": 16, "pad_token_id": 1}, pad=1),
    "distilbert": bert("distilbert", DISTIL),
    **{
        f"{family}-{task}": gpt(family, task, overrides)
        for task in ("classification", "tokens")
        for family, overrides in (
            ("gpt2", DECODER),
            ("llama", GATED),
            ("qwen2", GATED),
            ("opt", OPT | {"word_embed_proj_dim": 8}),
        )
    },
    "qwen2-sliding": gpt("qwen2", "tokens", SLIDING),
    "opt-350m": gpt("opt", "classification", OPT_350M),
    "cifar-20": cifar(20),
    "cifar-56": cifar(56),
    "cifar-110": cifar(110),
    "efficientnet-lite0": Case(lambda: EfficientNetLite0(10, 64), timm_case("", 64).inputs),
    "mobilenetv3": timm_case("mobilenetv3_small_050", 64),
    "convnext": timm_case("convnext_atto", 64),
    "swin": timm_case("swin_tiny_patch4_window7_224", 64, img_size=64, embed_dim=24, window_size=2),
    "mixer": timm_case("mixer_s32_224", 64, img_size=64),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]


def run_original(model: nn.Module, inputs: Any) -> Tensor:
    return model.eval()(**inputs).logits if isinstance(inputs, dict) else model.eval()(inputs)


def make(case: Case) -> StagedBackbone:
    """A backbone in which no parameter is all 0 or all 1, so that none can be left out unseen."""
    backbone = case.make().eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return backbone


@torch.no_grad()
def test_all_stages_give_the_original_output(case: Case) -> None:
    backbone = make(case)
    expected = run_original(case.original(backbone), case.inputs)[case.real]
    assert expected.std(dim=0).median() > 1e-3
    torch.testing.assert_close(backbone(case.inputs)[case.real], expected, **TOLERANCE)


@torch.no_grad()
def test_selected_rows_go_on_as_in_the_full_run(case: Case) -> None:
    backbone = make(case)
    keep = torch.tensor([2, 1])
    state = backbone.embed(case.inputs)
    for i in range(backbone.num_stages):
        state = backbone.run_stage(i, state)
        assert backbone.features(i, state).shape[-1] == backbone.feature_dims[i]
        if i == 0:
            state = select(state, keep)
    real = case.real[keep]
    torch.testing.assert_close(backbone.classify(state)[real], backbone(case.inputs)[keep][real], **TOLERANCE)


def test_gradients_reach_every_parameter(case: Case) -> None:
    backbone = make(case)
    backbone(case.inputs)[case.real].square().sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []
    still = [name for name, parameter in backbone.named_parameters() if parameter.grad.abs().sum() == 0]
    assert all("bias" in name for name in still), still


@torch.no_grad()
def test_loads_what_the_original_library_saved(case: Case, tmp_path: Any) -> None:
    source, target = make(case), make(case)
    original = case.original(source)
    if hasattr(original, "save_pretrained"):
        original.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    else:
        path = tmp_path / "weights.pth"
        torch.save(original.state_dict(), path)
    before = target(case.inputs)
    load_weights(target.model, path)
    torch.testing.assert_close(target(case.inputs), source(case.inputs), **TOLERANCE)
    assert not torch.allclose(before, target(case.inputs), atol=1e-3)


def test_macs_of_the_parts_sum_to_those_of_the_original(case: Case) -> None:
    backbone = case.make().eval()
    example = backbone.example_input()
    parts, state = count_macs(backbone.embed, example)
    for i in range(backbone.num_stages):
        macs, state = count_macs(backbone.run_stage, i, state)
        assert macs > 0
        parts += macs
    parts += count_macs(backbone.classify, state)[0]
    whole = count_macs(run_original, case.original(backbone), example)[0]
    if isinstance(backbone, Gpt) and backbone.task == "classification":
        # The original also scores, and OPT-350M projects, every token before it picks the last one.
        modules = [backbone.head, backbone.projection]
        whole -= 5 * sum(module.weight.numel() for module in modules if module is not None)
    assert parts == whole


def test_example_and_description(case: Case) -> None:
    backbone = case.make().eval()
    assert backbone(backbone.example_input()).shape[0] == 1
    assert backbone(backbone.example_input()).shape[-1] == backbone.num_classes
    assert backbone(varied(backbone.example_input())).isfinite().all()
    assert json.loads(json.dumps(backbone.description())) == case.make().description()


def test_efficientnet_is_timms() -> None:
    backbone = EfficientNetLite0(10, 64)
    assert backbone.model.state_dict().keys() == timm.create_model("tf_efficientnet_lite0").state_dict().keys()
    assert backbone.num_stages == 16
