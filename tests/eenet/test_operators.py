"""What programs of an exported folder may compute."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eenet
from eenet.exporting import export_network
from eenet.gates import ConfidenceGate
from eenet.policies import Threshold
from eenet.runtime import load
from eenet.runtime.operators import OPERATORS

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_no_allowed_operation_writes_into_its_arguments() -> None:
    for name in OPERATORS:
        space, base, *overload = name.split(".")
        if space == "aten":
            assert not getattr(getattr(torch.ops.aten, base), overload[0])._schema.is_mutable, name


class Unusual(nn.Module):
    """Operations that few families need: folded windows, grids, transposed convolutions, several ways to resize."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(before, 4, 3, padding=1) for before in (1, 4, 4))
        self.up, self.act, self.fc = nn.ConvTranspose2d(4, 4, 2, 2), nn.PReLU(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.convs[0](x))
        x = F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2).flip(3)
        x = F.interpolate(self.convs[1](x), scale_factor=2, mode="nearest")
        x = F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2) + F.softplus(self.up(F.avg_pool2d(x, 2)))
        places = torch.arange(16, dtype=x.dtype, device=x.device)
        rows, columns = torch.meshgrid(places, places, indexing="ij")
        x = self.convs[2](x * (rows - columns + torch.eye(16, device=x.device))).repeat_interleave(2, 2)
        x = F.interpolate(x, size=(5, 5), mode="bicubic", antialias=True)
        return self.fc(x.mean((2, 3)))


@torch.no_grad()
def test_unusual_operations_travel_in_a_folder(tmp_path: Path) -> None:
    model = Unusual().eval()
    network = eenet.attach(model, IMAGES, exits=["convs.0", "convs.1"], gate=ConfidenceGate).eval()
    policy = Threshold([2.0, 2.0])
    export_network(network, policy, tmp_path / "out", IMAGES[:3])
    torch.testing.assert_close(load(tmp_path / "out")(IMAGES).logits, model(IMAGES))
