"""What is shipped: the wheel holds every package and configuration, and works in an empty environment."""

import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

import eenet
from eenet.parsing.shipped import CONFIGS, find_config, names

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
EXTRAS = PROJECT["project"]["optional-dependencies"]


def test_packages_and_configs_are_listed() -> None:
    assert set(WHEEL["packages"]) == {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert WHEEL["force-include"] == {"configs": "eenet/configs"}
    assert CONFIGS == ROOT / "configs"
    files = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.y*ml")}
    assert set(names()) == files
    assert all(find_config(f"configs/{name}.yaml").is_file() for name in files)


def test_the_version_is_one_and_has_notes() -> None:
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "eenet/__init__.py"
    assert f"\nversion: {eenet.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{eenet.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.stem
)
def test_extras_that_documents_name_exist(document: Path) -> None:
    for rest in document.read_text().split("eenet[")[1:]:
        assert set(rest.split("]")[0].split(",")) <= EXTRAS.keys()


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {f"eenet/configs/{name}.yaml" for name in names()} <= files
    sources = {path.relative_to(ROOT) for room in WHEEL["packages"] for path in (ROOT / room).rglob("*.py")}
    assert {path.as_posix() for path in sources} <= files
    assert any(file.endswith("licenses/LICENSE") for file in files)

    venv.create(tmp_path / "empty", with_pip=True)
    python, eenet = (tmp_path / "empty" / "bin" / name for name in ("python", "eenet"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    start = time.perf_counter()
    shown = subprocess.run([eenet, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - start < 2
    assert "usage: eenet COMMAND" in shown

    # The dependencies of this environment, the package of the wheel.
    wheels_own = {"PYTHONPATH": ":".join([str(next((tmp_path / "empty" / "lib").glob("*/site-packages"))), *sys.path])}
    configured = [sys.executable, "-m", "eenet", "fit", "--config", "digits/vit_jei_dnn", "--print_config"]
    ran = subprocess.run(configured, cwd=tmp_path, env=wheels_own, capture_output=True, text=True, check=True)
    assert "runs/digits_vit_jei_dnn" in ran.stdout
    listed = subprocess.run([sys.executable, "-m", "eenet", "list"], cwd=tmp_path, env=wheels_own, capture_output=True)
    assert str(tmp_path / "empty") in listed.stdout.decode().splitlines()[-4]
