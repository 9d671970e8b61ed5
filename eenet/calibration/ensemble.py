"""Fitting the ensemble of passed exits of Zero Time Waste (Wołczyk et al., NeurIPS 2021, section 2.2)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.connections import Ensemble
from eenet.errors import UserError

RIDGE = 100.0
"""Pull of the logarithms of the weights towards those of the plain mean, and of the biases towards 0: a prior's, which
weighs less the more samples there are. Validation chose it on the digits, whose exits know their samples by heart."""

FIT_BYTES = 2**28
"""Bytes of the logarithms of probabilities above which an ensemble is fitted to some of the samples."""


def most_fitted(ensemble: Ensemble) -> int:
    """How many samples `fit_ensemble` should be given at most."""
    return max(1, FIT_BYTES // (8 * max(1, ensemble.bias.numel())))


def fit_ensemble(ensemble: Ensemble, log_p: Tensor, labels: Tensor) -> None:
    """Set an ensemble's weights to those with the least cross-entropy on training samples, exit by exit.

    Weights are positive, `w_mj = exp(v_mj) / m`, as in the authors' code. The cross-entropy has one minimum in the
    weights, which L-BFGS finds; of samples that the exits have learned by heart it has none, which the ridge mends
    [inferred].

    Args:
        ensemble: Whose weights are set.
        log_p: Logarithms of the modules' probabilities, `(samples, exits, classes)`.
        labels: `(samples,)`.

    Raises:
        UserError: The logarithms are of other exits or classes, or not finite.
    """
    if log_p.shape[1:] != ensemble.bias.shape:
        own = tuple(ensemble.bias.shape)
        raise UserError("features", tuple(log_p.shape[1:]), f"are exits and classes of another network than {own}")
    if not log_p.isfinite().all():
        raise UserError("exits", "log-probabilities", "are not finite on training samples; did their training diverge?")
    for exit in range(log_p.shape[1]):
        with torch.inference_mode(False), torch.enable_grad():  # validations run without either
            weight, bias = _fit_exit(log_p[:, : exit + 1].double().clone(), labels.clone())
        ensemble.weight[exit, : exit + 1] = weight
        ensemble.bias[exit] = bias


def _fit_exit(log_p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    (passed, classes), ridge = log_p.shape[1:], RIDGE / len(log_p)
    logs = log_p.new_zeros(passed, requires_grad=True)
    bias = log_p.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs, bias], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = torch.einsum("nmc,m->nc", log_p, logs.exp() / passed) + bias
        found = F.cross_entropy(logits, labels) + ridge * (logs.square().sum() + bias.square().sum())
        found.backward()
        return found

    optimizer.step(loss)
    return logs.detach().exp() / passed, bias.detach()
