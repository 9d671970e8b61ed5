"""A run of Zero Time Waste: fitted at its end, continued, tested and calibrated as any other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from eenet.api.opening import open_run
from eenet.calibration.ensemble import fit_ensemble
from eenet.cli.main import main
from eenet.connections import Ensemble, ZeroTimeWaste
from tests.cli.test_cli import QUIET, tiny


def fitted_anew(folder: Path) -> torch.Tensor:
    """The weights of the run's ensemble, which are those of one that is fitted to its modules as they are."""
    run = open_run(str(folder))
    network = run.model.network
    assert isinstance(network.connection, ZeroTimeWaste)
    kept, again = network.connection.ensemble, Ensemble(network.connection.num_gates, 10)
    assert kept is not None
    network.connection.ensemble = None
    with torch.no_grad():
        rows = [(network.exit_logits(x), y) for x, y in run.data.training_features(network, None, 10**6)]
    logits, labels = (torch.cat(parts) for parts in zip(*rows, strict=True))
    fit_ensemble(again, logits[:, :-1].log_softmax(-1), labels)
    np.testing.assert_allclose(kept.weight, again.weight, atol=1e-3)
    assert kept.fitted
    return kept.weight


@pytest.mark.slow
def test_an_ensemble_is_fitted_at_the_end_and_answers_everywhere(tmp_path: Path) -> None:
    folder, path = tmp_path / "run", tmp_path / "z.yaml"
    config = yaml.safe_load(tiny(path, "DecoupledExits", folder, budgets=[0.6, 0.8]).read_text())
    network = config["model"]["init_args"]["network"]["init_args"]
    network["gate"] = {"class_path": "eenet.gates.ConfidenceGate"}
    network["connection"] = {"class_path": "eenet.connections.ZeroTimeWaste"}
    path.write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(path), *QUIET])

    weights = fitted_anew(folder)
    more = ["--ckpt_path=last", "--trainer.max_epochs=3"]
    main(["fit", "--config", str(folder / "config.yaml"), *more, *QUIET])  # whose modules train each for itself again
    assert (fitted_anew(folder) - weights).abs().max() > 1e-3

    main(["test", "--config", str(folder / "config.yaml"), *QUIET])
    results = json.loads((folder / "results.json").read_text())
    assert results["method"] == "zero_time_waste"
    points = results["operating_points"]
    assert [row["name"] for row in points if row["chosen"]] == ["budget-0.6", "budget-0.8"]
    assert all(row["macs_fraction"] < budget + 0.1 for row, budget in zip(points, (0.6, 0.8), strict=True))

    main(["calibrate", str(folder), "--budget", "0.7", "--alpha", "0.1"])
    calibration = json.loads((folder / "calibration.json").read_text())
    assert calibration["points"]["budget-0.7"]["got"]["macs_fraction"] <= 0.7
    assert len(calibration["temperatures"]) == len(results["exits"])
