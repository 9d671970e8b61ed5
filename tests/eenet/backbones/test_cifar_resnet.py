import pytest
import torch

from eenet.backbones.cifar_resnet import CifarResNet
from eenet.costs import count_macs
from eenet.errors import UserError


@pytest.mark.parametrize(
    ("depth", "parameters", "mega_macs"), [(20, 269_722, 40.55), (56, 853_018, 125.49), (110, 1_727_962, 252.89)]
)
def test_size_and_cost_are_the_published_ones(depth: int, parameters: int, mega_macs: float) -> None:
    resnet = CifarResNet(depth, 10).eval()
    assert sum(parameter.numel() for parameter in resnet.parameters()) == parameters
    assert round(count_macs(resnet, resnet.example_input())[0] / 1e6, 2) == mega_macs
    assert resnet.num_stages == (depth - 2) // 2


def test_depth_counts_the_layers_with_weights() -> None:
    layers = [m for m in CifarResNet(56, 10).modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 56


@torch.no_grad()
def test_maps_shrink_by_half_with_the_width() -> None:
    resnet = CifarResNet(20, 10, image_size=8, in_channels=1).eval()
    state, shapes = resnet.embed(torch.randn(2, 1, 8, 8)), []
    for i in range(resnet.num_stages):
        state = resnet.run_stage(i, state)
        shapes.append(tuple(resnet.feature_map(i, state).shape))
        torch.testing.assert_close(resnet.features(i, state), state.flatten(2).mean(2))
    assert shapes == [(2, 16, 8, 8)] * 3 + [(2, 32, 4, 4)] * 3 + [(2, 64, 2, 2)] * 3


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(UserError, match="6n"):
        CifarResNet(depth, 10)


def test_image_sizes_that_the_shortcut_cannot_halve_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of 4"):
        CifarResNet(20, 10, image_size=30)
