"""Optimal stopping of tokens: values by scikit-learn on one exit, and choices against trying every setting."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from eenet.calibration.chosen import ChosenOn
from eenet.calibration.stopping import RIDGE, TRADEOFFS
from eenet.calibration.wishes import Wishes
from eenet.decoding import DecoderNetwork, TokenFeatures
from eenet.decoding.chooser import TokenChooser, settings
from eenet.errors import UnmetError, UserError
from eenet.gates import ConfidenceGate, StoppingGate
from eenet.gates.stopping import describe
from eenet.inference_modules import TiedHead
from eenet.policies import Threshold
from tests._dummies.decoders import make_decoder

CPU = torch.device("cpu")


def make_network(exits: list[int], vocabulary: int = 0) -> DecoderNetwork:
    torch.manual_seed(2)
    network = DecoderNetwork(make_decoder(), exits, partial(TiedHead, rank=3), ConfidenceGate, vocabulary).eval()
    for weight in network.inference_modules.parameters():
        nn.init.normal_(weight, std=0.5)
    return network


class Tokens:
    """Tokens of random texts; those that follow are what the full model says."""

    def __init__(self, network: DecoderNetwork, texts: dict[str, int], length: int = 8) -> None:
        self.network, self.batches = network, {}
        self.texts = {split: torch.arange(count).repeat_interleave(length) for split, count in texts.items()}
        for number, (split, count) in enumerate(texts.items()):
            torch.manual_seed(number)
            found = network.extract({"input_ids": torch.randint(3, 30, (count, length))})
            rows = list(zip(*found.features, found.steps, found.final, strict=True))
            self.batches[split] = list(zip(rows, network.full_logits(found).argmax(-1), strict=True))

    def loader(self, split: str) -> DataLoader:
        return DataLoader(self.batches[split], batch_size=16)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, number: int) -> tuple[TokenFeatures, Tensor]:
        (*early, steps, final), labels = batch
        return TokenFeatures(early, steps, final), labels

    def table(self, split: str) -> Any:
        return SimpleNamespace(texts=self.texts[split])

    @torch.no_grad()
    def logits(self, split: str) -> tuple[Tensor, Tensor]:
        """Of all exits, `(tokens, exits, vocabulary)`, and of the full model."""
        whole = DataLoader(self.batches[split], batch_size=len(self.batches[split]))  # type: ignore[arg-type]
        features, _ = self.transfer_batch_to_device(next(iter(whole)), CPU, 0)
        return self.network.exit_logits(features), self.network.full_logits(features)


@torch.no_grad()
def make_chooser(
    network: DecoderNetwork, name: str = "stopping", wishes: dict[str, list[float]] | None = None, **texts: int
) -> tuple[TokenChooser, Tokens]:
    data = Tokens(network, {"train": 30, "val": 20, **texts})
    own = Threshold([0.5] * (network.num_exits - 1))
    return TokenChooser(network, own, name, Wishes(wishes or {}), data, CPU, ChosenOn("", "", 0)), data


@pytest.mark.parametrize("vocabulary", [0, 4])
def test_values_of_one_exit_are_a_regression_on_its_figures(vocabulary: int) -> None:
    network = make_network([1], vocabulary)
    chooser, data = make_chooser(network, "stopping_stateless")
    logits, full = data.logits("train")
    losses = 1 - full.double().softmax(-1).gather(1, logits.argmax(-1)).numpy()  # of the last head among candidates too
    assert (losses[:, 1] > losses[:, 1].min() + 0.1).any()
    costs = network.with_gate(StoppingGate(1, 30, memory=False, probabilities=False)).costs.fractions().numpy()
    known = describe(logits[:, 0])[:, :6].double().numpy()
    scaler = StandardScaler().fit(known)
    judged = scaler.transform(describe(data.logits("val")[0][:, 0])[:, :6].double().numpy())
    assert len(chooser.contenders) == len(TRADEOFFS)
    for price, contender in list(zip(TRADEOFFS, chooser.contenders, strict=True))[::5]:
        gain = losses[:, 1] - losses[:, 0] + price * (costs[1] - costs[0])
        model = Ridge(alpha=RIDGE * len(known)).fit(scaler.transform(known), gain)
        np.testing.assert_allclose(contender.scored.scores[:, 0].numpy(), model.predict(judged), atol=1e-4)


def every_setting(chooser: TokenChooser) -> list[tuple[float, float]]:
    """Cost and agreement of all thresholds that all prices have, exit by exit."""
    found = []
    for contender in chooser.contenders:
        scores, correct, fractions = contender.scored.scores, contender.scored.correct, contender.scored.fractions
        for limit in [-float("inf"), *scores.flatten().tolist(), float("inf")]:
            leaves = torch.cat([scores >= limit, torch.ones(len(scores), 1, dtype=torch.bool)], dim=1)
            exits = leaves.int().argmax(1)
            right = correct[torch.arange(len(exits)), exits].double().mean().item()
            found.append((fractions[exits].mean().item(), right))
    return found


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_the_point_is_the_cheapest_of_all_prices_and_thresholds_that_keep_the_wish(share: float) -> None:
    chooser, _ = make_chooser(make_network([0, 2]))
    point = chooser.point("max-disagreement", share)
    tried = every_setting(chooser)
    cheapest = min(cost for cost, agreement in tried if agreement >= 1 - share - 1e-12)
    assert point.got["macs_fraction"] == pytest.approx(cheapest, abs=1e-6)
    assert point.got["agreement"] == pytest.approx(
        max(agreement for cost, agreement in tried if cost <= cheapest + 1e-9), abs=1e-9
    )
    gate = point.gate
    assert isinstance(gate, StoppingGate)
    assert (gate.num_inputs, gate.weight.shape) == (15, (2, 1, 15))


def test_a_budget_and_a_perplexity_are_kept_and_a_price_belongs_to_the_budget() -> None:
    chooser, _ = make_chooser(make_network([0, 2]))
    for budget in (0.6, 0.9):
        point = chooser.point("budget", budget)
        assert point.got["macs_fraction"] <= budget
        contender = next(one for one in chooser.contenders if one.gate is point.gate)
        distances = [abs(one.scored.cost(one.policy) - budget) for one in chooser.contenders]
        assert abs(contender.scored.cost(contender.policy) - budget) == min(distances)
    kept = chooser.point("max-perplexity-increase", 50.0)
    assert kept.got["perplexity_increase"] <= 50 + 1e-6
    with pytest.raises(UnmetError, match="cannot be met"):
        chooser.point("budget", 0.01)


def test_settings_that_generate_fall_in_cost_from_the_full_model_on() -> None:
    chooser, _ = make_chooser(make_network([0, 2]))
    rows = torch.arange(len(chooser.full_nll)) % 3 == 0
    found = settings(chooser.contenders, rows)
    costs = [one.scored.rows(rows).cost(policy) for one, policy in found]
    assert len(found) > 5
    assert all(after <= before + 0.02 for before, after in pairwise(costs))
    (alone, policy), *_ = settings(chooser.contenders[:1])
    assert alone.scored.cost(policy) == pytest.approx(float(alone.scored.fractions[-1]))


def test_too_few_training_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="needs more than 15 training samples for its regressions and has 8"):
        make_chooser(make_network([0, 2]), train=1)
