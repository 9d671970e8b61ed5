"""What torch's exporter to ONNX does not take as it is written."""

import io

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from eenet.backbones import Traced
from eenet.cli.stages import example_of, exportable
from eenet.exporting.onnx_program import OPSET, quiet, rewrite
from eenet.gates import ConfidenceGate
from eenet.network import EarlyExitNetwork

onnxruntime = pytest.importorskip("onnxruntime")
for _package in ("onnx", "onnxscript"):
    pytest.importorskip(_package)


class Windows(nn.Module):
    """Attention within the windows of an image, and masked and causal attention to what it returns."""

    def forward(self, x: Tensor) -> Tensor:
        first = F.scaled_dot_product_attention(x, x.flip(-1), x + 1)
        mask = torch.ones(x.shape[-2], x.shape[-2]).triu()
        second = F.scaled_dot_product_attention(first, x, x, attn_mask=mask)
        bias = x @ x.transpose(-2, -1) if x.ndim == 3 else None
        third = F.scaled_dot_product_attention(x, x, second, bias)
        fourth = F.scaled_dot_product_attention(third, x, first, is_causal=True)
        return (1.0 - x.long() + fourth).transpose(-2, -1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_relpos_small_patch16_224", "beit_base_patch16_224"])
def test_what_attention_returns_may_be_viewed(name: str) -> None:
    sizes = {"img_size": 32, "embed_dim": 32, "depth": 4, "num_heads": 2}
    backbone = Traced(f"timm:{name}", exits_at={"fractions": [0.5]}, arguments=sizes).eval()
    problems = exportable(EarlyExitNetwork(backbone, gate=ConfidenceGate).eval(), example_of(backbone))
    assert problems == {"onnx": "", "torch": ""}


@pytest.mark.parametrize("shape", [(3, 4), (2, 5, 3, 4)])
def test_attention_over_other_axes_is_rewritten_to_the_same_values(shape: tuple[int, ...]) -> None:
    module = Windows()
    inputs = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(module, (inputs[:3],), dynamic_shapes=({0: Dim.DYNAMIC},))
    rewrite(program.graph_module)
    with quiet():
        exported = torch.onnx.export(program, (inputs[:3],), dynamo=True, verbose=False, opset_version=OPSET)
    assert exported is not None
    file = io.BytesIO()
    exported.save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module(inputs), atol=1e-6, rtol=1e-5)
