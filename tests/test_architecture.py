"""The import arrows of the design: cli -> lightning_modules, datamodules -> eenet."""

import ast
import graphlib
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("eenet", "lightning_modules", "datamodules") for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts
    forbidden = {
        "eenet": {"lightning", "pytorch_lightning", "lightning_modules", "datamodules"},
        "lightning_modules": {"datamodules", "eenet.cli"},
        "datamodules": {"lightning_modules", "eenet.cli"},
    }[room[0]]
    if room[:2] == ("eenet", "cli") or room in (("eenet", "__main__.py"), ("eenet", "__init__.py")):
        forbidden = set()  # the package names what is above it, and imports it when a name is asked for
    for module in imported(path):
        parts = module.split(".")
        assert not forbidden & {".".join(parts[:n]) for n in (1, 2)}, f"{path} imports {module}"


def opened_in_the_locales_encoding(path: Path) -> Iterator[str]:
    program = path.read_text(encoding="utf-8")
    nodes = ast.walk(ast.parse(program)) if "open(" in program or "_text(" in program else ()
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        function = call.func
        method = function.attr if isinstance(function, ast.Attribute) else None
        modes = [str(value.value) for value in (*call.args, *call.keywords) if isinstance(value, ast.Constant)]
        modes = [mode for mode in modes if set(mode) <= set("rwax+bt")]
        text = (isinstance(function, ast.Name) and function.id == "open") or (method == "open" and modes)
        if (method in ("read_text", "write_text") or (text and not any("b" in mode for mode in modes))) and not any(
            keyword.arg == "encoding" for keyword in call.keywords
        ):
            yield f"{path}:{call.lineno}"


def test_text_is_read_and_written_in_one_encoding_whatever_the_locale(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("open(a)\na.read_text()\nb.open('rb')\na.open('w')\nopen(a, 'w', encoding='utf-8')\n")
    assert [found.rpartition(":")[2] for found in opened_in_the_locales_encoding(program)] == ["1", "2", "4"]
    assert [found for path in FILES for found in opened_in_the_locales_encoding(path)] == []


def test_no_rooms_of_the_library_import_each_other_in_a_circle() -> None:
    """What is imported when a module is; imports inside functions, and for type checkers, are not."""
    arrows: dict[str, set[str]] = {}
    for path in (ROOT / "eenet").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eenet."):
                arrows.setdefault(parts[1], set()).add((node.module or "").split(".")[1])
    order = graphlib.TopologicalSorter({room: found - {room} for room, found in arrows.items()})
    assert set(order.static_order()) >= {"tree", "network", "routing", "runtime", "calibration"}


def test_opening_a_run_needs_no_lightning_and_the_library_nothing() -> None:
    """What is imported depends on what was before, so in a process of its own."""
    program = """
import sys, time
start = time.process_time()
import eenet
assert time.process_time() - start < 0.1
assert not {"torch", "numpy"} & set(sys.modules)
from importlib import import_module
from eenet.cli.main import COMMANDS
import eenet.api.opening
values = {"model": {"class_path": "lightning_modules.JointExits", "init_args": {"network": {
    "class_path": "eenet.EarlyExitNetwork", "init_args": {"backbone": {
        "class_path": "eenet.backbones.CifarResNet", "init_args": {"depth": 8, "num_classes": 10, "in_channels": 1,
        "image_size": 8}}, "exits": [0, 1]}}}}, "data": {"class_path": "datamodules.Digits"}}
made = eenet.api.opening.build(values)
made.model.meet(made.data)
made.data.fingerprint("val")
next(iter(made.data.loader("val")))
import eenet.api.calibrating
assert not {"eenet.exporting", "eenet.api.clocks"} & set(sys.modules)
for name, module in COMMANDS.items():
    if name not in ("layers", "sweep"):
        import_module(module)
for module in ("benchmarking", "calibrating", "exporting", "inferring"):
    import_module(f"eenet.api.{module}")
slow = {"lightning", "torchmetrics", "matplotlib", "transformers", "torchvision", "timm", "sklearn", "pandas"}
found = (slow | {"torch._dynamo", "sympy"}) & set(sys.modules)
assert not found, found
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert not ended.returncode, ended.stderr


def sources() -> Iterator[tuple[str, str]]:
    for path in (ROOT / "benchmarks").glob("*.py"):
        yield path.name, path.read_text()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        yield path.name, "\n".join(line for text in code for line in text.splitlines() if not line.startswith("%"))


def test_benchmarks_and_notebooks_import_what_is_there() -> None:
    """They run by hand or under `slow`, where a name that has moved is found late."""
    for name, text in sources():
        for node in ast.walk(ast.parse(text)):
            room = (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else ""
            if room in ("eenet", "lightning_modules", "datamodules"):
                module = importlib.import_module(node.module)  # type: ignore[union-attr, arg-type]
                for alias in node.names:  # type: ignore[attr-defined]
                    assert hasattr(module, alias.name), f"{name}: {node.module}.{alias.name}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
