"""`eenet bench`: who is timed, on what, and what is said of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import Digits, TextClassification
from eenet.api.benchmarking import measure
from eenet.api.opening import Run, open_run
from eenet.backbones import Bert
from eenet.calibration.points import CALIBRATION
from eenet.cli.main import main
from eenet.errors import UserError
from eenet.network import EarlyExitNetwork
from eenet.reporting.speed import speed_table
from eenet.runtime import Routed
from eenet.runtime.contenders import full_network, nobody_leaves, run_static, static_networks
from lightning_modules import BackboneTraining, JointExits
from tests._dummies import make_network, make_vit
from tests.cli.offline import SMALL_BERT
from tests.cli.test_cli import QUIET, failure, tiny
from tests.datamodules.tiny_files import films, write_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "joint"
    config = tiny(folder.parent / "j.yaml", "JointExits", folder, warmup_epochs=1, phase_batches=2)
    main(["fit", "--config", str(config), *QUIET])
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def bench(folder: Path, *args: str) -> dict[str, Any]:
    main(["bench", str(folder), *args])
    return json.loads((folder / "bench.json").read_text())


def test_macs_are_those_of_testing_and_the_clock_is_paired(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["test", "--config", str(run / "config.yaml"), *QUIET])
    tested = json.loads((run / "results.json").read_text())
    found = bench(run, "--batch-size", "40,360", "--samples", "1000", "--rounds", "2")
    fractions = {row["name"]: row["macs_fraction"] for row in tested["exits"][:-1]}
    fractions |= {f"routed, {row['name']}": row["macs_fraction"] for row in tested["operating_points"]}
    assert [batch["samples"] for batch in found["batches"]] == [360, 360]
    for batch in found["batches"]:
        rows = {row["name"]: row for row in batch["rows"]}
        assert list(rows) == ["full network", *fractions, "routed, nobody leaves"]
        assert rows["full network"]["realised_speedup"] == rows["full network"]["ratio"] == 1
        for name, fraction in fractions.items():
            assert rows[name]["theoretical_speedup"] == pytest.approx(1 / fraction)
            assert rows[name]["ratio"] == pytest.approx(rows[name]["realised_speedup"] * fraction)
            assert 0 < rows[name]["p50_ms"] <= rows[name]["p95_ms"]
        overhead = rows["routed, nobody leaves"]
        assert overhead["theoretical_speedup"] < 1
        assert batch["overhead"] == pytest.approx(1 / overhead["realised_speedup"] - 1)
    assert (run / "bench.png").stat().st_size > 1000
    assert "overhead when nobody leaves early, batch 360" in capsys.readouterr().out


def test_the_conditions_are_stated(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in run.iterdir())
    torch.set_num_threads(2)
    main(["bench", str(run), "--batch-size=8", "--samples=20", "--rounds=1", "--threads=1", f"--out={tmp_path / 'o'}"])
    found = json.loads((tmp_path / "o" / "bench.json").read_text())
    stated = {"split": "test", "data": "digits", "dtype": "float32", "threads": 1, "rounds": 1, "warm_up_rounds": 1}
    assert stated.items() <= found.items()
    assert found["torch"] == torch.__version__
    assert found["batches"][0]["samples"] == 16
    assert sorted(path.name for path in run.iterdir()) == before
    printed = capsys.readouterr().out
    assert "1 threads, float32" in printed
    assert found["device"] in printed


@pytest.mark.slow
def test_points_come_from_the_calibration(
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["calibrate", str(run), "--budget", "0.5,0.8"])
    main(["calibrate", str(run), "--budget", "0.5", "--policy", "margin"])
    few = ["--batch-size", "4", "--samples", "8", "--rounds", "1"]
    names = [row["name"] for row in bench(run, *few)["batches"][0]["rows"] if row["kind"] == "routed"]
    assert names == ["routed, budget-0.5", "routed, budget-0.8", "routed, margin-budget-0.5"]
    one = bench(run, *few, "--point", "budget-0.8")["batches"][0]["rows"]
    assert [row["name"] for row in one if row["kind"] == "routed"] == ["routed, budget-0.8"]
    assert "point = 'nowhere': the run has budget-0.5" in failure(capsys, "bench", str(run), *few, "--point", "nowhere")
    path = run / CALIBRATION
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {"checkpoint": "another"}))
    assert "of another checkpoint" in failure(capsys, "bench", str(run), *few)
    path.unlink()


def test_sizes_that_nobody_asked_for_are_those_that_the_samples_fill(run: Path) -> None:
    found = bench(run, "--samples", "40", "--rounds", "1")
    assert [batch["batch_size"] for batch in found["batches"]] == [1, 32]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batch-size", "0"], "batch-size = '0'"),
        (["--batch-size", "1.5"], "whole numbers"),
        (["--batch-size", "inf"], "whole numbers"),
        (["--batch-size", "2,2"], "different"),
        (["--batch-size", ""], "batch-size = ''"),
        (["--batch-size", "a"], "numbers between commas"),
        (["--batch-size", "8,65", "--samples", "64"], "batch-size = 65: is more than the 64 samples"),
        (["--batch-size", "361", "--samples", "1000"], "more than the 360 samples"),
        (["--samples", "0"], "samples = 0"),
        (["--rounds", "0"], "rounds = 0"),
        (["--threads", "0"], "threads = 0"),
    ],
)
def test_what_cannot_be_timed_is_one_clear_error(
    args: list[str],
    message: str,
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in failure(capsys, "bench", str(run), *args)
    assert "makes a run" in failure(capsys, "bench", str(run / "nowhere"))


def test_runs_without_exits_are_refused(tmp_path: Path) -> None:
    other = Run(tmp_path, tmp_path / "last.ckpt", BackboneTraining(make_vit()), Digits(), torch.device("cpu"))
    with pytest.raises(UserError, match="early exit"):
        measure(other, [1], False, "all", 8, 1)


@pytest.mark.slow
def test_full_static_and_routed_networks_are_compiled_alike(
    run: Path,
    interpreted: list[str],
) -> None:
    opened = open_run(str(run))
    found = measure(opened, [4], True, "all", 8, 1)
    steps = [f"exit_{exit}" for exit in range(4)]
    assert sorted(interpreted) == sorted(["full_network", "static_0", "static_1", "static_2", *steps, *steps])
    assert "compiled" in str(speed_table(found).title)


@torch.no_grad()
def test_contenders_compute_what_they_stand_for() -> None:
    network, inputs = make_network(), torch.randn(6, 1, 8, 8)
    logits = network(inputs).logits
    torch.testing.assert_close(full_network(network).run(inputs), logits[:, -1])
    for exit, static in enumerate(static_networks(network)):
        torch.testing.assert_close(static.run(inputs), logits[:, exit])
        torch.testing.assert_close(run_static(network, exit, inputs), logits[:, exit])
    routed = nobody_leaves(network).run(inputs)
    assert isinstance(routed, Routed)
    assert routed.exits.tolist() == [3] * 6
    torch.testing.assert_close(routed.logits, logits[:, -1])


def test_texts_are_collated_for_every_batch_size(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    train = tmp_path / "train.csv"
    train.write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(films(80))))
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    data = TextClassification(train=str(train), test=None, tokenizer=tokenizer, max_length=32)
    network = EarlyExitNetwork(Bert(2, overrides={**SMALL_BERT, "num_hidden_layers": 3}, example_tokens=8)).eval()
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(b"weights")
    seen: list[tuple[int, ...]] = []
    embed = network.backbone.embed
    network.backbone.embed = lambda inputs: seen.append(inputs["input_ids"].shape) or embed(inputs)  # type: ignore[method-assign, func-returns-value]
    routine = JointExits(network)
    routine.joint_batches = 1  # gates that never trained are not timed
    run = Run(folder, checkpoint, routine, data, torch.device("cpu"))
    found = measure(run, [1, 4], False, "all", 8, 1)
    assert [batch["samples"] for batch in found["batches"]] == [8, 8]
    widths = {size: {width for rows, width in seen if rows == size} for size in (1, 4)}
    assert len(widths[1]) > 1, "single texts are not padded"
    assert max(widths[4]) == max(widths[1])


def test_a_profile_is_kept_and_budgets_in_milliseconds_are_met_by_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["calibrate", str(run), "--budget-ms", "1000", "--batch-size", "40"])
    assert "eenet bench RUN --profile" in capsys.readouterr().err
    main(["bench", str(run), "--profile", "--batch-size", "40", "--rounds", "2", "--threads", "1"])
    assert "hand-over" in capsys.readouterr().out
    (profile,) = json.loads((run / "profile.json").read_text())["profiles"]
    assert (profile["runtime"], profile["batch_size"], len(profile["segments"])) == ("torch", 40, 4)
    main(["calibrate", str(run), "--budget-ms", "1000", "--batch-size", "40", "--threads", "1"])
    point = json.loads((run / CALIBRATION).read_text())["points"]["budget-ms-1000"]
    assert point["asked"] == {"budget-ms": 1000}
    assert 0 < point["got"]["ms"] <= 1000
    assert "ms by the clock" in capsys.readouterr().out


def test_a_point_with_fewer_exits_is_tested_by_the_numbers_of_the_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["calibrate", str(run), "--max-accuracy-drop", "100", "--policy", "margin", "--place"])
    point = json.loads((run / CALIBRATION).read_text())["points"]["margin-max-accuracy-drop-100-placed"]
    assert point["kept"] == [0]
    assert " exits " in capsys.readouterr().out
    main(["test", str(run), "--point", "margin-max-accuracy-drop-100-placed"])
    results = json.loads((run / "results.json").read_text())
    (row,) = results["operating_points"]
    assert row["kept"] == [0]
    assert row["exit_fractions"] == [1, 0, 0, 0]
    assert row["accuracy"] == results["exits"][0]["accuracy"]
    assert row["macs_fraction"] == pytest.approx(point["got"]["macs_fraction"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bench", "--runtime", "tensorrt"], "must be one of torch, onnx"),
        (["bench", "--runtime", "onnx", "--compile"], "compile = True"),
        (["bench", "--compile"], "give --runtime onnx"),
        (["calibrate", "--budget-ms", "-1"], "budget-ms = -1.0"),
    ],
)
def test_wrong_runtimes_and_budgets_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    command, *rest = args
    with pytest.raises(SystemExit):
        main([command, str(run), *rest])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_onnx_runtime_runs_all_contenders_and_is_profiled(run: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    main(["bench", str(run), "--runtime=onnx", "--batch-size=1,40", "--samples=80", "--rounds=2", f"--out={tmp_path}"])
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["runtime"] == "onnx"
    for batch in found["batches"]:
        assert batch["rows"][0]["name"] == "full network"
        assert [row["kind"] for row in batch["rows"]][-1] == "overhead"
        assert all(row["cpu_speedup"] > 0 for row in batch["rows"])
    main(["bench", str(run), "--profile", "--runtime=onnx", "--batch-size=1", "--rounds=5", "--threads=1"])
    profile = json.loads((run / "profile.json").read_text())["profiles"][-1]
    assert profile["runtime"] == "onnx"
    assert min(profile["segments"]) > 0
    main(["calibrate", str(run), "--budget-ms=1000", "--runtime=onnx", "--threads=1"])
    assert json.loads((run / CALIBRATION).read_text())["points"]["budget-ms-1000"]["got"]["ms"] < 1000
