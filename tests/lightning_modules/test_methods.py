"""The training methods beside JEI-DNN: what they change, what they leave alone, and their names."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.nn import functional as F

from datamodules import Digits
from eenet.errors import UserError
from eenet.gates import ConfidenceGate
from eenet.inference_modules import ConvPoolHead
from eenet.network import EarlyExitNetwork, ExitFeatures
from eenet.objectives import DeepSupervision, SelfDistillation
from lightning_modules import DecoupledExits, ExitRoutine, JointExits, WeightedExits
from tests._dummies import make_network, make_resnet


def train(routine: ExitRoutine, folder: Path, epochs: int = 2, **arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    limits = {"limit_train_batches": 4, "limit_val_batches": 2}
    trainer = Trainer(default_root_dir=folder, max_epochs=epochs, **{**quiet, **limits, **arguments})
    trainer.fit(routine, datamodule=Digits(batch_size=16, eval_batch_size=64))
    return trainer


def thresholded(**arguments: Any) -> EarlyExitNetwork:
    return make_network(gate=ConfidenceGate, **arguments)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


def changed(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    return {name for name, values in module.state_dict().items() if not torch.equal(values, before[name])}


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DecoupledExits(thresholded()), "decoupled"),
        (lambda: DecoupledExits(thresholded(), supervision=DeepSupervision("linear")), "deep_supervision_linear"),
        (lambda: DecoupledExits(thresholded(), supervision=SelfDistillation()), "self_distillation"),
        (lambda: DecoupledExits(thresholded(boosted=True)), "boosted"),
        (lambda: DecoupledExits(thresholded(), freeze_backbone=False), "joint_finetuning"),
        (
            lambda: DecoupledExits(
                thresholded(boosted=True, gradient_rescaling=True),
                supervision=SelfDistillation(),
                freeze_backbone=False,
            ),
            "joint_finetuning+gradient_rescaling+boosted+self_distillation",
        ),
        (lambda: JointExits(make_network()), "jei_dnn"),
        (lambda: JointExits(make_network(boosted=True)), "jei_dnn+boosted"),
        (lambda: JointExits(make_network(), joint=False), "decoupled_gates"),
        (lambda: WeightedExits(thresholded()), "l2w_den"),
    ],
)
def test_a_method_is_named_by_what_it_trains_and_refuses_other_checkpoints(make: Any, name: str) -> None:
    routine = make()
    assert routine.method == name
    checkpoint: dict[str, Any] = {"state_dict": routine.state_dict()}
    routine.on_save_checkpoint(checkpoint)
    make().on_load_checkpoint(checkpoint)
    other = DecoupledExits(thresholded(boosted=True), supervision=DeepSupervision("linear"))
    with pytest.raises(UserError, match="the checkpoint's method"):
        other.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("boosted", "supervision"),
    [
        (True, SelfDistillation()),
        (False, None),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (True, None),
                (False, SelfDistillation()),
                *((b, DeepSupervision("linear")) for b in (True, False)),
            ]
        ),
    ],
)
def test_a_frozen_backbone_stays_as_it_is_under_any_supervision(
    supervision: Any, boosted: bool, tmp_path: Path
) -> None:
    routine = DecoupledExits(thresholded(boosted=boosted), supervision=supervision)
    before = state(routine.network)
    train(routine, tmp_path)
    modules = {name for name in before if name.startswith("inference_modules")}
    assert changed(before, routine.network) == modules


def test_a_training_backbone_learns_with_its_head_and_its_statistics(tmp_path: Path) -> None:
    network = EarlyExitNetwork(make_resnet(), gate=ConfidenceGate, gradient_rescaling=True)
    routine = DecoupledExits(network, freeze_backbone=False, budgets=[1.0])
    before = state(network)
    train(routine, tmp_path)
    assert changed(before, network) == set(before)
    assert any(name.endswith("running_mean") for name in before)


@pytest.mark.slow
def test_joint_finetuning_lowers_every_exits_loss(tmp_path: Path) -> None:
    routine = DecoupledExits(
        thresholded(), freeze_backbone=False, optimizer=lambda params: torch.optim.AdamW(params, lr=3e-3)
    )
    inputs, labels = next(iter(Digits(eval_batch_size=64).val_dataloader()))
    with torch.no_grad():
        before = [F.cross_entropy(logits, labels).item() for logits in routine.eval()(inputs).logits.unbind(1)]
    train(routine, tmp_path, epochs=2, limit_train_batches=1.0)
    with torch.no_grad():
        after = [F.cross_entropy(logits, labels).item() for logits in routine.eval()(inputs).logits.unbind(1)]
    assert all(new < 0.9 * old for new, old in zip(after, before, strict=True))


class Watch(Callback):
    """Notes, for each batch, the phase and the parts of the network that it changed."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, set[str]]] = []

    def on_train_batch_start(self, trainer: Trainer, routine: Any, *_: Any) -> None:
        self.phase, self.before = routine.phase, state(routine.network)

    def on_train_batch_end(self, trainer: Trainer, routine: Any, *_: Any) -> None:
        parts = {name.split(".")[0] for name in changed(self.before, routine.network)}
        self.seen.append((self.phase, parts))


def test_decoupled_gates_learn_after_the_warm_up_and_nothing_else_does(tmp_path: Path) -> None:
    routine, watch = JointExits(make_network(), joint=False, warmup_epochs=2, phase_batches=1), Watch()
    train(routine, tmp_path, epochs=4, callbacks=[watch])
    assert watch.seen == [("warmup", {"inference_modules"})] * 8 + [("gates", {"gate"})] * 8


def test_decoupled_gates_follow_early_stopping(tmp_path: Path) -> None:
    still = JointExits(
        make_network(),
        joint=False,
        warmup_epochs=50,
        warmup_patience=1,
        optimizer=lambda params: torch.optim.SGD(params, lr=1e-9),
    )
    watch = Watch()
    train(still, tmp_path, epochs=3, callbacks=[watch])
    assert [phase for phase, _ in watch.seen] == ["warmup"] * 8 + ["gates"] * 4


def test_sample_weighting_trains_modules_and_weights_alone(tmp_path: Path) -> None:
    routine = WeightedExits(thresholded(), budgets=[0.6], weight_hidden=16)
    network, weights = state(routine.network), state(routine.weight_network)
    train(routine, tmp_path)
    assert changed(network, routine.network) == {name for name in network if name.startswith("inference_modules")}
    assert changed(weights, routine.weight_network) == set(weights)
    assert routine.results["operating_points"][0]["macs_fraction"] <= 0.6


def halves(routine: WeightedExits) -> list[tuple[ExitFeatures, torch.Tensor]]:
    inputs, labels = torch.randn(24, 1, 8, 8, dtype=torch.float64), torch.randint(10, (24,))
    with torch.no_grad():
        return [(routine.network.extract(inputs[rows]), labels[rows]) for rows in torch.arange(24).chunk(2)]


def test_the_meta_gradient_agrees_with_finite_differences_over_true_steps() -> None:
    rate = 0.3
    routine = WeightedExits(thresholded(), weight_hidden=6, weight_strength=0.9).double()
    sample, judges = halves(routine)

    def after_a_true_step() -> float:
        other = copy.deepcopy(routine)
        optimizer = torch.optim.SGD(other.network.inference_modules.parameters(), lr=rate)
        early = other.network.exit_logits(sample[0])
        losses = torch.stack([F.cross_entropy(rows, sample[1], reduction="none") for rows in early.unbind(1)], dim=1)
        raw = other.weight_network.layers(losses.detach()).tanh().detach()
        weights = 1 + 0.9 * (raw - raw.mean())
        (losses[:, :-1] * weights).sum().div(len(weights)).backward()
        optimizer.step()
        return other.meta_loss({}, *judges).item()

    loss = routine.meta_loss(routine.virtual_step(*sample, rate), *judges)
    assert loss.item() == pytest.approx(after_a_true_step())
    loss.backward()
    for parameter in routine.weight_network.parameters():
        assert parameter.grad is not None
        index = parameter.grad.flatten().abs().argmax()
        values, step = parameter.data.view(-1), 1e-5
        values[index] += step
        above = after_a_true_step()
        values[index] -= 2 * step
        below = after_a_true_step()
        values[index] += step
        assert parameter.grad.flatten()[index].item() == pytest.approx((above - below) / (2 * step), rel=1e-4)


def test_the_true_step_takes_the_weights_as_constants() -> None:
    routine = WeightedExits(thresholded(), weight_hidden=6).double()
    sample, _ = halves(routine)
    routine.weighted_loss(*sample, train_weights=False).backward()
    assert all(parameter.grad is None for parameter in routine.weight_network.parameters())
    assert all(parameter.grad is not None for parameter in routine.network.inference_modules.parameters())


def test_a_batch_of_one_sample_is_left_out_by_sample_weighting() -> None:
    routine = WeightedExits(thresholded(), weight_hidden=4)
    assert routine.training_step((torch.zeros(1, 1, 8, 8), torch.tensor([0])), 0) is None


def test_sample_weighting_with_heads_that_cannot_be_batched(tmp_path: Path) -> None:
    network = EarlyExitNetwork(make_resnet(), gate=ConfidenceGate, inference_module=ConvPoolHead, boosted=True)
    routine = WeightedExits(network, weight_hidden=4, budgets=[1.0])
    before = state(network.backbone)
    train(routine, tmp_path, epochs=1)
    assert not changed(before, network.backbone)
    assert routine.method == "l2w_den+boosted"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DecoupledExits(thresholded(), freeze_backbone=False, features="memory"),
            r"model\.features = 'memory'",
        ),
        (lambda: DecoupledExits(thresholded(gradient_rescaling=True)), r"gradient_rescaling = True"),
        (lambda: DecoupledExits(thresholded(exits=[])), "at least one early exit"),
        (lambda: WeightedExits(thresholded(exits=[])), "at least one early exit"),
        (lambda: WeightedExits(make_network()), "need eenet.gates.ConfidenceGate"),
        (lambda: WeightedExits(thresholded(), exit_ratio=0), r"model\.exit_ratio = 0"),
        (lambda: WeightedExits(thresholded(), weight_strength=1.5), r"model\.weight_strength = 1\.5"),
        (lambda: JointExits(make_network(), joint=False, warmup_epochs=0), r"model\.warmup_epochs = 0"),
    ],
)
def test_methods_that_cannot_work_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
