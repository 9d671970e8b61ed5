"""Networks of torch alone for `benchmarks/gpu.py`, and whether they route as they compute."""

import sys
import types
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if find_spec("safetensors") is None:  # which reads and writes files, none of them here
    for missing in ("safetensors", "safetensors.torch"):
        sys.modules[missing] = types.ModuleType(missing)
        sys.modules[missing].__dict__.update(SafetensorError=OSError, load_file=None, save_file=None, save=None)

from eenet.backbones.base import StagedBackbone
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork
from eenet.policies import Policy, Threshold

Found = dict[str, Any]
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of logits, in units of their standard deviation; scores as near to a threshold may fall on either side of it."""


class Transformer(StagedBackbone):
    """A vision transformer of torch's own parts, so that no other library is needed.

    Args:
        width: Of the hidden states.
        depth: Blocks, a stage each.
        size: Of the square images, in pixels.
        patch: Of the square patches.
        channels: Of the images.
    """

    def __init__(self, width: int, depth: int, size: int, patch: int, channels: int = 3) -> None:
        super().__init__()
        self.num_stages, self.num_classes, self.feature_dims = depth, 10, [width] * depth
        self.input_shape = (channels, size, size)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.places = nn.Parameter(torch.randn(1, (size // patch) ** 2, width) / 4)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def description(self) -> Found:
        """What it is."""
        return {"family": "Transformer", "depth": self.num_stages, "width": self.feature_dims[0]}

    def embed(self, inputs: Tensor) -> Tensor:
        """Tokens, `(batch, tokens, width)`."""
        return self.patches(inputs).flatten(2).transpose(1, 2) + self.places

    def run_stage(self, i: int, state: Tensor) -> Tensor:
        """A block."""
        return self.blocks[i](state)

    def features(self, i: int, state: Tensor) -> Tensor:
        """Mean over the tokens, normalised."""
        return F.layer_norm(state.mean(1), state.shape[2:])

    def classify(self, state: Tensor) -> Tensor:
        """The head on the mean token."""
        return self.head(self.norm(state.mean(1)))


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """The same shape, `(batch, tokens, width)`."""
        parts = self.qkv(self.norms[0](tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        tokens = tokens + self.out(found.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norms[1](tokens))


def make_network(tiny: bool, gate: Any = ConfidenceGate, dtype: torch.dtype = torch.float32) -> EarlyExitNetwork:
    """Three exits on a transformer as large as ViT-S/16 at 224 pixels, or tiny; heads that tell inputs apart."""
    torch.manual_seed(0)
    backbone = Transformer(16, 4, 8, 4) if tiny else Transformer(384, 12, 224, 16)
    network = EarlyExitNetwork(backbone, [0, 1, 2] if tiny else [2, 5, 8], gate=gate)
    for weight in (parameter for head in network.heads for parameter in head.parameters() if parameter.ndim > 1):
        nn.init.normal_(weight, std=4 / weight.shape[1] ** 0.5)
    return network.to(DEVICE, dtype).eval().requires_grad_(False)


def images(network: EarlyExitNetwork, rows: int) -> Tensor:
    """Random ones of unlike brightness and contrast, in the network's type."""
    draw = torch.Generator().manual_seed(rows)
    shape = network.backbone.input_shape or ()
    look = torch.randn(2, rows, *[1] * len(shape), generator=draw)
    found = torch.randn(rows, *shape, generator=draw) * look[0].exp() + 2 * look[1]
    return found.to(DEVICE, next(network.parameters()).dtype)


@torch.no_grad()
def half_leave(network: EarlyExitNetwork) -> Threshold:
    """Thresholds at which about half of those that arrive leave."""
    scores, limits = network(images(network, 64)).scores.float(), list[float]()
    for column in range(scores.shape[1]):
        limits.append(scores[:, column].median().item())
        scores = scores[scores[:, column] < limits[-1]] if len(scores) > 4 else scores
    return Threshold(limits)


@torch.no_grad()
def agrees(network: EarlyExitNetwork, policy: Policy, inputs: Tensor, near: float) -> Found:
    """Whether routed logits are those of all nodes, computed at once, where each sample left."""
    logits, scores = network(inputs)
    routed = network.route(inputs, policy)
    rows = torch.arange(len(inputs), device=DEVICE)
    error = (routed.logits - logits[rows, routed.nodes]).abs().amax(1) / logits.float().std()
    elsewhere = policy.exits(logits.argmax(-1), scores) != routed.nodes
    if isinstance(policy, Threshold):  # a score at its threshold may round to either side
        gaps = (scores.float() - policy.thresholds.to(DEVICE)).abs() / scores.float().std()
        elsewhere &= (gaps > near).all(1)
    costs = torch.tensor(network.costs.columns["macs"].routed, device=DEVICE)[routed.nodes]
    share = (error <= near).float().mean().item()
    enough = 0.95 if logits.dtype == torch.bfloat16 else 1.0  # whose rounding adds up over the blocks
    whole = share >= enough and not elsewhere.any() and torch.equal(costs, routed.macs)
    return {
        "samples": len(inputs),
        "error": error.max().item(),
        "left_elsewhere": int(elsewhere.sum()),
        "exits": routed.exits.bincount(minlength=network.num_exits).tolist(),
        "correct": whole and routed.logits.device == DEVICE,
    }
