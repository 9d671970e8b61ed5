import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eenet.cli import sweep
from eenet.cli.main import main
from eenet.errors import UserError
from tests._dummies.cluster import Here

ROOT = Path(__file__).parents[2]

FAKE = """
import json, os, sys, time
from pathlib import Path
command, args = sys.argv[1], dict(a.lstrip("-").split("=", 1) for a in sys.argv[2:] if "=" in a)
if command == "fit":
    folder = Path(args["trainer.default_root_dir"])
    with open(folder / "fits.txt", "a") as file:
        file.write(f"{args['ckpt_path']} {os.environ['OMP_NUM_THREADS']}\\n")
    time.sleep(float(os.environ.get("PAUSE", 0)))
    if args.get("model.init_args.tradeoff") == "13":
        sys.exit("unlucky")
    (folder / "config.yaml").write_text(json.dumps(args))
    if args.get("model.init_args.tradeoff") != "12":
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "finished.txt").write_text("no last checkpoint")
elif command == "calibrate":
    with open(Path(sys.argv[2]) / "calibrations.txt", "a") as file:
        file.write(" ".join(sys.argv[3:]) + "\\n")
    wish = sys.argv[4]
    if wish != "0.01":
        (Path(sys.argv[2]) / "calibration.json").write_text("{}")
    if wish == "13":
        sys.exit("a crash")
    if wish in ("0.01", "0.01,0.5"):
        sys.exit("eenet: not met: budget = 0.01: too low")
else:
    config = Path(args["config"])
    values = json.loads(config.read_text())
    seed, tradeoff = int(values["seed_everything"]), float(values["model.init_args.tradeoff"])
    point = {"accuracy": 0.9 - seed / 100, "nll": tradeoff, "ece": 0.1, "macs_fraction": 0.5}
    point = {"name": args.get("point", "learned"), **point}
    (config.parent / "results.json").write_text(json.dumps({"schema": 1, "operating_points": [point]}))
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(sweep, "COMMAND", [sys.executable, str(tmp_path / "fake.py")])
    (tmp_path / "config.yaml").write_text("model: x\n")
    return tmp_path / "config.yaml"


def arguments(config: Path, *more: str) -> list[str]:
    folder = f"--folder={config.parent / 'runs'}"
    return ["sweep", f"--config={config}", "--vary=model.init_args.tradeoff=0.1,1", "--seeds=2", folder, *more]


def test_every_run_is_calibrated_before_its_test(config: Path, capsys: pytest.CaptureFixture) -> None:
    wishes = ["--budget 0.3,0.5", "--budget 0.5 --policy patience"]
    main(arguments(config, *(f"--calibrate={wish}" for wish in wishes)))
    runs = config.parent / "runs"
    for folder in runs.glob("tradeoff*"):
        assert (folder / "calibrations.txt").read_text().splitlines() == wishes
        assert json.loads((folder / "results.json").read_text())["operating_points"][0]["name"] == "all"
    with pytest.raises(SystemExit):
        main(arguments(config))
    assert "another configuration or calibration" in capsys.readouterr().err


@pytest.mark.parametrize(("wish", "point"), [("0.01", "learned"), ("0.01,0.5", "all")])
def test_a_wish_that_cannot_be_met_is_said_and_the_runs_are_tested(
    wish: str, point: str, config: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = config.parent / "runs"
    for _ in range(2):  # the second time all runs are finished
        with pytest.raises(SystemExit) as end:
            main(arguments(config, f"--calibrate=--budget {wish}"))
        assert end.value.code == 1
        said = capsys.readouterr().err.splitlines()
        assert said == [f"{run}: eenet: not met: budget = 0.01: too low" for run in names_of(folder)]
    with open(folder / "sweep.csv") as file:
        assert [row["operating_point"] for row in csv.DictReader(file)] == [point] * 4


def test_a_calibration_that_fails_is_a_failed_run(config: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(arguments(config, "--calibrate=--budget 0.01", "--calibrate=--budget 13"))
    folder = config.parent / "runs"
    assert sum(line.startswith("failed: ") for line in capsys.readouterr().err.splitlines()) == 4
    assert not list(folder.glob("*/results.json"))


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("tradeoff*"))


def test_a_grid_leaves_results_and_one_table(config: Path, capsys: pytest.CaptureFixture) -> None:
    main(arguments(config, "--vary=data.init_args.batch_size=16"))
    runs = config.parent / "runs"
    names = {f"tradeoff={tradeoff},seed={seed}" for tradeoff in ("0.1", "1") for seed in (0, 1)}
    assert {path.parent.name for path in runs.glob("*/results.json")} == names
    arguments_given = json.loads((runs / "tradeoff=1,seed=1" / "config.yaml").read_text())
    assert arguments_given["data.init_args.batch_size"] == "16"
    with open(runs / "sweep.csv") as file:
        rows = [(row["tradeoff"], row["seed"], row["accuracy"], row["nll"]) for row in csv.DictReader(file)]
    assert rows == [
        (tradeoff, seed, accuracy, nll)
        for tradeoff, nll in (("0.1", "0.1"), ("1", "1.0"))
        for seed, accuracy in (("0", "0.9"), ("1", "0.89"))
    ]
    assert "learned" in capsys.readouterr().out


def test_a_cluster_leaves_the_same_table(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(arguments(config))
    table = (config.parent / "runs" / "sweep.csv").read_bytes()
    shutil.rmtree(config.parent / "runs")
    monkeypatch.setattr(sweep, "cluster_of", lambda options: Here(cpus=3))
    main(arguments(config))
    assert (config.parent / "runs" / "sweep.csv").read_bytes() == table
    assert {path.read_text() for path in config.parent.glob("runs/*/fits.txt")} == {"auto 3\n"}
    monkeypatch.setattr(sweep, "cluster_of", lambda options: Here(change=lambda found: found[1:]))
    with pytest.raises(SystemExit):
        main(arguments(config))


def test_points_that_nothing_has_chosen_are_said_and_not_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = sweep.Run(tmp_path / "seed=0", {"seed": 0}, [])
    good = {"name": "a", "accuracy": 0.9, "nll": 0.1, "ece": 0.1, "macs_fraction": 0.5, "chosen": True}
    rows = [good, {"name": "b", "chosen": False, "why": "never"}]
    run.folder.mkdir()
    (run.folder / "results.json").write_text(json.dumps({"schema": 1, "operating_points": rows}))
    sweep.report(tmp_path, [run])
    assert "seed=0: not chosen: b: never\n" in capsys.readouterr().out
    with open(tmp_path / "sweep.csv") as file:
        assert [row["operating_point"] for row in csv.DictReader(file)] == ["a"]


def test_a_finished_run_is_not_run_again(config: Path) -> None:
    main(arguments(config))
    runs = config.parent / "runs"
    (runs / "tradeoff=1,seed=0" / "results.json").unlink()
    main(arguments(config))
    fits = {path.parent.name: path.read_text().splitlines() for path in runs.glob("*/fits.txt")}
    assert {name: len(lines) for name, lines in fits.items() if len(lines) > 1} == {"tradeoff=1,seed=0": 2}
    assert {line.split()[0] for lines in fits.values() for line in lines} == {"auto"}


def test_a_failed_run_is_named_and_the_others_are_reported(config: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(
            [
                "sweep",
                f"--config={config}",
                "--vary=model.init_args.tradeoff=13,1",
                f"--folder={config.parent / 'runs'}",
            ]
        )
    assert end.value.code == 1
    assert "failed: tradeoff=13,seed=0; see" in capsys.readouterr().err
    assert "unlucky" in (config.parent / "runs" / "tradeoff=13,seed=0" / "log.txt").read_text()
    assert (config.parent / "runs" / "sweep.csv").read_text().count("\n") == 2


@pytest.mark.slow
def test_a_killed_sweep_waits_for_its_orphans_and_goes_on(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"from eenet.cli import sweep; sweep.COMMAND = {sweep.COMMAND!r}; sweep.main({arguments(config)[1:]!r})"
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PAUSE": "2"}, cwd=ROOT)
    runs = config.parent / "runs"
    while not list(runs.glob("*/fits.txt")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    started = {path.parent for path in runs.glob("*/fits.txt")}
    assert not any((folder / "config.yaml").is_file() for folder in started)
    begin = time.monotonic()
    main(arguments(config))
    assert time.monotonic() - begin > 0.5
    assert len(list(runs.glob("*/results.json"))) == 4


def test_the_folder_of_another_configuration_is_refused(config: Path) -> None:
    main(arguments(config))
    config.write_text("model: y\n")
    with pytest.raises(SystemExit) as end:
        main(arguments(config))
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("vary", "names"),
    [
        (["data.init_args.seed=3,4"], {"data.seed=3,seed=0", "data.seed=4,seed=0"}),
        (
            ["model.a.init_args.lr=1,2", "model.b.init_args.lr=3"],
            {"lr=1,seed=0", "lr=2,seed=0"},
        ),
        (
            ["model.a.init_args.lr=1,2", "model.b.init_args.lr=3,4"],
            {f"a.lr={first},b.lr={second},seed=0" for first in (1, 2) for second in (3, 4)},
        ),
    ],
)
def test_every_run_has_a_folder_and_columns_of_its_own(vary: list[str], names: set[str], config: Path) -> None:
    runs = list(sweep.make_runs([str(config)], vary, 1, config.parent))
    assert [run.folder.name for run in runs] == [
        ",".join(f"{name}={value}" for name, value in run.values.items()) for run in runs
    ]
    assert {run.folder.name for run in runs} == names
    assert len({tuple(run.args) for run in runs}) == len(runs) == len(names)


@pytest.mark.parametrize(
    ("vary", "problem"),
    [
        (["seed_everything=3,4"], "by --seeds"),
        (["trainer.max_epochs=5,5"], "two runs the folder"),
        (["model.init_args.backbone_checkpoint=a/b,a_b"], "two runs the folder"),
        (["model.init_args.tradeoff=1", "model.tradeoff=2"], "varies a field twice"),
    ],
)
def test_two_runs_of_one_folder_are_refused(vary: list[str], problem: str, config: Path) -> None:
    with pytest.raises(UserError, match=problem):
        list(sweep.make_runs([str(config)], vary, 1, config.parent))


def test_a_run_of_the_same_name_with_another_value_is_not_taken_for_this_one(
    config: Path, capsys: pytest.CaptureFixture
) -> None:
    alone = ["sweep", f"--config={config}", f"--folder={config.parent / 'runs'}"]
    main([*alone, "--vary=model.init_args.tradeoff=0.1"])
    with pytest.raises(SystemExit) as end:
        main([*alone, "--vary=model.init_args.tradeoff=1"])
    assert end.value.code == 2
    assert "seed=0 was run with --model.init_args.tradeoff=0.1 --seed_everything=0" in capsys.readouterr().err
    main([*alone, "--vary=model.init_args.tradeoff=0.1,1"])
    assert len(list((config.parent / "runs").glob("*/results.json"))) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=0.1,1", ("a.b", [0.1, 1])),
        ("exits=[0,1],[2]", ("exits", [[0, 1], [2]])),
        ("gate_objective=ce,prob", ("gate_objective", ["ce", "prob"])),
    ],
)
def test_values_are_the_items_of_a_list(text: str, expected: tuple) -> None:
    assert sweep.parse_values(text) == expected


@pytest.mark.parametrize("text", ["tradeoff", "tradeoff=", "=1", "exits=[1"])
def test_wrong_values_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="must look like"):
        sweep.parse_values(text)


@pytest.mark.parametrize(
    ("change", "field"),
    [("--config=missing.yaml", "config"), ("--seeds=0", "seeds"), ("--processes=0", "processes"),
     ("--vary=model.init_args.tradeoff=2", "vary"), ("--ray=nonsense", "ray")],
)  # fmt: skip
def test_wrong_arguments_are_refused(change: str, field: str, config: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(arguments(config, change))
    assert f"eenet: error: {field} = " in capsys.readouterr().err
    assert not (config.parent / "runs").exists()


@pytest.mark.slow
def test_real_runs_share_one_store(tmp_path: Path) -> None:
    features = {"store": "disk", "folder": str(tmp_path / "features")}
    fixed = {"model.init_args.features": features, "model.init_args.backbone_checkpoint": None, "trainer.max_epochs": 2}
    vary = [f"--vary={field}={json.dumps(value)}" for field, value in fixed.items()]
    config, folder = ROOT / "configs/digits/vit_jei_dnn.yaml", tmp_path / "runs"
    tradeoffs = "--vary=model.init_args.tradeoff=0.1,1"
    main(["sweep", f"--config={config}", tradeoffs, *vary, f"--folder={folder}"])
    assert len(list(tmp_path.glob("features/*/manifest.json"))) == 2
    points = [json.loads(path.read_text())["operating_points"] for path in sorted(tmp_path.glob("runs/*/results.json"))]
    assert len(points) == 2


def test_one_combination_is_chosen_on_validation_and_it_alone_is_tested(
    config: Path, capsys: pytest.CaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    runs = config.parent / "runs"
    for tradeoff, worse in (("0.1", 0.1), ("1", 0.2)):
        for seed in (0, 1):
            with SummaryWriter(str(runs / f"tradeoff={tradeoff},seed={seed}")) as writer:
                for step, early in ((1, 0.9), (2, 0.0)):  # the last one counts
                    writer.add_scalar("val/nll/exit_0", early + worse + seed / 50, step)
                    writer.add_scalar("val/nll/exit_1", early + worse, step)
    main(arguments(config, "--choose=val/nll/exit_*"))
    printed = capsys.readouterr().out.splitlines()
    assert {path.parent.name for path in runs.glob("*/results.json")} == {"tradeoff=0.1,seed=0", "tradeoff=0.1,seed=1"}
    (row,) = (line.split() for line in printed if "│ chosen" in line)
    assert [part for part in row if part != "│"] == ["0.1", "0.1050", "0.0071", "chosen"]
    with pytest.raises(SystemExit):
        main(arguments(config, "--choose=test/accuracy"))
    with pytest.raises(SystemExit):
        main(arguments(config, "--choose=val/accuracy"))
    said = capsys.readouterr().err
    assert "must be a figure of the validation" in said
    assert "is no figure of the validations in" in said


@pytest.mark.parametrize("off", ["vary", "config"])
def test_a_figure_that_nobody_writes_is_refused_before_anything_is_trained(
    config: Path, tmp_path: Path, off: str, capsys: pytest.CaptureFixture
) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("trainer: {logger: false}")
    more = {"vary": "--vary=trainer.logger=false", "config": f"--config={over}"}[off]
    with pytest.raises(SystemExit):
        main([*arguments(config, "--choose=val/nll"), more])
    assert "trainer.logger false does not write" in capsys.readouterr().err
    assert not (config.parent / "runs").exists()
