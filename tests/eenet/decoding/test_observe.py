import pytest
import torch
from torch.nn import functional as F

from eenet.decoding import Executor, follow
from eenet.decoding.observe import observe
from eenet.decoding.sequences import Sequences
from eenet.decoding.study import SKIPPING, observed_curves, plan_families
from eenet.errors import UserError
from tests._dummies.decoders import LAYERS, TEXTS, cut_model, make_decoder

BUDGETS = (1, 2, LAYERS)
SOME = Sequences(TEXTS, ["a b", "", "c"], [[7, 8], [], [6]], (2,), 4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_every_plan_is_measured_as_a_model_cut_by_hand(family: str) -> None:
    gpt = make_decoder(family)
    families = plan_families(LAYERS, BUDGETS, seed=1)
    skipping = [families[name] for name in SKIPPING]
    table = observe(gpt, SOME, range(3), BUDGETS, skipping, tokens=3, seed=0, prompt="plan")
    positions = [(row, at) for row in range(3) for part in SOME.positions(row, 3, 0) for at in part]
    assert table["row"].tolist() == [row for row, _ in positions]
    assert table["in_prompt"].tolist() == [at + 1 < len(TEXTS[row]) for row, at in positions]
    for number, plans in enumerate(families.values()):
        for budget, plan in enumerate(plans):
            model = cut_model(gpt, plan.layers)
            for token, (row, at) in enumerate(positions):
                text = SOME.tokens(row)
                with torch.no_grad():
                    log_p = model(torch.tensor([text])).logits[0, at].log_softmax(-1)
                    full = gpt.model(torch.tensor([text])).logits[0, at].log_softmax(-1)
                cell = {name: table[name][token, number, budget].item() for name in ("nll", "kl", "agreement")}
                assert cell["nll"] == pytest.approx(-log_p[text[at + 1]].item(), abs=1e-4)
                assert cell["kl"] == pytest.approx((full.exp() * (full - log_p)).sum().item(), abs=1e-4)
                assert cell["agreement"] == float(log_p.argmax() == full.argmax())


def test_a_full_prompt_skips_in_the_continuation_alone() -> None:
    """Token by token: what an executor that reads the full prompt predicts while it reads the continuation."""
    gpt = make_decoder()
    families = plan_families(LAYERS, BUDGETS, seed=1)
    table = observe(gpt, SOME, range(3), BUDGETS, [families["uniform"]], tokens=3, seed=0)
    skips = table["skips"]
    assert table["row"][skips].tolist() == [0]
    assert table["kl"][~skips].abs().max() < 1e-5
    for number, plans in enumerate((families["early"], families["uniform"])):
        for budget, plan in enumerate(plans):
            (nll, _), *_ = follow(Executor(gpt, plan), TEXTS[:1], SOME.continuations[:1])
            assert table["nll"][skips, number, budget].item() == pytest.approx(nll[1].item(), abs=1e-4)
    curves = observed_curves(table, {name: families[name] for name in ("early", "uniform")})["uniform"]
    assert curves[0]["kl"] == pytest.approx(table["kl"][skips, 1, 0].item(), rel=1e-5)
    assert "prompt_perplexity" not in curves[0]


def test_states_and_steps_are_what_the_layers_put_out() -> None:
    gpt = make_decoder()
    table = observe(gpt, SOME, [2], BUDGETS, [], tokens=2, seed=0)
    hidden = gpt.model(torch.tensor([SOME.tokens(2)]), output_hidden_states=True).hidden_states
    at = [position for part in SOME.positions(2, 2, 0) for position in part]
    for place, k in enumerate(BUDGETS[:-1]):
        assert torch.allclose(table["states"][:, place].float(), hidden[k][0, at], rtol=0.01, atol=0.01)
        expected = F.cosine_similarity(hidden[k][0, at], hidden[k - 1][0, at], dim=-1)
        assert torch.allclose(table["step"][:, place], expected, atol=1e-5)


def test_a_text_without_a_next_token_adds_no_rows() -> None:
    some = Sequences([[5], [5, 6, 7]], ["", ""], [[], []], (), 0)
    gpt = make_decoder()
    assert len(observe(gpt, some, [0], BUDGETS, [], tokens=3, seed=0)["row"]) == 0
    assert observe(gpt, some, [0, 1], BUDGETS, [], tokens=3, seed=0)["row"].tolist() == [1, 1]


def test_curves_are_means_over_the_judged_tokens() -> None:
    gpt = make_decoder()
    families = plan_families(LAYERS, BUDGETS, seed=1, skipping=["uniform", "random"])
    table = observe(gpt, SOME, range(3), BUDGETS, [families["uniform"], families["random"]], 3, 0, "plan")
    row = observed_curves(table, families)["uniform"][1]
    inside = table["in_prompt"]
    assert row["k"] == 2
    assert row["kl"] == pytest.approx(table["kl"][:, 1, 1].mean().item(), rel=1e-5)
    assert row["prompt_perplexity"] == pytest.approx(table["nll"][inside, 1, 1].mean().exp().item(), rel=1e-5)
    assert row["reference_perplexity"] == pytest.approx(table["nll"][~inside, 1, 1].mean().exp().item(), rel=1e-5)
    assert plan_families(LAYERS, BUDGETS, 1)["uniform"][0].layers == (0,)


def test_judged_positions_leave_the_template_out() -> None:
    prompts = [[1, 2, *range(10, 10 + n), 3, 4] for n in (5, 8)]
    prompts[1][2] = 99
    some = Sequences(prompts, ["", ""], [[5], []], (), 0)
    inside, after = some.positions(0, 100, seed=0)
    assert [prompts[0][at + 1] for at in inside] == [10, 11, 12, 13, 14]
    assert after == [len(prompts[0]) - 1]
    assert some.positions(1, 3, seed=0) == some.positions(1, 3, seed=0)
    assert len(some.positions(1, 3, seed=0)[0]) == 3
    assert some.digest != Sequences(prompts, ["", ""], [[6], []], (), 0).digest
    same = Sequences([[1, 2, 3]] * 2, ["", ""], [[], []], (), 0)
    assert same.positions(0, 9, seed=0)[0] == [0, 1]


def test_broken_sequences_are_refused() -> None:
    for prompts in ([], [[1], []]):
        with pytest.raises(UserError, match="none may be empty"):
            Sequences(prompts, [""] * len(prompts), [[]] * len(prompts), (), 0)
    with pytest.raises(UserError, match="differ in number"):
        Sequences([[1]], [], [[]], (), 0)
