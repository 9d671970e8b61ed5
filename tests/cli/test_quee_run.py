"""A run of QuEE, put to use: `eenet export`, `infer`, `bench` and `predict`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from eenet.api.opening import chosen_point, open_run
from eenet.cli.main import main
from eenet.runtime import load
from eenet.tree import path_name
from tests.cli.test_calibrate_paths import run  # noqa: F401


@pytest.mark.slow
def test_its_export_gives_the_nodes_of_the_network(run: Path, tmp_path: Path) -> None:  # noqa: F811
    main(["export", str(run), "--out", str(tmp_path / "out")])
    opened, runtime = open_run(str(run)), load(tmp_path / "out")
    chosen = chosen_point(opened, None)
    inputs = torch.stack([image for image, _ in opened.data.dataset("test")][:300])
    for batch in (1, 64):
        for rows in inputs.split(batch):
            expected, routed = opened.model.network.route(rows, chosen.point.policy), runtime(rows)
            assert torch.equal(routed.nodes, expected.nodes)
            assert torch.equal(routed.logits, expected.logits)
    manifest = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (manifest["version"], manifest["point"]["name"]) == (3, "budget-5")


def test_what_is_inferred_says_its_path_and_bitops(run: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(load_digits().images[:20]):
        Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(tmp_path / "images" / f"{number:02}.png")
    found = {}
    for kind in ("jsonl", "csv", "parquet"):
        if kind == "parquet":
            pytest.importorskip("pyarrow")
        output = tmp_path / f"out.{kind}"
        main(["infer", str(run), "--input", str(tmp_path / "images"), "--output", str(output)])
        found[kind] = output
    rows = [json.loads(line) for line in found["jsonl"].read_text().splitlines()]
    network = open_run(str(run)).model.network
    bitops = dict(zip(map(path_name, network.tree.nodes), network.costs.columns["bitops"].routed, strict=True))
    assert len(rows) == 20
    assert all(row["bitops"] == bitops[row["path"]] for row in rows)
    assert all(row["exit"] == row["path"].count("-") for row in rows)
    header, *lines = found["csv"].read_text().splitlines()
    assert header == "id,label,probability,exit,macs,path,bitops,probabilities"
    assert [line.split(",")[5] for line in lines] == [row["path"] for row in rows]
    table = pytest.importorskip("pyarrow.parquet").read_table(found["parquet"]).to_pylist()
    assert [row["bitops"] for row in table] == [row["bitops"] for row in rows]


def test_it_is_timed_against_the_float_network_and_static_widths(
    run: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ["--batch-size", "8", "--samples", "16", "--rounds", "1", "--out", str(tmp_path)]
    main(["bench", str(run), "--point", "budget-5", *few])
    (batch,) = json.loads((tmp_path / "bench.json").read_text())["batches"]
    names = ["full network", "8 bits", "4 bits", "routed, budget-5", "routed, nobody leaves"]
    assert [row["name"] for row in batch["rows"]] == names
    rows = {row["name"]: row for row in batch["rows"]}
    column = open_run(str(run)).model.network.costs.columns["bitops"]
    assert rows["full network"]["bitops_speedup"] == 1
    assert rows["4 bits"]["bitops_speedup"] == pytest.approx(column.full / column.static[-1])
    assert rows["routed, budget-5"]["bitops_speedup"] > 1
    assert rows["routed, nobody leaves"]["theoretical_speedup"] < 1
    assert "in BitOPs" in capsys.readouterr().out


def test_its_predictions_have_bitops(run: Path, tmp_path: Path) -> None:  # noqa: F811
    main(["predict", str(run), "--output", str(tmp_path / "rows.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert all(row["bitops"] > 0 and row["path"] for row in rows)
