from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.backbones.gpt import Gpt
from eenet.costs import count_macs
from eenet.decoding import DecoderNetwork, Executor, RoutedExecutor, follow, full_plan, generate, pad_left
from eenet.errors import UserError
from eenet.gates import ConfidenceGate, Gate, SaturationGate, StoppingGate, UncertaintyGate
from eenet.inference_modules import LinearHead, OwnHead, TiedHead
from eenet.network import EarlyExitNetwork
from eenet.policies import Patience, Policy, SequentialGates, Threshold
from tests._dummies import make_vit
from tests._dummies.decoders import LAYERS, TEXTS, greedy, make_decoder

EXITS = [0, 2]


def make_stopping(gates: int) -> StoppingGate:
    """One whose values are drawn."""
    gate = StoppingGate(gates, 30, probabilities=False)
    gate.weight.normal_()
    return gate


GATES: dict[str, Callable[[int], Gate]] = {
    "max_probability": ConfidenceGate,
    "margin": partial(ConfidenceGate, measure="margin"),
    "saturation": SaturationGate,
    "learned": UncertaintyGate,
    "patience": ConfidenceGate,
    "stopping": make_stopping,
}


def make_network(
    name: str = "llama", gate: Any = ConfidenceGate, head: Any = None, vocabulary: int = 0
) -> DecoderNetwork:
    """A decoder with exits that say something else than its own head does."""
    gpt = make_decoder(name)
    torch.manual_seed(1)
    network = DecoderNetwork(gpt, EXITS, head or partial(TiedHead, rank=3), gate, vocabulary).eval()
    for weight in network.inference_modules.parameters():
        nn.init.normal_(weight, std=0.5)
    return network


def make_policy(name: str, network: DecoderNetwork) -> Policy:
    """Lets some tokens leave at each exit and some not."""
    with torch.no_grad():
        middle = network(pad_left(TEXTS)).scores.median(dim=0).values
    if name == "patience":
        return Patience(1)
    return SequentialGates(-middle.mean().item()) if name == "learned" else Threshold(middle.tolist())


@torch.no_grad()
def slow_reference(
    network: DecoderNetwork, policy: Policy, text: list[int], new: int, fill: str
) -> tuple[list[int], list[int]]:
    """All layers for every token and no cache: tokens and exits.

    Of every layer the inputs of all tokens are kept. Keys and values are a layer's own function of its inputs, so that
    `project` puts the state a token left with in the place of the inputs that it has never had.
    """
    gpt, tokens, exits = network.backbone, list(text), []
    inputs: list[list[Tensor]] = [[] for _ in gpt.layers]
    for column in range(len(text) + new - 1):
        state = gpt.embed({"input_ids": torch.tensor([tokens])})
        hidden, after, steps = state["hidden"][0, column], [], []
        for layer in range(LAYERS):
            inputs[layer].append(hidden)
            rows = {name: state[name][:, : column + 1] for name in state if name != "hidden"}
            done = gpt.run_stage(layer, {**rows, "hidden": torch.stack(inputs[layer])[None]})["hidden"][0, -1]
            steps.append(F.cosine_similarity(done, hidden, dim=0))
            hidden = done
            after.append(hidden)
        if column < len(text) - 1:
            continue
        heads = [module(after[stage][None]) for module, stage in zip(network.inference_modules, EXITS, strict=True)]
        logits = torch.stack([*heads, gpt.head(gpt.normalise(hidden[None]))], dim=1)
        if network.vocabulary and column >= len(text):
            lowest = logits[0, 0].sort(descending=True).values[network.vocabulary - 1]
            logits[0, 1:, logits[0, 0] < lowest] = -1e4
        scores = network.gate_scores(logits, torch.stack([steps[stage] for stage in EXITS])[None])
        exit = len(EXITS) if column < len(text) else int(policy.exits(logits.argmax(-1), scores))
        exits.append(exit)
        tokens.append(int(logits[0, exit].argmax()))
        if exit < len(EXITS) and fill == "project":
            for layer in range(EXITS[exit] + 1, LAYERS):
                inputs[layer][-1] = after[EXITS[exit]]
    return tokens[len(text) :], exits


@pytest.mark.parametrize("fill", ["project", "recompute"])
@pytest.mark.parametrize(
    ("name", "decider"), [*(("llama", decider) for decider in GATES), ("gpt2", "learned"), ("opt", "margin")]
)
def test_generation_equals_running_all_layers_and_taking_the_decided_exit(name: str, decider: str, fill: Any) -> None:
    network = make_network(name, GATES[decider])
    policy = make_policy(decider, network)
    texts = TEXTS[1:]
    found = generate(RoutedExecutor(network, policy, fill), pad_left(texts), 10)
    depths = [stage + 1 for stage in EXITS] + [LAYERS]
    left = []
    for row, text in enumerate(texts):
        tokens, exits = slow_reference(network, policy, text, 10, fill)
        assert found.tokens[row] == tokens
        assert found.usage[row].layers == [depths[exit] for exit in exits]
        left += exits[1:]
    assert min(left) < len(EXITS)


@pytest.mark.parametrize("head", [partial(TiedHead, rank=3), OwnHead])
@pytest.mark.parametrize(
    ("name", "decider"),
    [
        ("llama", "margin"),
        ("llama", "stopping"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("opt", "learned"), ("gpt2", "max_probability")]),
    ],
)
def test_later_heads_choose_among_the_first_ones_candidates(name: str, decider: str, head: Any) -> None:
    network = make_network(name, GATES[decider], head, vocabulary=4)
    policy = make_policy(decider, network)
    found = generate(RoutedExecutor(network, policy), pad_left(TEXTS), 10)
    whole = generate(RoutedExecutor(make_network(name, GATES[decider], head), policy), pad_left(TEXTS), 10)
    assert found.tokens != whole.tokens
    for row, text in enumerate(TEXTS):
        tokens, exits = slow_reference(network, policy, text, 10, "project")
        assert found.tokens[row] == tokens
        depths = [stage + 1 for stage in EXITS] + [LAYERS]
        assert found.usage[row].layers[1:] == [depths[exit] for exit in exits[1:]]
    assert any(layers > EXITS[0] + 1 for usage in found.usage for layers in usage.layers[1:])


def test_all_tokens_as_candidates_change_nothing_and_training_sees_all_tokens() -> None:
    network, policy = make_network(vocabulary=30), make_policy("margin", make_network())
    expected = generate(RoutedExecutor(make_network(), policy), pad_left(TEXTS), 10).tokens
    assert generate(RoutedExecutor(network, policy), pad_left(TEXTS), 10).tokens == expected
    few, all_tokens = make_network(vocabulary=3), make_network()
    with torch.no_grad():
        assert torch.equal(few.train()(pad_left(TEXTS)).logits, all_tokens(pad_left(TEXTS)).logits)
        pruned = few.eval()(pad_left(TEXTS)).logits
    assert ((pruned > -1e3).sum(-1)[:, 1:] == 3).all()
    assert ((pruned > -1e3).sum(-1)[:, 0] == 30).all()


@torch.no_grad()
def test_behind_a_gate_that_runs_no_head_heads_choose_among_all_tokens() -> None:
    network, whole = make_network(vocabulary=4).with_gate(SaturationGate(2)), make_network(gate=SaturationGate)
    policy = make_policy("saturation", whole)
    for one, other in zip(network(pad_left(TEXTS)), whole(pad_left(TEXTS)), strict=True):
        assert torch.equal(one, other)
    found, expected = (generate(RoutedExecutor(one, policy), pad_left(TEXTS), 10) for one in (network, whole))
    assert (found.tokens, found.usage) == (expected.tokens, expected.usage)
    assert network.costs == whole.costs


def test_candidates_need_a_first_head_that_runs() -> None:
    with pytest.raises(UserError, match="where gates read logits"):
        make_network(gate=SaturationGate, vocabulary=3)
    with pytest.raises(UserError, match="or 0 for all"):
        make_network(vocabulary=-1)


@pytest.mark.parametrize("fill", ["project", "recompute"])
@pytest.mark.parametrize("decider", ["max_probability", "saturation"])
def test_when_nobody_leaves_the_tokens_are_the_models_own(decider: str, fill: Any) -> None:
    network = make_network(gate=GATES[decider])
    found = generate(RoutedExecutor(network, Threshold(["inf", "inf"]), fill), pad_left(TEXTS), 12)
    assert found.tokens == [greedy(network.backbone.model, text, 12) for text in TEXTS]


@torch.no_grad()
@pytest.mark.parametrize(
    ("decider", "vocabulary", "fill"),
    [
        ("max_probability", 0, "project"),
        ("margin", 4, "recompute"),
        pytest.param("max_probability", 0, "recompute", marks=pytest.mark.slow),
        pytest.param("margin", 4, "project", marks=pytest.mark.slow),
        *(pytest.param("saturation", 0, fill, marks=pytest.mark.slow) for fill in ("project", "recompute")),
    ],
)
def test_costs_are_what_the_counter_counts(decider: str, vocabulary: int, fill: Any) -> None:
    network = make_network(gate=GATES[decider], vocabulary=vocabulary)
    executor = RoutedExecutor(network, make_policy(decider, network), fill)
    executor.prefill(pad_left(TEXTS[:1]))
    tokens = generate(executor, pad_left(TEXTS[:1]), 10).tokens[0]
    executor.prefill(pad_left(TEXTS[:1]))
    steps = [count_macs(lambda t=t: executor.logits(executor.step(torch.tensor([t]))))[0] for t in tokens]
    usage = executor.usage[0]
    assert len(set(usage.layers[1:])) > 1
    assert usage.decode + usage.fill + usage.rule == sum(steps)


@pytest.mark.parametrize("exit", [0, 1, 2])
@pytest.mark.parametrize(("gate", "vocabulary"), [(ConfidenceGate, 0), (SaturationGate, 0), (ConfidenceGate, 4)])
def test_the_cost_profile_is_what_a_token_costs_at_each_exit(exit: int, gate: Any, vocabulary: int) -> None:
    network = make_network(gate=gate, vocabulary=vocabulary)
    policy = Threshold(["-inf" if place == exit else "inf" for place in range(2)])
    context = network.backbone.example_tokens
    executor = RoutedExecutor(network, policy)
    executor.prefill(pad_left([[5] * (context - 1)]))
    executor.step(torch.tensor([7]))
    usage = executor.usage[0]
    assert usage.decode + usage.fill + usage.rule == network.costs.cumulative[exit]


@torch.no_grad()
def test_features_are_those_of_the_decoder_itself() -> None:
    network = make_network(gate=SaturationGate)
    outputs = network(pad_left(TEXTS))
    assert outputs.logits.shape == (sum(map(len, TEXTS)), 3, 30)
    whole = network.backbone.model(input_ids=torch.tensor([TEXTS[0]]), output_hidden_states=True)
    torch.testing.assert_close(outputs.logits[: len(TEXTS[0]), -1], whole.logits[0], atol=5e-5, rtol=1e-3)
    states = whole.hidden_states
    for exit, stage in enumerate(EXITS):
        logits = network.inference_modules[exit](states[stage + 1][0])
        torch.testing.assert_close(outputs.logits[: len(TEXTS[0]), exit], logits, atol=5e-5, rtol=1e-3)
        step = F.cosine_similarity(states[stage + 1][0], states[stage][0], dim=-1)
        torch.testing.assert_close(outputs.scores[: len(TEXTS[0]), exit], step, atol=5e-5, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("head", [TiedHead, partial(TiedHead, rank=4), OwnHead])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "opt_norm_after"])
def test_untrained_heads_are_the_decoders_own_norm_and_head(name: str, head: Callable[[Gpt], nn.Module]) -> None:
    gpt, hidden = make_decoder(name), torch.randn(3, 16)
    torch.testing.assert_close(head(gpt)(hidden), gpt.head(gpt.normalise(hidden)), atol=1e-4, rtol=1e-4)


def test_a_tied_head_neither_trains_nor_saves_what_it_shares() -> None:
    network = make_network()
    tied = {id(weight) for weight in network.backbone.parameters()}
    assert not tied & {id(weight) for weight in network.inference_modules.parameters()}
    assert sum(weight.numel() for weight in network.inference_modules[0].state_dict().values()) == 16 + 2 * 3 * 16


@torch.no_grad()
def test_following_a_text_judges_every_token_of_it() -> None:
    gpt, continuations = make_decoder(), [[7, 4, 19], [21], [13, 28]]
    found = follow(Executor(gpt, full_plan(LAYERS)), TEXTS, continuations)
    for text, more, (nll, hit) in zip(TEXTS, continuations, found, strict=True):
        logits = gpt.model(input_ids=torch.tensor([text + more])).logits[0, len(text) - 1 : -1]
        torch.testing.assert_close(nll, F.cross_entropy(logits, torch.tensor(more), reduction="none"))
        assert hit.tolist() == (logits.argmax(-1) == torch.tensor(more)).tolist()


@torch.no_grad()
def test_following_its_own_text_a_routed_network_predicts_it() -> None:
    network = make_network()
    executor = RoutedExecutor(network, make_policy("max_probability", network))
    tokens = generate(executor, pad_left(TEXTS), 9).tokens
    assert all(hit.all() for _, hit in follow(executor, TEXTS, tokens))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="tokens"):
        DecoderNetwork(Gpt(num_classes=2, overrides={"n_embd": 8, "n_head": 2, "n_layer": 2}))
    with pytest.raises(UserError, match="rank = 17"):
        make_network(head=partial(TiedHead, rank=17))
    with pytest.raises(UserError, match="2 are needed"):
        RoutedExecutor(make_network(), Threshold([0.5]))
    with pytest.raises(UserError, match="is for decoders"):
        EarlyExitNetwork(make_vit(), "all", LinearHead, SaturationGate)


def test_tokens_of_given_texts_are_routed_as_gathered() -> None:
    network, texts = make_network(), pad_left(TEXTS)
    logits, scores = network(texts)
    policy = Threshold(scores.median(0).values.tolist())
    routed = network.route(texts, policy)
    exits = policy.exits(logits.argmax(-1), scores)
    assert routed.exits.tolist() == exits.tolist()
    assert torch.equal(routed.logits, logits[torch.arange(len(exits)), exits])
    assert routed.macs.tolist() == [network.costs.columns["macs"].routed[exit] for exit in exits]
