import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

peft = pytest.importorskip("peft")

from eenet.backbones.gpt import Gpt  # noqa: E402
from eenet.backbones.tuned import Tuned, add_adapter, base_of, model_digest, save_tuned  # noqa: E402
from eenet.decoding import early_exit, follow, full_plan, parse_plan  # noqa: E402
from eenet.decoding.executor import Executor  # noqa: E402
from eenet.decoding.layerskip import ExitCurriculum, exit_weights, exits_loss  # noqa: E402
from eenet.decoding.sequences import Sequences  # noqa: E402
from eenet.decoding.tuning import PlanDraws, PlanWeights, plan_loss, text_batch  # noqa: E402
from eenet.errors import UserError  # noqa: E402
from tests._dummies.decoders import FAMILIES, LAYERS, TEXTS, cut_model, make_decoder  # noqa: E402

NEXT = [[7, 3, 22], [9], [14, 2]]
BATCH = text_batch(Sequences(TEXTS, [""] * 3, NEXT, (2,), 4), [0, 1, 2])
PLAN = parse_plan("0,2", LAYERS)


def library_loss(model: Any) -> torch.Tensor:
    """What `transformers` makes of each text alone, the prompt's labels left out."""
    found = []
    for prompt, after in zip(TEXTS, NEXT, strict=True):
        ids = torch.tensor([prompt + after])
        found.append(
            F.cross_entropy(
                model(input_ids=ids).logits[0, len(prompt) - 1 : -1], ids[0, len(prompt) :], reduction="none"
            )
        )
    return torch.cat(found)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen2_sliding"])
def test_where_prompts_run_the_plan_the_loss_is_that_of_a_model_of_its_layers(name: str) -> None:
    gpt = make_decoder(name)
    cut = cut_model(gpt, PLAN.layers)
    mine, theirs = plan_loss(gpt, BATCH, PLAN, "plan"), library_loss(cut)
    assert torch.allclose(mine, theirs, atol=1e-5)
    mine.mean().backward()
    theirs.mean().backward()
    own = dict(gpt.model.named_parameters())
    layers = f"{gpt.parts.path}.{gpt.parts.name}"
    for number, layer in enumerate(PLAN.layers):
        for key, weight in cut.get_submodule(f"{layers}.{number}").named_parameters():
            assert torch.allclose(own[f"{layers}.{layer}.{key}"].grad, weight.grad, atol=1e-5)
    assert all(weight.grad is None for layer in (1, 3) for weight in gpt.layers[layer].parameters())


def test_where_prompts_run_all_layers_the_loss_is_that_of_reading_token_by_token() -> None:
    gpt = make_decoder("llama")
    followed = follow(Executor(gpt, PLAN), TEXTS, NEXT)
    assert torch.allclose(plan_loss(gpt, BATCH, PLAN), torch.cat([nll for nll, _ in followed]), atol=1e-5)
    assert torch.allclose(plan_loss(gpt, BATCH, full_plan(LAYERS)), library_loss(gpt.model), atol=1e-5)


def test_gradients_pass_what_a_prompt_skips_and_leave_its_weights_alone() -> None:
    gpt = make_decoder("llama")
    plan_loss(gpt, BATCH, parse_plan("0,3", LAYERS)).mean().backward()
    reached = [any(weight.grad is not None for weight in layer.parameters()) for layer in gpt.layers]
    assert reached == [True, False, False, True]
    alone = gpt.layers[0].mlp.up_proj.weight.grad
    gpt.zero_grad()
    plan_loss(gpt, BATCH, parse_plan("0,3", LAYERS), "plan").mean().backward()
    assert not torch.allclose(alone, gpt.layers[0].mlp.up_proj.weight.grad)


def test_drawn_plans_are_as_likely_as_they_should_be() -> None:
    torch.manual_seed(0)
    draws = PlanDraws(("drop:0.5", "early:*"), 4)
    plans = [draws.draw(lambda: torch.rand(()).item()) for _ in range(4000)]
    share = [sum(layer in plan.layers for plan in plans) / len(plans) for layer in range(4)]
    # Half of the draws drop layer l with 0.5 (2^(l/3) - 1), half run the first 1 to 4 layers.
    expected = [0.5 * (1 - 0.5 * (2 ** (layer / 3) - 1)) + 0.5 * (4 - layer) / 4 for layer in range(4)]
    assert share == pytest.approx(expected, abs=0.03)
    assert draws.layers == (0, 1, 2, 3)
    assert draws.plans == []
    assert PlanDraws(("0,2", "early:2"), 4).layers == (0, 1, 2)
    strided = PlanDraws(("strided:*",), 4)
    assert [strided.covers(parse_plan(text, 4)) for text in ("0,2", "0-1", "0-3")] == [True, False, True]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((), "name at least one plan"),
        (("strided:9",), "1 to 4"),
        (("drop:1",), "below 1"),
        (("drop:often",), "is a number"),
        (("sometimes",), "is no plan"),
    ],
)
def test_draws_that_are_none_are_refused(entries: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PlanDraws(entries, 4)


def write_tuned(folder: Path, kind: str, plans: tuple[str, ...] = ("0,2",)) -> Gpt:
    """A base model in `folder/base`, weights tuned in some way in `folder/KIND`, and the decoder that they were of."""
    gpt = make_decoder("llama")
    gpt.model.save_pretrained(folder / "base")
    draws = PlanDraws(plans, LAYERS)
    described = Tuned(str(folder / "base"), model_digest(gpt.model), LAYERS, draws.layers, plans, kind)
    if kind == "lora":
        gpt.requires_grad_(False)
        add_adapter(gpt.model, draws.layers, 2, 4)
    for number, layer in enumerate(gpt.layers):
        if number not in draws.layers:
            layer.requires_grad_(False)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in gpt.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn_like(weight)
    save_tuned(gpt.model, described, folder / kind)
    return gpt


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_tuned_weights_are_kept_alone_and_put_back_into_their_layers(tmp_path: Path, kind: str) -> None:
    gpt = write_tuned(tmp_path, kind)
    loaded = Gpt(task="tokens", pretrained=str(tmp_path / kind)).eval()
    ids = {"input_ids": torch.tensor(TEXTS[:1])}
    base = make_decoder("llama")
    with torch.no_grad():
        assert torch.allclose(loaded(ids), gpt(ids), atol=1e-5)
        assert not torch.allclose(loaded(ids), base(ids), atol=1e-2)
    for number, (own, other) in enumerate(zip(loaded.layers, base.layers, strict=True)):
        same = all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))
        assert same == (number not in PLAN.layers)
    file = next((tmp_path / kind).glob("*.safetensors"))
    assert all(".layers.0." in key or ".layers.2." in key for key in load_file(file) if ".layers." in key)
    assert not any(".layers.1." in key for key in load_file(file))


def test_peft_reads_the_adapter_as_it_is(tmp_path: Path) -> None:
    gpt = write_tuned(tmp_path, "lora")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(make_decoder("llama").model), tmp_path / "lora").eval()
    ids = torch.tensor(TEXTS[:1])
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids).logits, gpt({"input_ids": ids}), atol=1e-5)


def test_models_with_adapters_of_peft_are_taken(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(make_decoder("llama").model, config).eval()
    ids = torch.tensor(TEXTS[:1])
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
    make_decoder("llama").model.save_pretrained(tmp_path / "base")
    theirs.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    theirs.save_pretrained(tmp_path / "adapter")
    assert base_of(tmp_path / "adapter") == str(tmp_path / "base")
    with torch.no_grad():
        assert torch.allclose(
            Gpt(task="tokens", pretrained=str(tmp_path / "adapter"))({"input_ids": ids}), expected, atol=1e-5
        )
        assert torch.allclose(Gpt.of(theirs).eval()({"input_ids": ids}), expected, atol=1e-5)
    prompts = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=16, num_layers=LAYERS, num_attention_heads=4
    )
    with pytest.raises(UserError, match="no adapters that could be merged"):
        Gpt.of(peft.get_peft_model(make_decoder("llama").model, prompts))


def change(folder: Path, **values: Any) -> None:
    path = folder / "tuned.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_weights_of_another_model_or_of_other_layers_are_refused(tmp_path: Path, kind: str) -> None:
    write_tuned(tmp_path, kind)
    folder = tmp_path / kind

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            Gpt(task="tokens", pretrained=str(folder))

    change(folder, num_layers=5)
    refused("of a model with 5 layers")
    change(folder, num_layers=LAYERS, layers=[0, 1])
    refused(r"holds weights of layers \[2\]")
    change(folder, layers=[0, 2])
    file = next(folder.glob("*.safetensors"))
    state = load_file(file)
    shifted = {key.replace("layers.2", "layers.3"): value for key, value in state.items()}
    save_file(shifted, file)
    refused(r"holds weights of layers \[3\]")
    save_file(
        {key: value for key, value in state.items() if kind == "full" or "q_proj" not in key}
        | ({"stray": torch.ones(1)} if kind == "full" else {}),
        file,
    )
    refused("does not fit its base model")
    save_file(state, file)
    other = make_decoder("llama", seed=5)
    other.model.save_pretrained(tmp_path / "base")
    refused("was tuned on other weights")
    (folder / "tuned.json").write_text("{}")
    refused("does not describe tuned weights")


def test_each_plan_runs_with_the_weights_that_were_tuned_for_it(tmp_path: Path) -> None:
    write_tuned(tmp_path / "a", "full", ("early:2",))
    write_tuned(tmp_path / "b", "lora", ("drop:0.2",))
    gpt = make_decoder("llama")
    a, b = str(tmp_path / "a" / "full"), str(tmp_path / "b" / "lora")
    weights = PlanWeights(gpt, [b, a])
    assert [weights.name(plan) for plan in (early_exit(LAYERS, 2), full_plan(LAYERS))] == [a, b]
    assert PlanWeights(gpt, [a])(PLAN) is gpt
    assert weights(PLAN) is weights(full_plan(LAYERS)) is not gpt
    assert len({weights.digest(plan) for plan in (PLAN, early_exit(LAYERS, 2))}) == 2
    with pytest.raises(UserError, match="holds no tuned weights"):
        PlanWeights(gpt, [str(tmp_path / "a" / "base")])


def test_the_loss_of_exits_is_that_of_models_of_the_first_layers() -> None:
    gpt = make_decoder("llama")
    first, whole = (library_loss(cut_model(gpt, tuple(range(count)))).mean() for count in (2, LAYERS))
    found = exits_loss(gpt, BATCH, full_plan(LAYERS), [0.0, 0.25, 0.0, 0.75])
    assert found.item() == pytest.approx((0.25 * first + 0.75 * whole).item(), rel=1e-5)
    skipped = exits_loss(gpt, BATCH, PLAN, [0.0, 0.0, 1.0, 0.0], "plan")
    assert skipped.item() == pytest.approx(library_loss(cut_model(gpt, PLAN.layers)).mean().item(), rel=1e-5)


@pytest.mark.parametrize("opened", [set(range(6)), {1, 3, 5}, {5}])
def test_exits_weigh_what_the_paper_says(opened: set[int]) -> None:
    scale = 0.3
    raw = [scale * sum(range(layer + 1)) for layer in range(5)] + [5 + scale * sum(range(5))]
    total = sum(raw[layer] for layer in opened)
    expected = [raw[layer] / total if layer in opened else 0 for layer in range(6)]
    assert exit_weights(6, scale, opened) == pytest.approx(expected)


def test_every_exit_has_its_turn() -> None:
    turns = ExitCurriculum.parse("rotational:3", 7)
    seen = [layer for step in range(3) for layer in turns.open(step, 0.0)]
    assert sorted(seen) == [0, 1, 2, 3, 4, 5, 6, 6, 6]


@pytest.mark.parametrize("text", ["rotational", "rotational:0", "rotational:9", "gradual:2", "some"])
def test_unknown_curricula_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"exits = '{text}': must be all, gradual, or rotational:R with R from 1 to 4"):
        ExitCurriculum.parse(text, 4)
