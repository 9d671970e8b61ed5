"""Exits of a tiny decoder: trained, calibrated, tested and generated with by the commands."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

from eenet.api.opening import open_run  # noqa: E402
from eenet.calibration import Calibration, Scored  # noqa: E402
from eenet.calibration.points import CALIBRATION  # noqa: E402
from eenet.cli.main import main  # noqa: E402
from eenet.decoding.chooser import TokenChooser  # noqa: E402
from eenet.decoding.measures import text_scores  # noqa: E402
from eenet.decoding.scoring import Contender  # noqa: E402
from eenet.gates import StoppingGate  # noqa: E402
from eenet.policies import SequentialGates, Threshold  # noqa: E402
from tests._dummies.decoders import greedy  # noqa: E402
from tests._dummies.token_run import LAYERS, write_config  # noqa: E402

JOINT: dict[str, Any] = {"tradeoff": 0.1, "warmup_epochs": 1, "phase_batches": 2}
SUPERVISION = {"class_path": "eenet.objectives.SelfDistillation", "init_args": {"temperature": 1.0}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        folder = tmp_path_factory.mktemp("runs")
        calm: dict[str, Any] = {"budgets": [1.0], "supervision": SUPERVISION}
        configs = {
            "calm": write_config(folder / "calm", "DecoderThresholds", "ConfidenceGate", **calm),
            "joint": write_config(folder / "joint", "DecoderJointExits", "UncertaintyGate", **JOINT),
        }
        for config in configs.values():
            main(["fit", "--config", str(config)])
        return {name: config.parent / "run" for name, config in configs.items()}


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture) -> Any:
    def run(*args: Any) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
        assert end.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize("name", ["calm", "joint"])
def test_training_moves_the_exits_and_leaves_the_decoder_alone(runs: dict[str, Path], name: str) -> None:
    run = open_run(str(runs[name]), read_data=False)
    network, untrained = run.model.network, open_run(str(runs["calm"]), read_data=False).model.network
    for old, new in zip(untrained.backbone.parameters(), network.backbone.parameters(), strict=True):
        assert torch.equal(old, new)
    assert all(module.adapter[1].weight.any() for module in network.inference_modules)
    saved = torch.load(runs[name] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    heads = [key for key in saved if key.startswith("network.inference_modules.0")]
    assert sorted(key.removeprefix("network.inference_modules.0.") for key in heads) == [
        "adapter.0.weight",
        "adapter.1.weight",
        "norm.weight",
    ]


def test_labels_are_what_the_full_model_says_next(runs: dict[str, Path]) -> None:
    run = open_run(str(runs["calm"]))
    data, model = run.data, run.model.network.backbone.model
    table, sequences = data.table("val"), data.prompts("val")
    for row, prompt in enumerate(sequences.prompts):
        tokens = greedy(model, prompt, sequences.new_tokens, eos_token_id=sequences.stop[0], pad_token_id=0)
        assert table.labels[table.texts == row].tolist() == tokens[1:]
    batch, labels = table.__getitems__(list(range(len(table))))
    logits = run.model.network.exit_logits(batch)
    assert torch.equal(logits[:, -1].argmax(-1), labels)


@torch.no_grad()
def own_perplexity(folder: Path, rows: list[dict[str, Any]]) -> float:
    """The model's, of its own texts but for their first tokens, by `transformers` alone."""
    run = open_run(str(folder), read_data=False)
    sequences, losses = run.data.prompts("test"), []
    for prompt, row in zip(sequences.prompts, rows, strict=True):
        tokens = row["tokens"] + ([sequences.stop[0]] if len(row["tokens"]) < sequences.new_tokens else [])
        logits = run.model.network.backbone.model(input_ids=torch.tensor([prompt + tokens])).logits[0]
        predictions = logits[len(prompt) : -1].log_softmax(-1)
        losses += (-predictions[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:]).long()]).tolist()
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("name", ["calm", "joint"])
def test_test_generates_at_every_point_and_judges_the_text(runs: dict[str, Path], name: str) -> None:
    main(["test", "--config", str(runs[name] / "config.yaml")])
    results = json.loads((runs[name] / "results.json").read_text())
    full, rows = (results["texts"][key] for key in ("full", {"calm": "budget-1", "joint": "learned"}[name]))
    points = results["points"]
    assert (points["full"]["agreement"], points["full"]["layers_fraction"], points["full"]["rougeL_full"]) == (1, 1, 1)
    assert points["full"]["perplexity"] == pytest.approx(own_perplexity(runs[name], full), rel=1e-3)
    routed = points["budget-1" if name == "calm" else "learned"]
    counts = [count for row in rows for count in row["layers"]]
    assert set(counts) <= {2, 4, LAYERS}
    assert routed["layers_mean"] == pytest.approx(sum(counts) / len(counts))
    overlaps = [
        1.0 if row["text"] == other["text"] else text_scores(row["text"], other["text"])["rougeL"]
        for row, other in zip(rows, full, strict=True)
    ]
    assert routed["rougeL_full"] == pytest.approx(sum(overlaps) / len(overlaps))


def test_calibrate_keeps_what_is_asked_and_test_and_generate_use_it(
    runs: dict[str, Path], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    by_text = ["--max-perplexity-increase", "20", "--max-rouge-drop", "30"]
    for name, wishes in (("calm", by_text), ("joint", [])):
        main(["calibrate", str(runs[name]), "--budget", "0.9", "--max-disagreement", "0.2", *wishes])
    main(["calibrate", str(runs["joint"]), "--policy", "saturation", "--max-disagreement", "0.2"])
    assert "recompute" in capsys.readouterr().out
    for name, kind in (("calm", Threshold), ("joint", SequentialGates)):
        points = Calibration.load(runs[name] / CALIBRATION).points
        assert all(isinstance(points[key].policy, kind) for key in points if not key.startswith("saturation"))
        assert points["budget-0.9"].got["macs_fraction"] <= 0.9
        assert points["max-disagreement-0.2"].got["agreement"] >= 0.8 - 1e-9
        if name == "calm":
            assert points["max-perplexity-increase-20"].got["perplexity_increase"] <= 20 + 1e-6
            assert points["max-rouge-drop-30"].got["rougeL_full"] >= 0.7
        main(["test", "--config", str(runs[name] / "config.yaml"), "--point", "all"])
        results = json.loads((runs[name] / "results.json").read_text())
        assert set(results["points"]) == {"full", *points}
    summary = tmp_path / "summary.json"
    point = ["--point", "saturation-max-disagreement-0.2", "--summary", str(summary)]
    main(["generate", str(runs["joint"]), "--prompt", "the rain wins", "--max_new_tokens", "5", *point])
    assert json.loads(summary.read_text())["point"] == "saturation-max-disagreement-0.2"


@torch.no_grad()
def test_stopping_is_fitted_to_training_tokens_and_saved(runs: dict[str, Path], tmp_path: Path) -> None:
    wishes = ["--budget", "0.9", "--max-disagreement", "0.2", "--max-rouge-drop", "30"]
    main(["calibrate", str(runs["joint"]), "--policy", "stopping", *wishes])
    run = open_run(str(runs["joint"]))
    points, table = Calibration.load(runs["joint"] / CALIBRATION).points, run.data.table("val")
    features, labels = table.__getitems__(list(range(len(table))))
    for wish in ("budget-0.9", "max-disagreement-0.2", "max-rouge-drop-30"):
        point = points[f"stopping-{wish}"]
        network = point.network(run.model.network)
        assert isinstance(network.gate, StoppingGate)
        assert network.gate.num_inputs == 15
        logits, scores = network.from_features(features)
        exits = point.policy.exits(logits.argmax(-1), scores)
        kept = (logits[torch.arange(len(exits)), exits].argmax(-1) == labels).double().mean()  # the full model's tokens
        assert point.got["agreement"] == pytest.approx(kept.item())
        assert point.got["macs_fraction"] == pytest.approx(network.costs.fractions()[exits].mean().item())
    assert points["stopping-budget-0.9"].got["macs_fraction"] <= 0.9
    assert points["stopping-max-disagreement-0.2"].got["agreement"] >= 0.8 - 1e-9
    assert points["stopping-max-rouge-drop-30"].got["rougeL_full"] >= 0.7
    summary = tmp_path / "summary.json"
    point = ["--point", "stopping-max-disagreement-0.2", "--summary", str(summary)]
    main(["generate", str(runs["joint"]), "--prompt", "the rain wins", "--max_new_tokens", "5", *point])
    assert json.loads(summary.read_text())["point"] == "stopping-max-disagreement-0.2"


def test_generation_without_leaving_is_the_full_models(runs: dict[str, Path], tmp_path: Path) -> None:
    main(["calibrate", str(runs["calm"]), "--max-disagreement", "0", "--policy", "max_probability"])
    calibration = Calibration.load(runs["calm"] / CALIBRATION)
    never = calibration.points["max_probability-max-disagreement-0"]
    calibration.points["never"] = replace(never, policy=Threshold(["inf", "inf"]))
    calibration.save(runs["calm"] / CALIBRATION)
    run = open_run(str(runs["calm"]), read_data=False)
    prompt, summary = "the city loses storm", tmp_path / "summary.json"
    args = ["--max_new_tokens", "9", "--point", "never", "--summary", str(summary)]
    main(["generate", str(runs["calm"]), "--prompt", prompt, *args])
    text = json.loads(summary.read_text())["texts"][0]
    ids = run.data.tokenizer(prompt)["input_ids"]
    expected = greedy(run.model.network.backbone.model, ids, 9, eos_token_id=0, pad_token_id=0)
    assert text["tokens"] == [token for token in expected if token != 0]
    assert set(text["usage"]["layers"]) == {LAYERS}


def test_a_wish_that_cannot_be_met_keeps_no_other_from_it(runs: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
    (runs["calm"] / CALIBRATION).unlink(missing_ok=True)
    with pytest.raises(SystemExit, match="1"):
        main(["calibrate", str(runs["calm"]), "--risk", "0.3", "--budget", "0.01,0.9"])
    said = capsys.readouterr().err
    assert "not met: risk = 0.3: needs at least" in said
    assert "not met: budget = 0.01: cannot be met" in said
    (point,) = Calibration.load(runs["calm"] / CALIBRATION).points.values()
    assert 0 <= point.got["agreement_se"] <= 0.5


def test_wishes_of_the_other_kind_and_promises_without_prompts_are_refused(runs: dict[str, Path], mistake: Any) -> None:
    run = str(runs["calm"])
    assert "holds a decoder, which has no exported form" in mistake("export", run, "--out", f"{run}_shipped")
    assert "is for classifiers" in mistake("calibrate", run, "--max-accuracy-drop", "1")
    recall = mistake("calibrate", run, "--policy", "stopping_recall", "--budget", "0.9")
    assert "policy = 'stopping_recall': must be one of own" in recall
    assert "policy = 'scheduler'" in mistake("calibrate", run, "--policy", "scheduler", "--budget", "0.9")
    assert "max-disagreement = 2" in mistake("calibrate", run, "--max-disagreement", "2")
    assert "point = 'nowhere'" in mistake("generate", run, "--prompt", "the sun", "--point", "nowhere")
    assert "plan = 'early:2'" in mistake("generate", run, "--prompt", "the sun", "--plan", "early:2")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.init_args.val_size=30", "data.val_size = 30"),
        ("--data.init_args.prompt_tokens=-1", "data.prompt_tokens = -1"),
        ("--model.init_args.network.init_args.exits=[5]", "network.exits = [5]"),
        ("--model.init_args.network.init_args.inference_module.init_args.rank=99", "rank = 99"),
        ("--data=datamodules.Digits", "datamodules.Continuations"),
        ("--model.init_args.features=memory", "model.features"),
        (
            '--model.init_args.network.init_args.gate={"class_path": "StoppingGate", "init_args": {"num_classes": 14}}',
            "is for finished runs of decoders",
        ),
    ],
)
def test_mistakes_of_a_configuration_are_one_clear_line(
    runs: dict[str, Path], tmp_path: Path, mistake: Any, option: str, message: str
) -> None:
    config = runs["calm"] / "config.yaml"
    assert message in mistake("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "new", option)


def test_no_order_of_the_prompts_changes_a_certificate() -> None:
    """Prompts are the samples: their texts' distances, and their tokens' scores, move along with them."""
    prompts, length = [[row, 3, row % 5] for row in range(60)], 4
    scores, correct = torch.rand(60, length, 3, 2), torch.rand(60, length, 3) < 0.9  # at three prices of the cost
    risks = 0.6 * torch.rand(60) ** 2

    def certified(order: torch.Tensor) -> Any:
        rows = (scores[order].flatten(0, 1), correct[order].flatten(0, 1))
        scored = Scored(rows[1].long(), *rows, torch.tensor([0.3, 0.6, 1.0]).double())
        priced = [scored._replace(scores=found) for found in rows[0].unbind(1)]
        table = SimpleNamespace(texts=torch.arange(60).repeat_interleave(length))
        data = SimpleNamespace(
            table=lambda _: table, prompts=lambda _: SimpleNamespace(prompts=[prompts[row] for row in order])
        )
        chooser = SimpleNamespace(
            data=data,
            contenders=[Contender(Threshold([0.0, 0.0]), None, scored) for scored in priced],
            distances=lambda contender, policy: risks[order] * (1 - contender.scored.cost(policy)),
        )
        (_, policy), kept = TokenChooser.certified(chooser, 0.2, 0.1)  # type: ignore[arg-type]
        return policy.arguments(), pytest.approx(kept)

    first = certified(torch.arange(60))
    assert all(certified(torch.randperm(60)) == first for _ in range(3))


@pytest.mark.slow
def test_later_heads_choose_among_as_many_candidates_as_validation_says(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs["calm"]))
    events.Reload()
    run = open_run(str(runs["calm"]))
    table, network = run.data.table("val"), run.model.network
    features, labels = table.__getitems__(list(range(len(table))))
    with torch.no_grad():
        order = network.exit_logits(features)[:, 0].argsort(dim=-1, descending=True)
    places = sorted((order == labels[:, None]).int().argmax(1).tolist())
    size = int(events.Scalars("val/vocabulary_95")[-1].value)
    assert size == places[math.ceil(0.95 * len(places)) - 1] + 1
    config = write_config(tmp_path, "DecoderThresholds", "ConfidenceGate", budgets=[1.0], supervision=SUPERVISION)
    pruned = f"--model.init_args.network.init_args.vocabulary={size}"
    main(["fit", "--config", str(config), pruned])
    main(["calibrate", str(tmp_path / "run"), "--max-disagreement", "0.5"])
    main(["test", "--config", str(tmp_path / "run" / "config.yaml"), "--point", "all"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["costs"]["heads"][1] < results["costs"]["heads"][0]
    assert results["costs"]["last_head"] < results["costs"]["classifier"]


def test_a_trained_exit_drafts_what_the_decoder_verifies(
    runs: dict[str, Path], capsys: pytest.CaptureFixture, mistake: Any
) -> None:
    run, prompt = runs["calm"], ["--prompt", "the rain wins", "--max_new_tokens", "8"]
    main(["generate", str(runs["calm"].parent / "model"), *prompt])
    whole = capsys.readouterr().out
    main(["generate", str(run), *prompt, "--speculate", "early:4", "--drafts", "2"])
    out, err = capsys.readouterr()
    assert out == whole
    assert "of the drafted tokens that were reached are right" in err
    message = mistake("generate", run, *prompt, "--speculate", "early:3")
    assert "speculate = 'early:3': the run's exits draft with early:2, early:4" in message
