import json
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock
from matplotlib.figure import Figure

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from eenet.cli import layer_study
from eenet.cli.main import main
from eenet.decoding import study
from eenet.errors import UserError
from tests._dummies.word_decoder import NOUNS, VERBS, write_decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_decoder(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def data(tmp_path: Path) -> str:
    """24 prompts with references, half of which become the test part."""
    path = tmp_path / "task.jsonl"
    rows = [
        {"prompt": f"the {NOUNS[i % 3]} {VERBS[i % 2]} " * (1 + i % 4), "reference": f"{NOUNS[i % 3]} {VERBS[i % 2]}"}
        for i in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
def test_a_study_is_made_once_and_goes_on_after_a_kill(
    model: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    args = ["layers", model, "--data", data, "--out", str(out), "--tokens", "4", "--batch_size", "5"]
    monkeypatch.setattr(layer_study, "train_probes", partial(layer_study.train_probes, max_epochs=1))
    whole = study.generate
    calls: list[int] = []

    def killed(*values: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(study, "generate", killed)
    with pytest.raises(SystemExit):
        main(args)
    assert not (out / "study.json").exists()
    written = {path: path.read_bytes() for path in out.rglob("*.jsonl")}
    assert sum(content.count(b"\n") for content in written.values()) == 12

    monkeypatch.setattr(study, "generate", whole)
    main(args)
    assert all(path.read_bytes() == content for path, content in written.items())
    first = json.loads((out / "study.json").read_text())
    for name in ("curves", "oracle", "controllers"):
        assert (out / f"{name}.png").stat().st_size > 1000
    assert list((out / "tensorboard").iterdir())
    assert "oracle (mean) over uniform plans" in capsys.readouterr().out

    def refuse(*values: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(study, "generate", refuse)
    monkeypatch.setattr(study, "observe", refuse)
    for name in ("curves_figure", "oracle_figure", "controllers_figure"):
        monkeypatch.setattr(layer_study, name, lambda study: Figure())
    main(args)
    assert json.loads((out / "study.json").read_text()) == first

    assert first["prompts"] == 12
    assert [row["k"] for row in first["curves"]["uniform"]] == [1, 2, 3, 4]
    last = [rows[-1] for rows in first["curves"].values()]
    assert [row["similarity"] for row in last] == pytest.approx([1] * 4, abs=1e-5)
    assert [row["kl"] for row in last] == pytest.approx([0] * 4, abs=1e-5)
    assert last[0] == last[1] == last[2]
    for family in ("early", "strided", "uniform"):
        oracle = first["oracle"][family]
        assert oracle["score"] >= oracle["full_score"] - 1e-6
        assert sum(oracle["shares"]) == pytest.approx(1)
        mean = sum(share * k for k, share in enumerate(oracle["shares"], start=1))
        assert oracle["layers"] == pytest.approx(mean)
    assert {(panel["family"], len(panel["curves"])) for panel in first["controllers"]} == {
        ("early", 3),
        ("strided", 2),
        ("uniform", 2),
    }


def test_text_without_references_needs_plans_that_the_prompt_runs(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text((json.dumps({"prompt": "the storm was here ", "reference": ""}) + "\n") * 2)
    with pytest.raises(SystemExit):
        main(["layers", model, "--data", str(path), "--out", str(tmp_path / "out")])
    assert "prompt = 'full': skips in references alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere.yaml"], "data = 'nowhere.yaml': there is no such file"),
        (["--budgets", "1,2"], "the last must be all 4 layers"),
        (["--budgets", "1,x,4"], "budgets = '1,x,4': must be `all` or numbers"),
        (["--budgets", "3,1,4"], "increasing numbers"),
        (["--batch_size", "0"], "batch_size = 0: must be at least 1"),
        (["--tau", "1.5"], "tau = 1.5"),
        (["--device", "cuda:99"], "device = 'cuda:99': is not on this machine"),
    ],
)
def test_wrong_arguments_end_with_one_line(
    model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["layers", model, "--data", data, "--out", str(tmp_path / "out"), *options])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_texts_that_do_not_fit_and_a_folder_in_use_are_named(
    model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    args = ["layers", model, "--data", data, "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main([*args[:3], write_long(tmp_path), *args[4:]])
    assert "tokens with its continuation, the model takes 128" in capsys.readouterr().err
    with FileLock(tmp_path / "out" / "lock"), pytest.raises(SystemExit):
        main(args)
    assert "another study is writing there" in capsys.readouterr().err


def write_long(folder: Path) -> str:
    path = folder / "long.jsonl"
    path.write_text((json.dumps({"prompt": "storm " * 100, "reference": "sun rain storm"}) + "\n") * 2)
    return str(path)


@pytest.mark.parametrize("path", sorted(Path("configs/nlg").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_makes_data(path: Path) -> None:
    data = layer_study.load_data(str(path))
    assert (data.new_tokens == 0) == (data.reference is None) == (path.stem == "wikitext")
    assert path.stem.split("_")[0] in data.name.lower()


def test_a_configuration_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("class_path: datamodules.Digits\n")
    with pytest.raises(UserError, match=r"wrong\.yaml.*is no configuration of prompts"):
        layer_study.load_data(str(path))
