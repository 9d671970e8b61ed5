import json
from pathlib import Path

import pytest

from eenet.cli.main import main
from tests._dummies.results import make_results, make_static, write_run


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    sweep = [
        write_run(
            tmp_path / "sweep" / f"tradeoff={tradeoff},seed={seed}",
            make_results([("learned", share, 0.7 + seed / 100)], seed=seed, given={"model.tradeoff": tradeoff}),
        )
        for tradeoff, share in ((0.1, 0.4), (1, 0.9))
        for seed in range(2)
    ]
    return [*sweep, write_run(tmp_path / "small", make_static(500, 0.6))]


def test_a_comparison_leaves_its_files_and_nothing_else(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    main(["compare", *runs, f"--out={out}", "--budgets=0.6,0.9"])
    pictures = {"accuracy_cost.png", "accuracy_cost.svg", "calibration_cost.png", "exit_histogram.png"}
    assert {path.name for path in out.iterdir()} == pictures | {"index.html", "comparison.json"}
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in pictures if name.endswith("png"))
    printed = capsys.readouterr().out
    assert "tradeoff=0.1: learned" in printed
    assert "70.50±0.71" in printed
    assert "random routing" in printed
    assert f"picture: {out / 'accuracy_cost.png'}\npage: {out / 'index.html'}\n" in printed
    html = (out / "index.html").read_text()
    assert "<th>over random</th>" in html
    assert "--budgets=0.6,0.9" in html
    values = json.loads((out / "comparison.json").read_text())
    assert values["budgets"] == [0.6, 0.9]
    assert [group["label"] for group in values["curves"][1]["groups"]] == ["tradeoff=1", "tradeoff=0.1"]
    assert values["curves"][1]["groups"][0]["seeds"] == [0, 1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budgets=0.9,0.5"], "budgets = '0.9,0.5'"),
        (["--out={small}"], "is the folder of a run"),
        (["{small}/results.json"], "is given twice"),
        (["{other}"], "of noise2; only runs judged on the same samples"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    runs: list[str], more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = {"small": runs[-1], "other": write_run(tmp_path / "other", make_results(data="noise2"))}
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        main(["compare", f"--out={out}", *(text.format(**names) for text in more), *runs])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert [path.name for path in Path(runs[-1]).iterdir()] == ["results.json"]
