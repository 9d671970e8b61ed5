"""Controllers of each token's layers: gates before its inner layers, which read the hidden state or a constant."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.backbones.gpt import Gpt
from eenet.backbones.tuned import model_digest
from eenet.costs import count_macs
from eenet.decoding.costs import DecoderCosts
from eenet.decoding.executor import Executor, prompt_columns
from eenet.decoding.plans import full_plan
from eenet.decoding.sequences import TextBatch
from eenet.decoding.tuning import continuation_loss
from eenet.errors import UserError, said
from eenet.files import whole
from eenet.reading import read_json

Reads = Literal["hidden", "ones"]
"""What a gate reads: the `hidden` state before its layer, or `ones` in its place, which tell nothing: the control."""

DESCRIPTION, WEIGHTS = "gates.json", "gates.safetensors"


class LayerGates(nn.Module):
    """A linear gate before each layer but the first and the last, which always run.

    The controllers of arXiv 2410.20022: trained with hard Gumbel samples and a straight-through gradient, on the
    detached state. Normalising it first, which layers are inner, and that gates start open are our reading [inferred].

    Args:
        dim: Width of the hidden state.
        num_layers: Layers of the decoder, three at least.
        reads: What they read.
        start: The logit that they start with; positive lets layers run.

    Raises:
        UserError: Too few layers, or an unknown thing to read.

    Example:
        >>> gates = LayerGates(dim=4, num_layers=5)
        >>> gates.inner, gates(1, torch.randn(2, 4)).tolist()
        (range(1, 4), [2.0, 2.0])
    """

    def __init__(self, dim: int, num_layers: int, reads: Reads = "hidden", start: float = 2.0) -> None:
        super().__init__()
        if reads not in get_args(Reads):
            raise UserError("reads", reads, f"must be {' or '.join(get_args(Reads))}")
        if num_layers < 3:
            raise UserError("num_layers", num_layers, "leaves no layer between the first and the last to gate")
        self.dim, self.num_layers, self.reads, self.inner = dim, num_layers, reads, range(1, num_layers - 1)
        self.maps = nn.ModuleList(nn.Linear(dim, 1) for _ in self.inner)
        for weight in self.maps.parameters():
            nn.init.constant_(weight, start if weight.dim() == 1 else 0.0)

    def forward(self, layer: int, hidden: Tensor) -> Tensor:
        """Logits of whether an inner layer runs, `(...)`, from the hidden states before it, `(..., dim)`."""
        state = hidden.detach().float()
        read = F.layer_norm(state, state.shape[-1:]) if self.reads == "hidden" else torch.ones_like(state)
        return self.maps[layer - self.inner[0]](read).squeeze(-1)

    def sample(self, layer: int, hidden: Tensor, temperature: float) -> Tensor:
        """Whether an inner layer runs, 0 or 1 at random with the gradient of its soft value, `(...)`."""
        logits = self(layer, hidden)
        return F.gumbel_softmax(torch.stack([logits, torch.zeros_like(logits)], -1), temperature, hard=True)[..., 0]

    def decide(self, layer: int, hidden: Tensor) -> Tensor:
        """Whether a layer runs, bool `(...)`: inner ones where the logit is positive."""
        if layer not in self.inner:
            return torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)
        return self(layer, hidden) > 0


class Gated(NamedTuple):
    """What gated layers make of some texts.

    Attributes:
        losses: Cross-entropies of what follows the prompts, in nats, `(tokens,)`.
        share: Of the inner layers, those that run, mean over the tokens that generation reads one by one; with a
            gradient where gates are sampled.
    """

    losses: Tensor
    share: Tensor


def gated_loss(gpt: Gpt, gates: LayerGates, texts: TextBatch, temperature: float | None = None) -> Gated:
    """Read prompts with all layers and what follows them with those that the gates let run.

    A layer that a token skips makes its keys and values of the state that passes.

    Args:
        gpt: The decoder.
        gates: The gates.
        texts: Prompts and what follows them.
        temperature: Of the samples; `None` decides without chance.
    """
    hidden, calls = gpt.parts.record(texts.input_ids, texts.attention_mask)
    full = prompt_columns(texts.attention_mask, texts.prompts)
    read = ~full[..., 0]
    read[:, -1] = False
    shares = []
    for layer, module in enumerate(gpt.layers):
        ran = calls[layer].run(module, hidden)
        if layer in gates.inner:
            sampled = temperature is not None
            runs = gates.sample(layer, hidden, temperature) if sampled else gates.decide(layer, hidden)  # type: ignore[arg-type]
            shares.append(runs[read].float())
            kept = torch.where(full, 1.0, runs[..., None].to(ran.dtype))
            hidden = kept * ran + (1 - kept) * hidden
        else:
            hidden = ran
    return Gated(continuation_loss(gpt, hidden, texts), torch.cat(shares).mean())


class GatedExecutor(Executor):
    """An executor whose generated tokens run the layers that gates let run; prompts run all.

    `Usage.rule` holds the MACs of the gates.

    Args:
        gpt: The decoder, as for `Executor`.
        gates: The gates.
        costs: The decoder's costs, counted if left out.

    Raises:
        UserError: Gates of another decoder, or what `Executor` refuses.
    """

    def __init__(self, gpt: Gpt, gates: LayerGates, costs: DecoderCosts | None = None) -> None:
        super().__init__(gpt, full_plan(gpt.num_stages), costs)
        if (gates.num_layers, gates.dim) != (gpt.num_stages, gpt.feature_dims[0]):
            problem = f"are layers {gates.dim} wide, the decoder has {gpt.num_stages} of {gpt.feature_dims[0]}"
            raise UserError("gates", gates.num_layers, problem)
        self.gates = gates
        weight = next(gpt.parameters())
        self._gate_macs = len(gates.inner) * count_macs(gates, gates.inner[0], weight.new_zeros(1, gates.dim))[0]

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of every sequence with the layers that its gates let run; see `Executor.step`."""
        hidden, counts = self._append(tokens), [0] * len(tokens)
        for layer in range(self.gpt.num_stages):
            runs = self.gates.decide(layer, hidden[:, 0]).tolist()
            hidden = self._run_on(layer, tuple(row for row, runs_it in enumerate(runs) if runs_it), hidden)
            counts = [count + runs_it for count, runs_it in zip(counts, runs, strict=True)]
        self._charge(counts)
        for usage in self._live:
            usage.rule += self._gate_macs
        return hidden.squeeze(1)


def save_gates(gates: LayerGates, base: str, base_digest: str, folder: Path, facts: Mapping[str, float]) -> None:
    """Write gates beside the name of the model whose layers they gate.

    Args:
        gates: The gates.
        base: Name or folder of that model.
        base_digest: SHA-256 of its weights.
        folder: Replaced as a whole.
        facts: What else is said of them, such as their `price`.
    """
    described = {"base": base, "base_digest": base_digest, "dim": gates.dim, "num_layers": gates.num_layers}
    with whole(folder, folder=True) as beside:
        beside.mkdir(parents=True, exist_ok=True)
        save_file({name: value.cpu() for name, value in gates.state_dict().items()}, beside / WEIGHTS)
        (beside / DESCRIPTION).write_text(
            json.dumps({**described, "reads": gates.reads, **facts}, indent=2) + "\n", encoding="utf-8"
        )


def load_gates(path: str, gpt: Gpt | None = None) -> tuple[LayerGates, dict[str, str | float]]:
    """Gates from a folder, or from the run that trained them, and what is said of them.

    Args:
        path: The folder.
        gpt: The decoder that they are to gate, which must be the one that they were trained on; `None` asks nothing.

    Raises:
        UserError: There are none, or they are another model's.
    """
    folder = next((at for at in (Path(path), Path(path) / "gates") if (at / DESCRIPTION).is_file()), None)
    if folder is None:
        raise UserError("gates", path, "holds no gates; the end of `eenet fit` writes them")
    try:
        facts = read_json(folder / DESCRIPTION)
        gates = LayerGates(facts["dim"], facts["num_layers"], facts["reads"])
        gates.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError("gates", path, f"cannot be read ({said(error)})") from error
    if gpt is not None and facts["base_digest"] != model_digest(gpt.model):
        raise UserError("gates", path, f"were trained on {facts['base']}, and this model has other weights")
    return gates.eval(), facts
