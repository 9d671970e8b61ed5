import math
from pathlib import Path

import pytest
import torch

from eenet.decoding import Executor, LayerPlan, follow, generate, pad_left
from eenet.decoding.costs import count_decoder
from eenet.decoding.gating import GatedExecutor, LayerGates, gated_loss, load_gates, save_gates
from eenet.decoding.sequences import Sequences
from eenet.decoding.tuning import plan_loss, text_batch
from eenet.errors import UserError
from tests._dummies.decoders import LAYERS, TEXTS, make_decoder

NEXT = [[7, 3, 22, 4, 19, 8], [9, 13, 6, 27], [14, 2, 5, 11, 3]]
BATCH = text_batch(Sequences(TEXTS, [""] * 3, NEXT, (2,), 4), [0, 1, 2])


def set_gates(*logits: float) -> LayerGates:
    """Gates that say the same of every token."""
    gates = LayerGates(16, LAYERS)
    for gate, logit in zip(gates.maps, logits, strict=True):
        torch.nn.init.constant_(gate.bias, logit)
    return gates


def random_gates(seed: int = 0, reads: str = "hidden") -> LayerGates:
    """Gates that let about half of the tokens run a layer."""
    torch.manual_seed(seed)
    gates = LayerGates(16, LAYERS, reads, start=0.0)  # type: ignore[arg-type]
    for gate in gates.maps:
        torch.nn.init.normal_(gate.weight)
    return gates


@pytest.mark.parametrize(("logits", "layers"), [((5, 5), (0, 1, 2, 3)), ((-5, 5), (0, 2, 3)), ((-5, -5), (0, 3))])
def test_gates_that_always_say_the_same_are_a_plan(logits: tuple[float, ...], layers: tuple[int, ...]) -> None:
    gpt, plan, gates = make_decoder("llama"), LayerPlan(layers, LAYERS), set_gates(*logits)
    found = gated_loss(gpt, gates, BATCH)
    assert torch.allclose(found.losses, plan_loss(gpt, BATCH, plan), atol=1e-5)
    assert found.share.item() == (len(layers) - 2) / 2
    prompts = pad_left(TEXTS)
    mine, theirs = generate(GatedExecutor(gpt, gates), prompts, 6), generate(Executor(gpt, plan), prompts, 6)
    assert mine.tokens == theirs.tokens
    for own, other in zip(mine.usage, theirs.usage, strict=True):
        assert (own.layers, own.decode, own.fill) == (other.layers, other.decode, other.fill)
        assert own.rule == (len(own.layers) - 1) * 2 * 16


@pytest.mark.parametrize("reads", ["hidden", "ones"])
def test_reading_token_by_token_is_reading_at_once(reads: str) -> None:
    gpt, gates = make_decoder("llama"), random_gates(reads=reads)
    with torch.no_grad():
        found = gated_loss(gpt, gates, BATCH)
    executor = GatedExecutor(gpt, gates)
    followed = follow(executor, TEXTS, NEXT)
    assert torch.allclose(found.losses, torch.cat([nll for nll, _ in followed]), atol=1e-5)
    ran = [layers for usage in executor.usage for layers in usage.layers[1:]]
    assert found.share.item() == pytest.approx((sum(ran) / len(ran) - 2) / 2)
    assert (len(set(ran)) > 1) == (reads == "hidden")


def test_samples_are_as_likely_as_their_logits_say_and_have_a_gradient() -> None:
    torch.manual_seed(0)
    gates = set_gates(1.0, 1.0)
    drawn = gates.sample(1, torch.randn(20000, 16), temperature=0.5)
    assert set(drawn.tolist()) == {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(1 / (1 + math.exp(-1)), abs=0.01)
    drawn.mean().backward()
    assert gates.maps[0].bias.grad.item() > 0
    assert gates.maps[1].bias.grad is None


def test_the_state_that_gates_read_gets_no_gradient_from_them() -> None:
    hidden = torch.randn(3, 16, requires_grad=True)
    random_gates()(1, hidden).sum().backward()
    assert hidden.grad is None


def test_a_price_closes_gates_and_none_leaves_useful_ones_open() -> None:
    gpt = make_decoder("llama").requires_grad_(False)
    shares = []
    for price in (0.0, 50.0):
        torch.manual_seed(0)
        gates = LayerGates(16, LAYERS, "ones", start=0.5)
        optimizer = torch.optim.Adam(gates.parameters(), lr=0.1)
        for _ in range(15):
            found = gated_loss(gpt, gates, BATCH, temperature=1.0)
            optimizer.zero_grad()
            (found.losses.mean() + price * found.share).backward()
            optimizer.step()
        shares.append(gated_loss(gpt, gates, BATCH).share.item())
    assert shares[1] == 0 <= shares[0]


def test_gates_are_kept_beside_the_name_of_their_model(tmp_path: Path) -> None:
    from eenet.backbones.tuned import model_digest

    gpt, gates = make_decoder("llama"), random_gates()
    save_gates(gates, "some/model", model_digest(gpt.model), tmp_path / "gates", {"price": 2.0})
    for path in (tmp_path, tmp_path / "gates"):
        loaded, facts = load_gates(str(path), gpt)
        assert (facts["base"], facts["price"], loaded.reads) == ("some/model", 2.0, "hidden")
    hidden = torch.randn(5, 16)
    assert torch.equal(loaded(2, hidden), gates(2, hidden))
    with pytest.raises(UserError, match="this model has other weights"):
        load_gates(str(tmp_path), make_decoder("llama", seed=4))
    with pytest.raises(UserError, match="holds no gates"):
        load_gates(str(tmp_path / "nowhere"))
    (tmp_path / "gates" / "gates.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        load_gates(str(tmp_path))


def test_gates_of_another_decoder_are_refused() -> None:
    gpt = make_decoder("llama")
    with pytest.raises(UserError, match="the decoder has 4 of 16"):
        GatedExecutor(gpt, LayerGates(16, 5), count_decoder(gpt))
    with pytest.raises(UserError, match="leaves no layer"):
        LayerGates(16, 2)
    with pytest.raises(UserError, match="reads = 'ears'"):
        LayerGates(16, 4, "ears")  # type: ignore[arg-type]
