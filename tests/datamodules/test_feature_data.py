"""Training from features against training through the backbone: the same batches, the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from datamodules import Digits
from eenet.errors import UserError
from eenet.features import FeatureOptions
from eenet.gates import ConfidenceGate
from eenet.inference_modules import MLPHead
from eenet.network import ExitFeatures
from lightning_modules import DecoupledExits, JointExits
from lightning_modules.callbacks import RandomState
from lightning_modules.routine import ExitRoutine
from tests._dummies import make_network

pytestmark = pytest.mark.forks


def make_routine(kind: str = "joint", **arguments: Any) -> ExitRoutine:
    seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    if kind == "decoupled":
        return DecoupledExits(make_network(gate=ConfidenceGate), budgets=[0.7])
    network = make_network(inference_module=lambda dim, classes: MLPHead(dim, classes, hidden=8, **arguments))
    return JointExits(network, tradeoff=0.1, warmup_epochs=1, phase_batches=3)


def make_data(augment: bool = False, batch_size: int = 64) -> Digits:
    return Digits(augment=augment, batch_size=batch_size, eval_batch_size=100)


def make_trainer(folder: Path, epochs: int = 2, **arguments: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    usual = {"callbacks": [RandomState()], "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", default_root_dir=folder, max_epochs=epochs, **{**quiet, **usual, **arguments})


class StopAfter(Checkpoint):
    """Ends the training after some epochs, leaving a checkpoint."""

    def __init__(self, epochs: int, path: Path) -> None:
        self.epochs, self.path = epochs, path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 == self.epochs:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def fit(
    folder: Path,
    routine: ExitRoutine,
    options: FeatureOptions | None,
    augment: bool = False,
    ckpt_path: Path | None = None,
    **arguments: Any,
) -> ExitRoutine:
    data = make_data(augment)
    trainer = make_trainer(folder, **arguments)
    routine.features = options
    trainer.fit(routine, datamodule=data, ckpt_path=ckpt_path)
    return routine


def assert_same_weights(first: ExitRoutine, second: ExitRoutine) -> None:
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, values in states[0].items():
        torch.testing.assert_close(values, states[1][name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("kind", "store"), [("joint", "disk"), pytest.param("decoupled", "memory", marks=pytest.mark.slow)]
)
def test_weights_equal_those_of_the_slow_path(kind: str, store: Any, tmp_path: Path) -> None:
    options = FeatureOptions(store, folder=str(tmp_path))
    before = make_routine(kind)
    slow = fit(tmp_path, make_routine(kind), None)
    fast = fit(tmp_path, make_routine(kind), options)
    assert_same_weights(slow, fast)
    moved = [not torch.equal(values, before.state_dict()[name]) for name, values in slow.state_dict().items()]
    assert sum(moved) >= 6
    assert slow.results["exits"][0]["accuracy"] == pytest.approx(fast.results["exits"][0]["accuracy"], abs=0.02)


class Recorder(Callback):
    """What a callback sees of the steps of a training."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(("start", batch_idx, trainer.global_step, pl_module.phase))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        gradients = [weight.grad is None for group in optimizer.param_groups for weight in group["params"]]
        self.seen.append(("step", optimizer.param_groups[0]["lr"], gradients))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((outputs["loss"].item(), batch_idx, trainer.global_step, trainer.is_last_batch))


def test_the_quick_step_is_lightnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for quick in (True, False):
        if not quick:
            monkeypatch.setattr("lightning_modules.quick.quicken", lambda trainer: None)
        recorder, logger = Recorder(), CSVLogger(tmp_path, version=str(quick))
        data, routine = make_data(), make_routine(dropout=0.5)
        routine.features = FeatureOptions()
        limits: dict[str, Any] = {"limit_train_batches": 5, "val_check_interval": 2, "max_steps": 8}
        every = {"logger": logger, "log_every_n_steps": 3, "callbacks": [RandomState(), recorder]}
        trainer = make_trainer(tmp_path, **limits, **every)
        trainer.fit(routine, datamodule=data)
        assert ("advance" in vars(trainer.fit_loop.epoch_loop)) == quick
        found.append((routine.state_dict(), recorder.seen, trainer.fit_loop.state_dict(), Path(logger.log_dir)))
    (weights, *first, logs), (others, *second, other_logs) = found
    assert all(torch.equal(values, others[name]) for name, values in weights.items())
    assert first == second
    assert len(first[0]) == 24
    assert (logs / "metrics.csv").read_text() == (other_logs / "metrics.csv").read_text()


class OwnSteps(DecoupledExits):
    """Steps that give more than a loss or nothing, and a first epoch that ends before its data."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if (self.trainer.current_epoch, batch_idx) == (0, 3) else None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 2 else {"loss": super().training_step(batch, batch_idx), "more": batch_idx}


class OneArgument(DecoupledExits):
    """A step that takes no number of its batch."""

    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return super().training_step(batch, 0)


class Outputs(Callback):
    """What steps give, which it then spoils, and the learning rates."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(
            ({**outputs} | {"loss": float(outputs.get("loss", -1))}, trainer.optimizers[0].param_groups[0]["lr"])
        )
        if "loss" in outputs:
            outputs["loss"].zero_()


@pytest.mark.parametrize("kind", [OwnSteps, OneArgument])
def test_own_routines_train_as_with_lightnings_step(
    kind: type[DecoupledExits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for quick in (True, False):
        if not quick:
            monkeypatch.setattr("lightning_modules.quick.quicken", lambda trainer: None)
        torch.manual_seed(0)
        routine, outputs = kind(make_network(gate=ConfidenceGate), budgets=[0.7]), Outputs()
        monkeypatch.setattr(routine.losses, "add", lambda *_, own=outputs.seen: own.append(_[-1]))
        trainer = make_trainer(tmp_path, limit_train_batches=5, limit_val_batches=0, callbacks=[outputs])
        routine.features = FeatureOptions()
        trainer.fit(routine, datamodule=make_data())
        assert ("advance" in vars(trainer.fit_loop.epoch_loop)) == (quick and kind is OwnSteps)
        found.append((outputs.seen, trainer.fit_loop.state_dict(), routine.state_dict()))
    (*first, weights), (*second, others) = found
    assert first == second
    assert all(torch.equal(values, others[name]) for name, values in weights.items())


def test_gradients_are_clipped_that_the_quick_step_leaves_to_lightning(tmp_path: Path) -> None:
    ways = []
    for clip in (1e-9, None):
        routine = fit(tmp_path, make_routine(), FeatureOptions(), epochs=1, gradient_clip_val=clip)
        pairs = zip(routine.parameters(), make_routine().parameters(), strict=True)
        ways.append(max((weight - start).abs().max().item() for weight, start in pairs))
    assert ways[0] < 2e-3 < ways[1] / 5  # weight decay is not clipped


@pytest.mark.slow
def test_dropout_draws_the_same_units(tmp_path: Path) -> None:
    slow = fit(tmp_path, make_routine(dropout=0.5), None)
    assert_same_weights(slow, fit(tmp_path, make_routine(dropout=0.5), FeatureOptions()))


@pytest.mark.slow
def test_as_many_views_as_epochs_equal_the_augmented_slow_path(tmp_path: Path) -> None:
    slow = fit(tmp_path, make_routine(), None, augment=True, epochs=3)
    options = FeatureOptions("disk", views=3, folder=str(tmp_path / "features"))
    assert_same_weights(slow, fit(tmp_path, make_routine(), options, augment=True, epochs=3))
    assert len(list(tmp_path.glob("features/*/manifest.json"))) == 4
    fit(tmp_path, make_routine(), FeatureOptions("disk", views=4, folder=str(tmp_path / "features")), augment=True)
    assert len(list(tmp_path.glob("features/*/manifest.json"))) == 5


def test_views_cycle_by_epoch_and_none_is_the_evaluation_transform() -> None:
    network = make_network()

    def epochs(options: FeatureOptions, augment: bool, count: int) -> list[torch.Tensor]:
        data = make_data(augment)
        data.keep_features(network, options)
        data.prepare_data()
        loader = data.train_dataloader()
        found = []
        for epoch in range(count):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            order = torch.tensor(list(loader.sampler.sampler))  # type: ignore[attr-defined]
            features = torch.cat([extracted.features[0] for extracted, _ in loader])
            found.append(features[order.argsort()])
        return found

    first, second, third = epochs(FeatureOptions(views=2), True, 3)
    assert torch.equal(first, third)
    assert not torch.allclose(first, second)
    plain = epochs(FeatureOptions(), True, 2)
    assert torch.equal(plain[0], plain[1])
    assert torch.equal(plain[0], epochs(FeatureOptions(), False, 1)[0])
    with torch.no_grad():
        inputs = torch.cat([inputs for inputs, _ in make_data().loader("train")])
        torch.testing.assert_close(plain[0], network.extract(inputs).features[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [pytest.param(FeatureOptions(), marks=pytest.mark.slow), None], ids=["memory", "off"]
)
def test_a_run_resumes_bit_for_bit_also_without_the_store(options: FeatureOptions | None, tmp_path: Path) -> None:
    whole = fit(tmp_path, make_routine(dropout=0.3), FeatureOptions(), epochs=4)
    stop = StopAfter(2, tmp_path / "part.ckpt")
    fit(
        tmp_path,
        make_routine(dropout=0.3),
        FeatureOptions(),
        epochs=4,
        enable_checkpointing=True,
        callbacks=[RandomState(), stop],
    )
    torch.manual_seed(99)
    rest = fit(tmp_path, make_routine(dropout=0.3), options, epochs=4, ckpt_path=tmp_path / "part.ckpt")
    for name, values in whole.state_dict().items():
        torch.testing.assert_close(values, rest.state_dict()[name], rtol=0, atol=0 if options else 1e-4, msg=name)


def test_the_test_split_goes_through_the_backbone(tmp_path: Path) -> None:
    routine = fit(tmp_path, make_routine(), FeatureOptions(), epochs=1)
    routine.joint_batches = 1  # gates that never trained do not route
    seen: list[int] = []
    embed = routine.network.backbone.embed

    def count(inputs: torch.Tensor) -> Any:
        seen.append(len(inputs))
        return embed(inputs)

    routine.network.backbone.embed = count  # type: ignore[method-assign]
    results = []
    for options in (None, FeatureOptions()):
        routine.features, data = options, make_data()
        seen.clear()
        make_trainer(tmp_path).test(routine, datamodule=data, verbose=False)
        assert sum(seen) == 2 * 360
        results.append(routine.results)
        predicted = make_trainer(tmp_path).predict(routine, datamodule=data)
        assert sum(len(batch["labels"]) for batch in predicted) == 360
    assert results[0] == results[1]


def test_features_are_not_kept_for_the_next_routine() -> None:
    data, first, second = make_data(), make_routine(), make_routine()
    first.features = FeatureOptions()
    for routine, kind in ((first, ExitFeatures), (second, torch.Tensor)):
        trainer = make_trainer(Path("unused"), limit_train_batches=0, limit_val_batches=1)
        trainer.validate(routine, datamodule=data, verbose=False)
        assert isinstance(next(iter(data.val_dataloader()))[0], kind)


def test_data_that_cannot_keep_features_are_refused(tmp_path: Path) -> None:
    routine = make_routine()
    routine.features = FeatureOptions()
    loader = make_data().loader("val")
    with pytest.raises(UserError, match=r"model\.features = 'memory': must be off for data that are no `SplitData`"):
        make_trainer(tmp_path).fit(routine, loader, loader)


def test_loaders_slice_batches_in_the_raw_order() -> None:
    network = make_network()
    raw, stored = make_data(), make_data()
    stored.keep_features(network, FeatureOptions())
    for epoch in (0, 3):
        loaders = raw.train_dataloader(), stored.train_dataloader()
        for loader in loaders:
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        assert len(loaders[0]) == len(loaders[1])
        for (_, expected), (extracted, labels) in zip(*loaders, strict=True):
            assert isinstance(extracted, ExitFeatures)
            assert torch.equal(labels, expected)


def test_views_of_data_without_augmentation_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.features\.views = 2: digits is not augmented"):
        make_data().keep_features(make_network(), FeatureOptions(views=2))


@pytest.mark.parametrize(
    ("kind", "store"), [pytest.param("decoupled", "memory", marks=pytest.mark.slow), ("joint", "disk")]
)
def test_two_processes_train_the_same_weights(kind: str, store: Any, tmp_path: Path) -> None:
    options = FeatureOptions(store, folder=str(tmp_path / "one"))
    single = fit(tmp_path, make_routine(kind), options, limit_train_batches=20)  # the last one is not full
    routine, data = make_routine(kind), make_data(batch_size=32)
    # JEI-DNN's phases train one of its two parts.
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork", find_unused_parameters=kind == "joint")
    options = FeatureOptions(store, folder=str(tmp_path / "two"))
    trainer = make_trainer(tmp_path, strategy=strategy, devices=2, limit_train_batches=20)
    routine.features = options
    trainer.fit(routine, datamodule=data)
    assert_same_weights(single, routine)
    if store == "disk":
        for one in tmp_path.glob("one/*/exit_*.bin"):
            two = tmp_path / "two" / one.relative_to(tmp_path / "one")
            pair = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32) for path in (one, two)]
            torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-5)
