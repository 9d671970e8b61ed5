"""A cluster of two nodes of one core each, one of which is killed in the middle: the output is the local one's."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from eenet.api import inferring
from eenet.cli import sweep
from eenet.cli.main import main
from eenet.features import extraction, spreading
from tests.cli import ray_work
from tests.cli.test_cli import QUIET, tiny

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
IMAGES, BATCH = 400, 8
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


class Nodes:
    """Two nodes; the second can be killed, and what was begun there is known."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(head_node_args={**NODE, "include_dashboard": False}, initialize_head=True, connect=False)
        self.second: Any = None
        self.options = ["--ray", self.cluster.address, "--cpus", "1"]

    def start(self) -> None:
        self.second = self.second or self.cluster.add_node(**NODE)

    def kill_when(self, ready: Callable[[], bool]) -> threading.Thread:
        """Kill the second node once it works and something is ready."""
        ray_work.LOG.unlink(missing_ok=True)
        node = self.second.node_id

        def wait() -> None:
            last = time.monotonic() + 1200
            while time.monotonic() < last and not (ready() and any(line.startswith(node) for line in lines())):
                time.sleep(0.02)
            self.cluster.remove_node(self.second, allow_graceful=False)
            self.second = None

        thread = threading.Thread(target=wait)
        thread.start()
        return thread


def lines() -> list[str]:
    return ray_work.LOG.read_text().splitlines() if ray_work.LOG.is_file() else []


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_raylet_start_wait_time_s", "300")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = Nodes()
        try:
            yield found
        finally:
            found.cluster.shutdown()


@pytest.fixture
def killing(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    monkeypatch.chdir(tmp_path)
    nodes.start()
    return nodes


def check_begun(what: str, asked: int) -> None:
    """All were begun, some twice, on two nodes."""
    begun = Counter(line.partition(" ")[2] for line in lines())
    per_node = Counter(line.partition(" ")[0] for line in lines())
    again = sorted(name for name, count in begun.items() if count > 1)
    print(f"{what}: {asked} asked, {begun.total()} begun, {sorted(per_node.values())} by node, again: {again}")
    assert len(begun) == asked
    assert again
    assert len(per_node) == 2


def test_extraction_goes_on_without_a_node(killing: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "SHARD_BYTES", 2**15)
    config = tiny(tmp_path / "c.yaml", "JointExits", tmp_path / "run", warmup_epochs=1, phase_batches=2)

    def extract(folder: str, *more: str) -> dict[Path, Path]:
        field = f"--model.init_args.features={{store: disk, folder: {folder}}}"
        main(["features", "extract", f"--config={config}", field, *more])
        return {path.relative_to(folder): path for path in Path(folder).rglob("*.*")}

    local = extract("local")
    with monkeypatch.context() as patch:
        patch.setattr(spreading, "extract_there", ray_work.extract_there)
        killer = killing.kill_when(lambda: len(list(Path("spread").glob("*/shards/*.json"))) > 2)
        found = extract("spread", *killing.options)
        killer.join()
    assert set(local) == set(found)
    for name, path in local.items():
        assert path.read_bytes() == found[name].read_bytes(), name
    check_begun("features", sum(name.parts[1] == "shards" for name in local))


def test_infer_goes_on_without_a_node(killing: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path / "c.yaml", "JointExits", tmp_path / "run", warmup_epochs=1, phase_batches=2)
    main(["fit", "--config", str(config), *QUIET])
    Path("images").mkdir()
    for number, pixels in enumerate(load_digits().images[:IMAGES]):
        Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(Path("images", f"{number:04}.png"))
    Path("images", "0007.png").write_bytes(b"no image")

    def infer(output: str, *more: str) -> bytes:
        main(["infer", "run", "--input", "images", "--output", output, "--batch-size", str(BATCH), *more])
        return Path(output).read_bytes()

    local = infer("local.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(inferring, "route_entries", ray_work.route_entries)
        killer = killing.kill_when(lambda: len(list(Path("spread.jsonl.parts").glob("0*.jsonl"))) > 5)
        assert infer("spread.jsonl", *killing.options) == local
        killer.join()
    assert len(local.splitlines()) == IMAGES - 1
    check_begun("infer", IMAGES // BATCH)


def test_a_sweep_goes_on_without_a_node(killing: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path / "c.yaml", "JointExits", tmp_path / "run", warmup_epochs=1, phase_batches=2)
    values = yaml.safe_load(config.read_text())
    del values["trainer"]["default_root_dir"]
    config.write_text(yaml.safe_dump(values))

    def grid(folder: str, *more: str) -> dict[str, Any]:
        vary = "--vary=model.init_args.tradeoff=0.1,1"
        main(["sweep", f"--config={config}", vary, "--seeds=2", f"--folder={folder}", *more])
        weights = {path.parents[1].name: path for path in Path(folder).glob("*/checkpoints/last.ckpt")}
        states = {name: torch.load(path, weights_only=False)["state_dict"] for name, path in weights.items()}
        return {"table": Path(folder, "sweep.csv").read_bytes(), **states}

    local = grid("local", "--processes=1")
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "execute", ray_work.execute)
        killer = killing.kill_when(lambda: any(Path("spread").glob("*/checkpoints/last.ckpt")))
        found = grid("spread", *killing.options)
        killer.join()
    assert found.pop("table") == local.pop("table")
    assert set(found) == set(local)
    for name, weights in local.items():
        assert all(torch.equal(found[name][key], value) for key, value in weights.items()), name
    check_begun("sweep", 4)
