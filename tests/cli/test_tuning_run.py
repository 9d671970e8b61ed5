"""A tiny decoder tuned for a plan: trained, continued, tested, generated with and studied by the commands."""

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from safetensors.torch import load_file

pytest.importorskip("peft")
datasets = pytest.importorskip("datasets")

from eenet.backbones.gpt import Gpt  # noqa: E402
from eenet.cli import layer_study  # noqa: E402
from eenet.cli.main import main  # noqa: E402
from eenet.decoding.measures import text_scores  # noqa: E402
from tests._dummies.decoders import cut_model, greedy  # noqa: E402
from tests._dummies.text_run import write_text_config  # noqa: E402
from tests._dummies.word_decoder import make_tokenizer  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"tuning": "lora", "plans": ["strided:2"]},
    "full": {
        "tuning": "full",
        "plans": ["strided:*", "drop:0.2"],
        "judged": ["0,2", "0-2"],
        "prompt": "plan",
        "exits": "rotational:2",
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        folder = tmp_path_factory.mktemp("runs")
        for kind, arguments in KINDS.items():
            config = write_text_config(folder / kind, "PlanTuning", **arguments)
            main(["fit", "--config", str(config), "--trainer.max_epochs=4"])
        return {kind: folder / kind / "run" for kind in KINDS}


def task_of(config: Path, folder: Path) -> str:
    """The task of a run's data, as a configuration of `eenet layers`."""
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(config.read_text())["data"]["init_args"]["task"]))
    return str(path)


def losses(run: Path, name: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


@pytest.mark.parametrize("kind", KINDS)
def test_tuning_lowers_the_loss_and_keeps_what_it_tuned_alone(runs: dict[str, Path], kind: str) -> None:
    found = losses(runs[kind], "val/loss")
    assert found[-1] < found[0]
    saved = torch.load(runs[kind] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    written = load_file(next((runs[kind] / "tuned").glob("*.safetensors")))
    assert len(saved) == len(written)
    if kind == "lora":
        assert all("lora" in key for key in saved)
        assert not any(f"layers.{layer}." in key for key in saved for layer in (1, 3))


def test_a_test_generates_with_the_full_model_and_every_judged_plan(
    runs: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    main(["test", str(runs["full"])])
    assert "plan_tuning on 12 test prompts" in capsys.readouterr().out
    results = json.loads((runs["full"] / "results.json").read_text())
    assert list(results["points"]) == ["full", "0,2", "0-2"]
    assert [row["layers_mean"] for row in results["points"].values()] == [4, 2, 3]
    model = Gpt(task="tokens", pretrained=str(runs["full"])).eval()
    cut, tokenizer = cut_model(model, (0, 2)), make_tokenizer()
    rows = results["texts"]["0,2"]
    prompts = [json.loads(line) for line in (runs["full"].parent / "prompts.jsonl").read_text().splitlines()]
    known = {
        tuple(
            greedy(
                cut,
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_dict=True
                )["input_ids"],
                6,
                eos_token_id=0,
                pad_token_id=0,
            )
        )
        for row in prompts
    }
    ends = {tuple(row["tokens"] + [0])[:6] for row in rows}
    assert ends <= known
    mean = sum(row["rougeL"] for row in rows) / len(rows)
    assert results["points"]["0,2"]["rougeL"] == pytest.approx(mean)
    assert all(0 <= text_scores(row["text"], "rain today")["rougeL"] <= 1 for row in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuned_run_is_a_model_to_generate_with(
    runs: dict[str, Path], kind: str, capsys: pytest.CaptureFixture
) -> None:
    capsys.readouterr()
    plan = ["--plan", "0,2", "--prompt_layers", "plan", "--keys", "absent", "--max_new_tokens", "6"]
    main(["generate", str(runs[kind]), *plan, "--prompt", "the rain wins"])
    tokenizer = make_tokenizer()
    cut = cut_model(Gpt(task="tokens", pretrained=str(runs[kind] / "tuned")).eval(), (0, 2))
    found = greedy(cut, tokenizer("the rain wins")["input_ids"], 6)
    expected = list(takewhile(lambda token: token not in (0, 2), found))  # ends of the tokenizer and of the model
    assert expected
    assert capsys.readouterr().out.split() == tokenizer.decode(expected).split()


@pytest.mark.slow
def test_a_study_runs_each_plan_with_its_own_weights(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(layer_study, "train_probes", lambda *values: None)
    for name in ("curves_figure", "oracle_figure", "controllers_figure"):
        monkeypatch.setattr(layer_study, name, lambda study: Figure())
    base, data = runs["lora"].parent / "model", task_of(runs["lora"].parent / "config.yaml", tmp_path)
    common = ["--data", data, "--budgets", "2,4", "--skipping", "strided", "--tokens", "2"]
    main(["layers", str(base), *common, "--out", str(tmp_path / "both"), "--tuned", str(runs["lora"])])
    assert "untuned" in capsys.readouterr().out
    main(["layers", str(runs["lora"]), *common, "--out", str(tmp_path / "tuned")])
    both, tuned = (json.loads((tmp_path / name / "study.json").read_text()) for name in ("both", "tuned"))
    assert both["weights"] == {"early": [None, None], "strided": [str(runs["lora"]), None]}
    assert both["curves"]["strided"][0]["rougeL"] == tuned["curves"]["strided"][0]["rougeL"]
    assert both["curves"]["early"][1] == both["curves"]["strided"][1]
    assert both["curves"]["strided"][0]["reference_perplexity"] == pytest.approx(
        tuned["curves"]["strided"][0]["reference_perplexity"], rel=1e-5
    )
    assert both["curves"]["early"][0] != tuned["curves"]["early"][0]


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path]) -> Path:
    config = write_text_config(tmp_path_factory.mktemp("gated"), "GateTraining", lr=0.5, price=5.0)
    main(["fit", "--config", str(config), "--trainer.max_epochs=2"])
    return config.parent / "run"


def test_gates_are_trained_on_a_decoder_that_stays(gated: Path) -> None:
    saved = torch.load(gated / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert sorted(saved) == [f"gates.maps.{layer}.{name}" for layer in (0, 1) for name in ("bias", "weight")]
    assert losses(gated, "val/layers")[-1] < 1


def test_gates_are_tested_generated_with_and_judged_beside_the_plans(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    base, summary = gated.parent / "model", tmp_path / "summary.json"
    main(["test", str(gated)])
    results = json.loads((gated / "results.json").read_text())
    assert 2 <= results["points"]["gates"]["layers_mean"] < 4
    main(["generate", str(base), "--gates", str(gated), "--prompt", "the rain wins", "--summary", str(summary)])
    assert 2 <= json.loads(summary.read_text())["layers_mean"] <= 4
    monkeypatch.setattr(layer_study, "train_probes", lambda *values: None)
    for name in ("curves_figure", "oracle_figure", "controllers_figure"):
        monkeypatch.setattr(layer_study, name, lambda study: Figure())
    common = [
        "--data",
        task_of(gated.parent / "config.yaml", tmp_path),
        "--budgets",
        "2,4",
        "--skipping",
        "",
        "--tokens",
        "2",
    ]
    main(["layers", str(base), *common, "--out", str(tmp_path / "study"), "--gates", str(gated)])
    assert "gates on hidden" in capsys.readouterr().out
    row = json.loads((tmp_path / "study" / "study.json").read_text())["gates"][0]
    assert (row["run"], row["reads"], row["price"]) == (str(gated), "hidden", 5.0)
    ran = [layers for text in results["texts"]["gates"] for layers in text["layers"]]
    assert row["layers"] == pytest.approx(sum(ran) / len(ran))
    assert row["rougeL"] == pytest.approx(results["points"]["gates"]["rougeL"])
    with pytest.raises(SystemExit):
        main(["generate", str(base), "--gates", str(gated), "--plan", "0,3", "--prompt", "the"])
    assert "decide which layers run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--model.init_args.plans=[]", "name at least one plan"),
        ("--model.init_args.plans=['drop:0.2']", "name a plan to validate with"),
        ("--model.init_args.judged=['7']", "the decoder has layers 0 to 3"),
        ("--model.init_args.rank=0", "rank = 0"),
        ("--model.init_args.backbone.init_args.dtype=bfloat16", "tuned weights are float32"),
        ("--data.class_path=datamodules.Continuations", "is trained on datamodules.ContinuedTexts"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, change: str, message: str, capsys: pytest.CaptureFixture) -> None:
    config = write_text_config(tmp_path, "PlanTuning", **KINDS["lora"])
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config), change])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
