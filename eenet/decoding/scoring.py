"""What tokens say of a decoder's exits: values fitted to training tokens, and validation tokens at every exit."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.calibration import Scored
from eenet.calibration.candidates import STOPPING
from eenet.calibration.deciders import decider
from eenet.calibration.stopping import StoppingValues, check_enough, fit_values, joined, observe
from eenet.decoding.network import DecoderNetwork
from eenet.gates import Gate, StoppingGate
from eenet.policies import Policy, Threshold
from eenet.progress import tracked


class Contender(NamedTuple):
    """A policy with one knob, among whose settings wishes are met.

    Attributes:
        policy: Some setting of it.
        gate: `None` for the network's own.
        scored: What the validation tokens say; an exit is right where its most likely token is the full model's.
    """

    policy: Policy
    gate: Gate | None
    scored: Scored


class Contenders(NamedTuple):
    """The policies that one name stands for, and the negative log-likelihoods of the validation tokens.

    Attributes:
        network: The decoder behind a gate that reads what theirs read.
        each: One, or one for each price of the cost.
        nll: Of the tokens by every exit, in nats, `(tokens, exits)`.
        full_nll: Of the tokens by the full model, `(tokens,)`.
    """

    network: DecoderNetwork
    each: list[Contender]
    nll: Tensor
    full_nll: Tensor


def contenders(network: DecoderNetwork, name: str, own: Policy, data: Any, device: torch.device) -> Contenders:
    """The policy of a name, see `eenet.calibration.deciders.decider`.

    Args:
        network: The decoder with its exits.
        name: What decides.
        own: The policy that it was trained with, on the CPU.
        data: Its prompts and texts, a `datamodules.Continuations`.
        device: Where the network is.
    """
    gate, policy = decider(name, network.num_exits - 1, own)
    network = network if gate is None else network.with_gate(gate)
    scored, *nll = score_tokens(network, data, device)
    return Contenders(network, [Contender(policy, gate, scored)], *nll)


def stopping_contenders(network: DecoderNetwork, name: str, own: Policy, data: Any, device: torch.device) -> Contenders:
    """Optimal stopping at several prices of the cost, on figures that are cheap with a vocabulary of tokens.

    Args:
        network: As for `contenders`.
        name: Some of `eenet.calibration.candidates.STOPPING`.
        own: Of no account.
        data: As for `contenders`.
        device: As for `contenders`.

    Raises:
        UserError: There are too few training tokens.
    """
    early = network.num_exits - 1
    gate = StoppingGate(early, network.backbone.num_classes, probabilities=False, **STOPPING[name])
    network, as_fitted = network.with_gate(gate), Threshold([0.0] * early)
    values = fit_tokens(network, gate, data, device)
    scored, *nll = score_tokens(network, data, device, values)
    each = zip(values.gates, scored.scores.unbind(-1), strict=True)
    found = [Contender(as_fitted, fitted, scored._replace(scores=scores)) for fitted, scores in each]
    return Contenders(network, found, *nll)


@torch.no_grad()
def fit_tokens(network: DecoderNetwork, gate: StoppingGate, data: Any, device: torch.device) -> StoppingValues:
    """Fit values of stopping to the training tokens, without labels: the full model and its whole vocabulary judge.

    What is known is read batch by batch, as all exits' logits of all tokens fit in no memory.

    Args:
        network: The decoder with its exits, behind the gate.
        gate: Says what is known at an exit; without recall.
        data: Its prompts and texts.
        device: Where the network is.

    Raises:
        UserError: There are no more training tokens than the gate has inputs.
    """
    loader = data.loader("train")
    check_enough(gate, len(loader.dataset))
    parts = []
    for batch in tracked(loader, "reading training texts with all exits"):
        features, _ = data.transfer_batch_to_device(batch, device, 0)
        logits, full = network.exit_logits(features), network.full_logits(features)
        parts.append(observe(gate, logits.float().cpu(), full.float().cpu()))
    return fit_values(gate, joined(parts), network.costs.fractions())


@torch.no_grad()
def score_tokens(
    network: DecoderNetwork, data: Any, device: torch.device, values: StoppingValues | None = None
) -> tuple[Scored, Tensor, Tensor]:
    """Read the validation tokens with all exits, all layers run.

    Args:
        network: The decoder with its exits.
        data: Its prompts and texts.
        device: Where the network is.
        values: Score the exits in the place of the network's gate, for each price.

    Returns:
        What the tokens say of every exit, and what `Contenders` has of them.
    """
    predictions, scores, nll, full, full_nll = [], [], [], [], []
    for batch in tracked(data.loader("val"), "reading validation texts with all exits"):
        features, labels = data.transfer_batch_to_device(batch, device, 0)
        logits, own = network.exit_logits(features), network.full_logits(features)
        full.append(own.argmax(-1).cpu())
        full_nll.append(F.cross_entropy(own.float(), labels, reduction="none").cpu())
        predictions.append(logits.argmax(-1).cpu())
        given = network.gate_scores(logits, features.steps) if values is None else values(logits[:, :-1].float().cpu())
        scores.append(given.cpu())
        index = labels[:, None, None].expand(-1, network.num_exits, 1)
        nll.append(-logits.float().log_softmax(-1).gather(2, index).squeeze(2).cpu())
    tokens, reference = torch.cat(predictions), torch.cat(full)
    always = torch.ones(len(tokens), dtype=torch.bool)
    correct = tokens == reference[:, None]
    scored = Scored(tokens, torch.cat(scores), correct, network.costs.fractions(), always)
    return scored, torch.cat(nll), torch.cat(full_nll)
