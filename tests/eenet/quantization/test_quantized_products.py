"""Products outside the layers of segments: attention by hand, and who is quantized."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.costs import count_macs
from eenet.errors import UserError
from eenet.quantization.grid import quantize_rows, quantize_weight
from eenet.quantization.products import check_rest, quantized_attention, quantized_products, split_macs


def make(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.randn(3, *shape, dtype=torch.float64).unbind(0)
    return query, key, value


def by_hand(query: Tensor, key: Tensor, value: Tensor, width: int) -> Tensor:
    """One head of one sample, with integer sums."""
    limit, levels = 2 ** (width - 1) - 1, 2**width - 1

    def codes(rows: Tensor) -> tuple[Tensor, Tensor]:
        scale = rows.abs().amax(1) / limit
        return (rows / scale[:, None]).round().long(), scale

    (q, s), (k, t), (v, u) = codes(query), codes(key), codes(value)
    scores = (q @ k.T) * torch.outer(s, t) / query.shape[1] ** 0.5
    weights = scores.softmax(1) * u
    step = weights.amax(1) / levels
    return ((weights / step[:, None]).round().long() @ v) * step[:, None]


@pytest.mark.parametrize("width", [8, 4])
def test_attention_agrees_with_integers_by_hand(width: int) -> None:
    query, key, value = make(2, 3, 7, 16)
    found = quantized_attention(query, key, value, width=width)
    for sample in range(2):
        for head in range(3):
            rows = (query[sample, head], key[sample, head], value[sample, head])
            torch.testing.assert_close(found[sample, head], by_hand(*rows, width))
    error = (found - F.scaled_dot_product_attention(query, key, value)).abs().mean()
    assert error < {8: 0.01, 4: 0.15}[width]


@pytest.mark.parametrize("kind", ["causal", "bool", "float", "grouped", "scaled"])
def test_every_argument_means_what_it_means_to_torch(kind: str) -> None:
    query, key, value = make(2, 4, 6, 32)
    seen = torch.rand(2, 1, 6, 6) > 0.3
    seen[:, :, 0] = False  # a row that sees nothing
    arguments = {
        "causal": {"is_causal": True},
        "bool": {"attn_mask": seen},
        "float": {"attn_mask": torch.randn(6, 6, dtype=torch.float64)},
        "grouped": {"enable_gqa": True},
        "scaled": {"scale": 0.5},
    }[kind]
    if kind == "grouped":
        key, value = key[:, :2], value[:, :2]
    expected = F.scaled_dot_product_attention(query, key, value, **arguments)  # type: ignore[arg-type]
    found = quantized_attention(query, key, value, **arguments, width=8)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, atol=0.08, rtol=0)
    assert (found - expected).abs().mean() < 0.01
    assert not torch.equal(found, expected)


def test_masked_tokens_and_other_samples_change_nothing() -> None:
    query, key, value = make(2, 1, 6, 8)
    mask = torch.tensor([True] * 4 + [False] * 2).expand(2, 1, 6, 6)
    found = quantized_attention(query, key, value, mask, width=4)
    loud = torch.where(torch.arange(6)[:, None] < 4, value, 100 * value)
    torch.testing.assert_close(quantized_attention(query, key, loud, mask, width=4), found)
    alone = quantized_attention(query[:1], key[:1], value[:1], mask[:1], width=4)
    torch.testing.assert_close(alone, found[:1], rtol=0, atol=0)


@torch.no_grad()
def test_layers_and_convolutions_round_both_factors() -> None:
    linear, conv = nn.Linear(12, 5), nn.Conv2d(2, 3, 3)
    rows, images = torch.randn(4, 12), torch.randn(4, 2, 6, 6)
    with quantized_products(4):
        found, maps = linear(rows), conv(images)
    with quantized_products(4, layers=False):
        assert torch.equal(linear(rows), F.linear(rows, linear.weight, linear.bias))
    torch.testing.assert_close(found, F.linear(quantize_rows(rows, 4), quantize_weight(linear.weight, 4), linear.bias))
    one = quantize_rows(images[:1].flatten(1), 4).view(1, 2, 6, 6)
    torch.testing.assert_close(maps[:1], F.conv2d(one, quantize_weight(conv.weight, 4), conv.bias))


def test_what_is_counted_is_what_is_quantized() -> None:
    def function(rows: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(rows, rows, rows)
        return F.linear(attended, torch.ones(3, 8)) @ torch.ones(3, 2)

    rows = torch.randn(1, 5, 8)
    attention, linear, rest = 2 * 5 * 5 * 8, 5 * 8 * 3, 5 * 3 * 2
    assert split_macs(function, rows)[:2] == (attention + linear + rest, attention + linear)
    split = split_macs(function, rows, layers=False)
    assert (split.quantized, split.rest) == (attention, linear + rest)
    assert split.bitops(4) == 16 * attention + 1024 * (linear + rest)
    assert count_macs(function, rows)[0] == split.macs


def test_a_width_without_products_is_refused() -> None:
    with pytest.raises(UserError, match=r"network\.rest_width = 6: must be 8, 4 or 32 bits"):
        check_rest(6, "network.rest_width")
