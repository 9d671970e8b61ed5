"""The routine on the digits: what it trains, what it keeps, and that its results agree with each other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules import Digits
from eenet.cli.main import main
from eenet.errors import UserError
from eenet.features import FeatureOptions
from eenet.quantization import QuantizedNetwork
from lightning_modules import QuEE
from lightning_modules.tensorboard import TensorBoardReport
from tests._dummies import make_vit

pytestmark = pytest.mark.forks

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def make_routine(**arguments: Any) -> QuEE:
    network = QuantizedNetwork(make_vit(), [1], widths=[32, 4])
    sgd = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)  # noqa: E731
    return QuEE(network, **{"budgets": [0.5, 5.0], "optimizer": sgd, **arguments})


def make_trainer(folder: Path, epochs: int = 2, **arguments: Any) -> Trainer:
    return Trainer(default_root_dir=folder, max_epochs=epochs, **{**QUIET, "num_sanity_val_steps": 0, **arguments})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuEE, Path, dict]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("quee")
    routine, data, trainer = make_routine(features="memory"), Digits(validation_fraction=0.4), make_trainer(folder)
    routine.before = [weight.clone() for weight in routine.network.backbone.parameters()]  # type: ignore[assignment]
    trainer.fit(routine, datamodule=data)
    trainer.save_checkpoint(folder / "last.ckpt")
    validated = routine.results
    trainer.test(routine, datamodule=data, verbose=False)
    return routine, folder, validated


def found_samples(routine: QuEE) -> int:
    assert routine.validated_on is not None
    return routine.validated_on.samples


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_results_have_the_fields_of_every_run_and_bitops(run: tuple[QuEE, Path, dict]) -> None:
    routine, folder, _ = run
    found = results(folder)
    fields = {"schema", "method", "data", "backbone", "seed", "split", "operating_points", "exits", "versions", "costs"}
    assert fields <= set(found)
    assert (found["method"], found["split"]) == ("quee", "test")
    network = routine.network
    assert [row["name"] for row in found["operating_points"]] == ["budget-0.5", "budget-5"]
    for row in found["operating_points"]:
        assert sum(row["paths"].values()) == pytest.approx(1)
        nodes = {tuple(map(int, path.split("-"))): share for path, share in row["paths"].items()}
        column = network.costs.columns["bitops"]
        expected = sum(share * column.routed[network.tree.index[path]] for path, share in nodes.items())
        assert row["bitops"] == pytest.approx(expected)
        assert row["bitops_fraction"] == pytest.approx(expected / (1024 * network.costs.full))
        assert row["exit_fractions"][0] == pytest.approx(sum(s for path, s in nodes.items() if len(path) == 1))
    assert found["static_widths"]["32"][-1]["bitops_fraction"] == pytest.approx(1)
    assert found["exits"] == found["static_widths"]["32"]
    assert found["quantization"]["range_methods"].keys() == {"32", "4"}
    for name in ("accuracy_cost", "exit_histogram", "accuracy_bitops", "path_histogram", "predictor_calibration"):
        assert (folder / f"{name}.png").is_file()


def test_what_is_routed_lies_on_the_curve_of_the_reference(run: tuple[QuEE, Path, dict]) -> None:
    found, points = results(run[1]), run[0].own_points()
    for budget, row in zip(run[0].budgets, found["operating_points"], strict=True):
        chosen = next(judged for judged in found["at_budgets"] if judged["budget"] == budget)["union"]
        own = points[row["name"]]
        assert (own.path is None) == (chosen["path"] is None)
        if own.path is None:
            setting = own.policy.arguments()
            assert (setting["first_width"], setting["tradeoff"]) == (chosen["width"], chosen["knob"])
        twins = [chosen]
        assert row["accuracy"] == pytest.approx(twins[0]["accuracy"], abs=0.01)
        assert row["bitops_fraction"] == pytest.approx(twins[0]["cost"], rel=0.02)


def test_budgets_are_kept_on_validation_and_compared_with_the_halves(run: tuple[QuEE, Path, dict]) -> None:
    routine, folder, _ = run
    curves = routine.curves()
    for budget, policy in zip(routine.budgets, routine.policies().values(), strict=True):
        setting = policy.first_width, policy.tradeoff  # type: ignore[attr-defined]
        point = next(p for p in curves["quee"] if (p.width, p.knob) == setting)
        assert point.cost <= budget
        assert point.accuracy == max(p.accuracy for p in curves["quee"] if p.cost <= budget)
    best = [max(p.accuracy for p in curves["union"] if p.cost <= budget) for budget in routine.budgets]
    rows = run[2]["operating_points"]
    assert [row["accuracy"] for row in rows] == pytest.approx(best)
    assert all(sum(row["paths"].values()) == pytest.approx(1) for row in rows)
    for row in results(folder)["at_budgets"]:
        names = {"budget", "quee", "thresholds", "early_exit", "quantized_early_exit", "static", "union"}
        assert set(row) == names
        assert row["early_exit"] is None or row["early_exit"]["width"] == 32


def test_no_predictor_is_better_than_the_oracle(run: tuple[QuEE, Path, dict]) -> None:
    found = results(run[1])
    best = {name: max(p["accuracy"] for p in rows) for name, rows in found["curves_of_other_predictors"].items()}
    assert set(best) == {"constant", "confidence", "clairvoyant", "oracle"}
    assert best["oracle"] >= max(p["accuracy"] for p in found["curves"]["quee"])
    assert best["oracle"] >= max(best.values())
    summary = found["predictors"]["summary"]
    assert summary["brier"] < summary["brier_constant"] + 0.02


def test_training_touches_heads_and_predictors_only(run: tuple[QuEE, Path, dict]) -> None:
    routine = run[0]
    after = routine.network.backbone.parameters()
    assert all(torch.equal(a, b) for a, b in zip(routine.before, after, strict=True))  # type: ignore[arg-type]
    static = routine.results["static_widths"]
    assert static["32"][0]["accuracy"] > 0.15
    assert (routine.steps > 0).any()
    assert len(routine.out_of_fold) == found_samples(routine)


def test_another_budget_needs_no_training(run: tuple[QuEE, Path, dict], tmp_path: Path) -> None:
    checkpoint = str(run[1] / "last.ckpt")
    other = make_routine(budgets=[0.5, 0.2])
    make_trainer(tmp_path).test(other, datamodule=Digits(validation_fraction=0.4), ckpt_path=checkpoint, verbose=False)
    rows = other.results["operating_points"]
    assert [row["name"] for row in rows] == ["budget-0.5", "budget-0.2"]
    assert rows[0] == run[0].results["operating_points"][0]


def test_a_budget_that_no_path_keeps_is_said_and_keeps_nothing_from_the_others(
    run: tuple[QuEE, Path, dict], tmp_path: Path
) -> None:
    routine = make_routine(budgets=[0.5, 0.001])
    with pytest.warns(UserWarning, match=r"budget-0\.001 cannot be met: the cheapest path costs"):
        make_trainer(tmp_path).test(
            routine,
            datamodule=Digits(validation_fraction=0.4),
            ckpt_path=str(run[1] / "last.ckpt"),
            verbose=False,
        )
    assert list(routine.unmet) == ["budget-0.001"]
    assert routine.results["operating_points"][0] == run[0].results["operating_points"][0]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [5.0, 0.001])
def test_figures_are_drawn_in_tensorboard_as_soon_as_there_is_something_to_draw(
    drawn: None, budget: float, tmp_path: Path
) -> None:
    routine, logger = make_routine(budgets=[budget]), TensorBoardLogger(tmp_path, name="", version="")
    trainer = make_trainer(tmp_path, logger=logger, callbacks=[TensorBoardReport()], limit_train_batches=2)
    trainer.fit(routine, datamodule=Digits(validation_fraction=0.4))
    events = EventAccumulator(str(tmp_path)).Reload()
    epochs = {name.removeprefix("val/"): len(events.Images(name)) for name in events.Tags()["images"]}
    fitted = {"accuracy_bitops": 1, "path_histogram": 1, "predictor_calibration": 1}
    every = {"accuracy_cost": 2, "exit_histogram": 2, "reliability": 2}
    assert epochs == (every | fitted if budget > 1 else every)


@pytest.mark.slow
def test_features_in_memory_train_the_same_heads(tmp_path: Path) -> None:
    heads = []
    for features in ("off", "memory"):
        torch.manual_seed(0)
        routine, data = make_routine(features=features), Digits()
        make_trainer(tmp_path / features, max_steps=4).fit(routine, datamodule=data)
        heads.append(routine.network.inference_modules.state_dict())
    for name, weight in heads[0].items():
        torch.testing.assert_close(weight, heads[1][name], atol=1e-3, rtol=1e-2)


def fit_from_disk(folder: Path, routine: QuEE, **arguments: Any) -> list[int]:
    """Train from a store in a folder; how many samples each call of the backbone's paths had."""
    seen: list[int] = []
    extract = routine.network.extract
    routine.network.extract = lambda inputs: (seen.append(len(inputs)), extract(inputs))[1]  # type: ignore
    routine.features = FeatureOptions("disk", folder=str(folder / "features"))
    data = Digits(batch_size=arguments.pop("batch_size", 64))
    ckpt_path = arguments.pop("ckpt_path", None)
    quiet = {"enable_checkpointing": False, **arguments}  # so that one folder takes several trainings
    make_trainer(folder, **quiet).fit(routine, datamodule=data, ckpt_path=ckpt_path)
    return seen


def stores(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("features/*/manifest.json")}


def seeded(**arguments: Any) -> QuEE:
    torch.manual_seed(0)
    return make_routine(**arguments)


@pytest.mark.slow
def test_features_of_paths_are_kept_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    memory = seeded(features="memory")
    make_trainer(tmp_path / "memory").fit(memory, datamodule=Digits(batch_size=64))
    disk = seeded()
    assert len(fit_from_disk(tmp_path, disk)) > 2
    for name, values in memory.state_dict().items():
        assert torch.equal(values, disk.state_dict()[name]), name
    again = seeded()
    assert fit_from_disk(tmp_path, again) == [1, 1]  # the first sample of a split gives the layout
    assert torch.equal(again.path_points, memory.path_points)
    assert len(stores(tmp_path)) == 2
    main(["features", "verify", "--folder", str(tmp_path / "features")])
    assert "(digits train): 1 of 1 shards are whole" in capsys.readouterr().out


@pytest.mark.slow
def test_a_resumed_run_finds_its_store(tmp_path: Path) -> None:
    routine = seeded()
    fit_from_disk(tmp_path, routine, epochs=3, max_steps=8)
    checkpoint = tmp_path / "part.ckpt"
    routine.trainer.save_checkpoint(checkpoint)
    found = stores(tmp_path)
    torch.manual_seed(7)
    rest = make_routine()
    assert fit_from_disk(tmp_path, rest, epochs=3, ckpt_path=str(checkpoint)) == [1, 1]
    assert stores(tmp_path) == found
    assert torch.equal(rest.network.ranges, routine.network.ranges)


class UnequalRanges(QuEE):
    """Every process sees other values while ranges are chosen."""

    def inputs(self, split: str, batches: int) -> Any:
        return (rows * (1 + self.global_rank) for rows in super().inputs(split, batches))


@pytest.mark.slow
def test_two_processes_share_one_store(tmp_path: Path) -> None:
    single = seeded()
    fit_from_disk(tmp_path / "one", single, epochs=3, max_steps=8)
    torch.manual_seed(0)
    network = make_routine().network
    routine = UnequalRanges(network, budgets=[0.5], optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork", find_unused_parameters=True)
    fit_from_disk(tmp_path / "two", routine, epochs=3, max_steps=8, batch_size=32, strategy=strategy, devices=2)
    assert stores(tmp_path / "two") == stores(tmp_path / "one")
    assert torch.equal(routine.network.ranges, single.network.ranges)


@pytest.mark.slow
def test_a_run_that_ends_before_its_last_epoch_fits_its_predictors_on_the_whole_split(tmp_path: Path) -> None:
    routine = make_routine()
    trainer = make_trainer(tmp_path, epochs=3, max_steps=1, limit_train_batches=1, limit_val_batches=1)
    trainer.fit(routine, datamodule=Digits(eval_batch_size=64))
    assert routine.validated_on is not None
    assert routine.validated_on.samples == 144
    trainer.test(routine, datamodule=Digits(), verbose=False)
    assert all(row["chosen"] for row in routine.results["operating_points"])


def test_a_run_without_predictors_is_not_tested(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"budget-0\.5.*not chosen: no whole validation .*--budget-bitops 0\.5,5`"):
        make_trainer(tmp_path).test(make_routine(), datamodule=Digits(), verbose=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budgets": [0.0]}, r"model\.budgets = 0\.0"),
        ({"calibration_batches": 0}, r"model\.calibration_batches = 0: an empty calibration set"),
        ({"network": QuantizedNetwork(make_vit(), [])}, "at least one early exit"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        QuEE(**{"network": QuantizedNetwork(make_vit(), [1]), **arguments})


def test_too_few_samples_for_predictors_are_refused(tmp_path: Path) -> None:
    data = Digits(validation_fraction=0.015)
    with pytest.raises(UserError, match=r"data\.validation_fraction = 22: gives 22 samples"):
        make_trainer(tmp_path, epochs=1, limit_train_batches=1).fit(make_routine(), datamodule=data)
