"""Static quantization under any exits: the same values and the same BitOPs as the uniform paths of QuEE's network."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from eenet.errors import UserError
from eenet.features import feature_key
from eenet.network import EarlyExitNetwork
from eenet.policies import Threshold
from eenet.quantization import QuantizedBackbone, QuantizedNetwork
from eenet.reporting import operating_point, static_exits
from tests._dummies import make_resnet, make_vit


def make_backbone(width: int = 4, rows: Tensor | None = None, **arguments: Any) -> QuantizedBackbone:
    backbone = QuantizedBackbone(make_vit(), width, **arguments).eval()
    backbone.calibrate([torch.randn(16, 1, 8, 8) if rows is None else rows])
    return backbone


@pytest.mark.parametrize("width", [32, 8, 4])
@torch.no_grad()
def test_it_is_the_uniform_path_of_the_network_of_paths(width: int) -> None:
    for float_backbone in (make_vit(), make_resnet()):
        rows = torch.randn(16, *float_backbone.input_shape or ())
        backbone = QuantizedBackbone(float_backbone, width).eval()
        paths = QuantizedNetwork(float_backbone, [0], widths=[width]).eval()
        for twins in (backbone, paths):
            twins.calibrate([rows])
        torch.testing.assert_close(backbone(rows), paths(rows).logits[:, -1], rtol=0, atol=0)
        assert torch.allclose(backbone(rows), float_backbone.eval()(rows), atol=1e-6) == (width == 32)


def test_macs_are_the_float_networks_and_bitops_those_of_paths() -> None:
    backbone = make_backbone(4)
    network, plain = EarlyExitNetwork(backbone, [0, 2]), EarlyExitNetwork(backbone.backbone, [0, 2])
    paths = QuantizedNetwork(backbone.backbone, [0, 2], widths=[4])
    assert replace(network.costs, stage_bitops=None, outer_bitops=None) == plain.costs  # type: ignore[type-var]
    found, chain = (one.costs.columns["bitops"] for one in (network, paths.along((4, 4, 4))))
    assert found.static[-1] == chain.static[-1]
    # Heads and gates are the routine's, at 32 bits; QuEE's heads are at 8, and here without gates.
    parts = network.costs
    heads = [sum(parts.heads[: exit + 1]) for exit in range(3)]  # type: ignore[attr-defined]
    gates = [1024 * sum(parts.gates[: exit + 1]) for exit in range(3)]  # type: ignore[attr-defined]
    expected = [r - gate - (1024 - 64) * head for r, gate, head in zip(found.routed, gates, heads, strict=True)]
    assert expected == list(chain.routed)
    assert list(plain.costs.columns) == ["macs"]
    # A block by hand: 5 tokens of 16 values; qkv, projection and two layers of 64, and two products of attention.
    block = 16 * 5 * 16 * (48 + 16 + 64 + 64) + 64 * 2 * 5 * 5 * 16
    assert network.costs.stage_bitops[1] == block  # type: ignore[attr-defined]


def test_rows_have_bitops_over_a_quantized_backbone_alone() -> None:
    network = EarlyExitNetwork(make_backbone(8), [1])
    column, statistics = network.costs.columns["bitops"], torch.rand(4, 6)
    row = operating_point("point", statistics, torch.tensor([0, 1, 1, 1]), network.costs)
    assert row["bitops"] == pytest.approx(0.25 * column.routed[0] + 0.75 * column.routed[1])
    assert row["bitops_fraction"] == pytest.approx(row["bitops"] / (1024 * network.costs.full))
    cut = static_exits(torch.rand(4, 2, 6), network.costs)
    assert [found["bitops"] for found in cut] == list(column.static)
    plain = EarlyExitNetwork(network.backbone.backbone, [1])  # type: ignore[arg-type, union-attr]
    assert "bitops" not in operating_point("point", statistics, torch.zeros(4, dtype=torch.long), plain.costs)


@torch.no_grad()
def test_routing_equals_gathering() -> None:
    network = EarlyExitNetwork(make_backbone(4), [0, 2]).eval()
    _ = network.costs
    network.double()
    rows = torch.randn(48, 1, 8, 8, dtype=torch.float64)
    outputs = network(rows)
    policy = Threshold(outputs.scores.median(0).values.tolist())
    exits = policy.exits(outputs.logits.argmax(-1), outputs.scores)
    routed = network.route(rows, policy)
    assert routed.exits.tolist() == exits.tolist()
    assert len(exits.unique()) == 3
    torch.testing.assert_close(routed.logits, outputs.logits[torch.arange(48), exits])


def test_stored_features_are_of_one_width_and_its_ranges() -> None:
    rows = torch.randn(16, 1, 8, 8)
    first = make_backbone(4, rows)
    key = feature_key(EarlyExitNetwork(first), "data", "float32")
    same, wider, scaled = (QuantizedBackbone(first.backbone, width) for width in (4, 8, 4))
    for backbone, scale in ((same, 1), (wider, 1), (scaled, 2)):
        backbone.calibrate([scale * rows])
    keys = [feature_key(EarlyExitNetwork(backbone), "data", "float32") for backbone in (same, wider, scaled)]
    assert keys[0] == key
    assert len({*keys}) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantizedBackbone(make_vit(), 5), r"backbone\.width = \[5\]: must be different widths among 32, 16"),
        (lambda: QuantizedBackbone(make_vit(), 4, 0), r"backbone\.calibration_batches = 0: an empty calibration set"),
        (lambda: QuantizedBackbone(make_backbone()), "is quantized already; give the float one"),
        (lambda: QuantizedNetwork(make_backbone()), "is quantized already; give the float one"),
    ],
)
def test_what_cannot_be_quantized_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
