"""The pages do what they say: their files are written, their Python runs, their commands run on a few batches."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import eenet
from eenet.cli.main import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r'^```(\w+)(?: title="([\w.]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
FEW = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false"]
MOST_LINES = 60
ADDED = ["howto/add_a_backbone.md", "howto/add_a_gate.md", "howto/add_a_policy.md", "howto/add_a_method.md"]
LONG = [
    *("howto/hit_a_budget.md", "howto/own_images.md", "howto/export_and_serve.md", "howto/attach.md"),
    *("howto/python.md", "tutorial.md"),
]
PAGES = [ADDED[2], *(pytest.param(page, marks=pytest.mark.slow) for page in (*ADDED[:2], ADDED[3], *LONG))]


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Language, file name and text of every block of a page."""
    return BLOCK.findall((DOCS / page).read_text())


def commands(text: str) -> list[list[str]]:
    """The `eenet` commands of a block, without the program's name."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index("eenet") + 1 :] for line in words if "eenet" in line]


def few(command: list[str]) -> list[str]:
    """Options of a short training, in which JEI-DNN's gates train all the same."""
    return [*FEW, *(["--model.init_args.warmup_epochs=0"] if any("jei_dnn" in word for word in command) else [])]


def write_images(folder: Path, count: int = 3) -> None:
    """Some grey images of eight pixels."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("L", (8, 8), 240 * number // count).save(folder / f"{number}.png")


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_images(tmp_path / "images")
    for name in range(10) if "images_by_class" in (DOCS / page).read_text() else ():
        write_images(tmp_path / "images_by_class" / str(name), 16)
    for language, name, text in blocks(page):
        if name:
            Path(name).write_text(text)
        elif language == "python":
            exec(compile(text, page, "exec"), {})
        elif language == "bash":
            for command in commands(text):
                main([*command, *few(command)] if command[0] == "fit" else command)


def test_three_seeds_from_python_in_less_than_30_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own code, one seed and one epoch of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    page = blocks("howto/python.md")
    (text,) = [text for language, name, text in page if language == "python" and "range(3)" in text]
    assert len(text.splitlines()) < 30
    for _, name, model in page:
        if name:
            Path(name).write_text(model)
    whole, scope = eenet.train, dict[str, Any]()

    def train(network: Any, data: Any, method: str, **given: Any) -> Any:
        few = {"epochs": 1, "trainer": {"limit_train_batches": 4}}
        return whole(network, data, method, **given | few | ({"warmup_epochs": 0} if method == "jei_dnn" else {}))

    monkeypatch.setattr(eenet, "train", train)
    exec(compile(text.replace("range(3)", "range(1)"), "python.md", "exec"), scope)
    assert [run.model.method for run in scope["runs"]] == ["jei_dnn", "decoupled"]
    assert Path("runs/comparison/accuracy_cost.png").is_file()
    routed = eenet.load("exported")(scope["images"][:32])
    assert routed.exits.shape == (32,)


@pytest.mark.parametrize("page", ADDED)
def test_what_is_added_is_short(page: str) -> None:
    written = [text for language, name, text in blocks(page) if language == "python" and name]
    assert written
    assert all(len(text.splitlines()) < MOST_LINES + 1 for text in written)


def test_exits_on_ones_own_network_take_eight_lines() -> None:
    (text,) = [text for language, name, text in blocks("howto/attach.md") if language == "python" and not name]
    assert len([line for line in text.splitlines() if line]) <= 8
    assert "network.route" in text


def test_configurations_that_pages_name_are_there() -> None:
    pages = {path: path.read_text() for path in DOCS.rglob("*.md")}
    named = {(path, name) for path, text in pages.items() for name in re.findall(r"configs/[\w/-]+\.yaml", text)}
    missing = [(path, name) for path, name in named if not (ROOT / name).is_file()]
    assert named
    assert not missing


def test_papers_page_names_configurations_that_are_there() -> None:
    rooms = "|".join(path.name for path in (ROOT / "configs").iterdir() if path.is_dir())
    named = re.findall(rf"`((?:{rooms})/[\w*]+)`", (DOCS / "papers.md").read_text())
    missing = [name for name in named if not list((ROOT / "configs").glob(f"{name}.yaml"))]
    assert len(named) > 20
    assert not missing
