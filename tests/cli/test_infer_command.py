"""`eenet infer`."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

import eenet
from datamodules import Digits, OwnData
from eenet.api import inferring as command
from eenet.api.inputs import Entry
from eenet.api.opening import Run, chosen_point, open_run
from eenet.api.serving import of_run
from eenet.cli.main import main
from eenet.errors import UserError
from eenet.network import EarlyExitNetwork
from eenet.runtime.manifest import InputSpec
from eenet.serving import Asked, Inputs, Refused, answers
from tests._dummies.cluster import Here
from tests.cli.test_cli import QUIET, SMALL_BERT, tiny
from tests.datamodules.tiny_files import films, write_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "joint"
    config = tiny(folder.parent / "j.yaml", "JointExits", folder, warmup_epochs=1, phase_batches=2)
    main(["fit", "--config", str(config), *QUIET])
    main(["calibrate", str(folder), "--budget", "0.6", "--policy", "margin"])
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty digits as PNG files of 256 levels in two folders."""
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(load_digits().images[:40]):
        path = folder / str(number % 2) / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(path)
    return folder


def infer(*args: object) -> None:
    main(["infer", *map(str, args)])


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value if key in ("id", "label") else json.loads(value) for key, value in row.items()} for row in rows]


def routed(run: Path, point: str | None) -> list[dict[str, Any]]:
    """What the network itself says of the forty digits, in the order of the folder."""
    opened = open_run(str(run))
    chosen = chosen_point(opened, point)
    pixels = torch.from_numpy(load_digits().images[:40].astype(np.uint8))[:, None]
    order = [*range(0, 40, 2), *range(1, 40, 2)]
    inputs = torch.stack([Digits().transform(False)(image) for image in pixels])[order]
    found = chosen.point.network(opened.model.network).route(inputs, chosen.point.policy)
    logits = found.logits
    if chosen.temperatures is not None:
        logits = logits / chosen.temperatures[found.exits].unsqueeze(1).float()
    probabilities = logits.softmax(-1)
    return [
        {
            "id": f"{number % 2}/{number:02}.png",
            "label": str(values.argmax().item()),
            "exit": exit,
            "macs": macs,
            "probability": pytest.approx(values.max().item(), abs=1e-5),
            "probabilities": pytest.approx(values.tolist(), abs=1e-5),
        }
        for number, values, exit, macs in zip(
            order, probabilities, found.exits.tolist(), found.macs.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize(("kind", "point"), [("parquet", "margin-budget-0.6"), ("csv", None), ("jsonl", None)])
def test_a_folder_is_routed_like_the_network(
    run: Path, images: Path, tmp_path: Path, kind: str, point: str | None
) -> None:
    output = tmp_path / f"out.{kind}"
    infer(
        run, "--input", images, "--output", output, "--batch-size", 16, *([] if point is None else ["--point", point])
    )
    expected = routed(run, point)
    assert len({row["exit"] for row in expected}) > 1 or point is None
    assert read(output) == expected
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_cluster_writes_the_local_file_and_leaves_what_is_whole(run: Path, images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"point": "margin-budget-0.6", "batch_size": 16}
    local = command.infer(run, images, tmp_path / "local.jsonl", **options).output.read_bytes()
    assert command.infer(run, images, tmp_path / "a.jsonl", **options, cluster=Here()).output.read_bytes() == local
    with pytest.raises(UserError, match=r"shard = '0': was lost"):
        command.infer(run, images, tmp_path / "b.jsonl", **options, cluster=Here(change=lambda found: found[:2]))
    parts = sorted(path.name for path in (tmp_path / "b.jsonl.parts").glob("0*.jsonl"))
    assert (parts, (tmp_path / "b.jsonl").exists()) == (["00000001.jsonl", "00000002.jsonl"], False)
    assert command.infer(run, images, tmp_path / "b.jsonl", **options).output.read_bytes() == local


def test_a_node_without_the_files_says_so(run: Path, images: Path, tmp_path: Path) -> None:
    entry = Entry("0/00.png", images / "nowhere.png")
    with pytest.raises(UserError, match="is not on every node"):
        command.route_entries(command.Files(str(run), "last", None, None, str(images), 16, "{}"), [entry])
    with pytest.raises(UserError, match="is another on this node"):
        command.route_entries(command.Files(str(run), "last", None, None, str(images), 16, "{}"), [])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_names_of_another_encoding_are_spelled(run: Path, images: Path, tmp_path: Path, ending: str) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(images / "0/00.png", os.fsencode(tmp_path) + b"/images/gr\xf6\xdfe.png")
    infer(run, "--input", tmp_path / "images", "--output", tmp_path / f"rows.{ending}")
    assert [row["id"] for row in read(tmp_path / f"rows.{ending}")] == [r"gr\udcf6\udcdfe.png"]


def test_files_name_images_beside_them(run: Path, images: Path, tmp_path: Path) -> None:
    names = [f"{n % 2}/{n:02}.png" for n in range(0, 40, 2)]
    (images / "list.csv").write_text("id,path\n" + "".join(f"row {n},{name}\n" for n, name in enumerate(names)))
    (images / "list.jsonl").write_text("".join(json.dumps({"path": name}) + "\n" for name in names))
    infer(run, "--input", images / "list.csv", "--output", tmp_path / "a.jsonl")
    infer(run, "--input", images / "list.jsonl", "--output", tmp_path / "b.jsonl")
    rows, others, expected = read(tmp_path / "a.jsonl"), read(tmp_path / "b.jsonl"), routed(run, None)[:20]
    assert [row.pop("id") for row in rows] == [f"row {n}" for n in range(20)]
    assert [row.pop("id") for row in others] == [str(n) for n in range(20)]
    assert rows == others
    assert [row["exit"] for row in rows] == [row["exit"] for row in expected]


def test_unreadable_inputs_are_listed_and_not_fatal(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images / "0", folder)
    (folder / "00.png").write_bytes(b"no image")
    (folder / "02.png").write_bytes((folder / "04.png").read_bytes()[:60])
    (folder / "notes.md").write_text("is not read")
    (folder / "photo.JPG").write_bytes(b"")
    infer(run, "--input", folder, "--output", tmp_path / "out.jsonl", "--batch-size", 1)
    printed = capsys.readouterr().out
    assert "18 samples" in printed
    assert "3 unreadable" in printed
    assert [line.split(": ")[1] for line in printed.splitlines() if line.startswith("unreadable")] == [
        "00.png",
        "02.png",
        "photo.JPG",
    ]
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == [f"{n:02}.png" for n in range(4, 40, 2)]
    lines = ["{", "[]", json.dumps({"path": 3}), json.dumps({"path": "nowhere.png"}), json.dumps({"path": "04.png"})]
    (folder / "list.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    infer(run, "--input", folder / "list.jsonl", "--output", tmp_path / "more.jsonl")
    assert [row["id"] for row in read(tmp_path / "more.jsonl")] == ["4"]
    assert "1 samples" in capsys.readouterr().out


class Killed(BaseException):
    """Stands for a kill."""


def test_a_killed_run_continues_after_its_last_whole_batch(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[int] = []
    route = EarlyExitNetwork.route

    def dies(self: EarlyExitNetwork, inputs: torch.Tensor, policy: Any) -> Any:
        if len(rows) == 3:
            raise Killed
        rows.append(len(inputs))
        return route(self, inputs, policy)

    output = tmp_path / "out.jsonl"
    options = (run, "--input", images, "--output", output, "--batch-size")
    monkeypatch.setattr(EarlyExitNetwork, "route", dies)
    with pytest.raises(Killed):
        infer(*options, 8)
    assert not output.exists()
    monkeypatch.setattr(EarlyExitNetwork, "route", lambda *args: rows.append(len(args[1])) or route(*args))  # type: ignore[func-returns-value]
    with pytest.raises(SystemExit):
        infer(*options, 9)
    assert "another run, point, input or batch size" in capsys.readouterr().err
    infer(*options, 8)
    assert rows == [8] * 5
    assert read(output) == routed(run, None)
    with pytest.raises(SystemExit):
        infer(*options, 8)
    assert "exists already" in capsys.readouterr().err


def test_other_inputs_than_those_that_were_written_are_refused(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images / "0", folder)
    real = command.Parts.join
    monkeypatch.setattr(command.Parts, "join", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        infer(run, "--input", folder, "--output", tmp_path / "out.jsonl")
    monkeypatch.setattr(command.Parts, "join", real)
    (folder / "00.png").unlink()
    with pytest.raises(SystemExit):
        infer(run, "--input", folder, "--output", tmp_path / "out.jsonl")
    assert "parts of other inputs" in capsys.readouterr().err


def test_nothing_is_read_ahead(images: Path) -> None:
    opened: list[str] = []

    class Spy:
        suffixes, columns = (".png",), ["path"]

        def file(self, path: Path) -> str:
            opened.append(path.name)
            return path.name

    found: Iterator[Any] = command.items(images, Spy())  # type: ignore[arg-type]
    first = next(found)
    assert opened == []
    assert first.read() == "00.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--input": "nowhere"}, "must be a folder, or a file"),
        ({"--input": "empty"}, "holds nothing to read"),
        ({"--input": "list.csv"}, "needs the column path and has name"),
        ({"--output": "out.txt"}, "must end in .parquet, .csv, .jsonl"),
        ({"--batch-size": "0"}, "must be at least 1"),
        ({"--point": "nowhere"}, "the run has margin-budget-0.6"),
    ],
)
def test_mistakes_are_one_clear_error(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("name\n00.png\n")
    given = {"--input": str(images), "--output": "out.jsonl"} | change
    for key in ("--input", "--output"):
        given[key] = str(tmp_path / given[key])
    with pytest.raises(SystemExit) as exit:
        infer(run, *(part for pair in given.items() for part in pair))
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_texts(tmp_path_factory.mktemp("text"), ["text"])


def fit_texts(folder: Path, columns: list[str]) -> Path:
    pytest.importorskip("transformers")
    pytest.importorskip("datasets")
    rows = [dict.fromkeys(columns, text) | {"label": ("bad", "good")[n % 2]} for n, text in enumerate(films(80))]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = yaml.safe_load(
        tiny(folder / "t.yaml", "JointExits", folder / "run", warmup_epochs=1, phase_batches=2).read_text()
    )
    bert = {"num_classes": 2, "overrides": {**SMALL_BERT, "num_hidden_layers": 3}}
    config["model"]["init_args"]["network"]["init_args"]["backbone"] = {
        "class_path": "eenet.backbones.Bert",
        "init_args": bert,
    }
    arguments = {"train": str(folder / "train.jsonl"), "test": None, "tokenizer": write_tokenizer(folder / "words")}
    arguments["text"] = columns
    config["data"] = {"class_path": "datamodules.TextClassification", "init_args": {**arguments, "batch_size": 16}}
    (folder / "t.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(folder / "t.yaml"), *QUIET])
    return folder / "run"


def test_texts_are_read_with_the_runs_tokenizer(text_run: Path, tmp_path: Path) -> None:
    texts = films(10)
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in [*texts, " "])])
    for number, text in enumerate(texts):
        path = tmp_path / "texts" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    infer(text_run, "--input", tmp_path / "texts.csv", "--output", tmp_path / "a.jsonl", "--batch-size", 4)
    infer(text_run, "--input", tmp_path / "texts", "--output", tmp_path / "b.jsonl", "--batch-size", 4)
    rows, others = read(tmp_path / "a.jsonl"), read(tmp_path / "b.jsonl")
    opened = open_run(str(text_run))
    chosen = chosen_point(opened, None)
    for text, row, other in zip(texts, rows, others, strict=True):
        tokens = dict(opened.data.tokenizer([text], return_tensors="pt"))  # type: ignore[attr-defined]
        found = chosen.point.network(opened.model.network).route(tokens, chosen.point.policy)
        assert row["label"] in ("bad", "good")
        assert row["probabilities"] == pytest.approx(found.logits[0].softmax(-1).tolist(), abs=1e-5)
        assert (row["exit"], row["macs"]) == (found.exits.item(), found.macs.item())
        assert row | {"id": ""} == other | {
            "id": "",
            "probability": pytest.approx(other["probability"], abs=1e-6),
            "probabilities": pytest.approx(other["probabilities"], abs=1e-6),
        }


@pytest.mark.slow
@pytest.mark.parametrize("columns", [["text"], ["first", "second"]])
def test_an_exported_file_takes_what_the_tokenizer_gives(columns: list[str], tmp_path: Path) -> None:
    run, shipped = fit_texts(tmp_path, columns), tmp_path / "shipped"
    main(["export", str(run), "--format", "onnx", "--one", "--out", str(shipped)])
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(dict.fromkeys(columns, text)) + "\n" for text in films(9)))
    for batch_size in (1, 4):
        outputs = []
        for place in ([], ["--exported", shipped]):
            outputs.append(tmp_path / f"{batch_size}-{len(place)}.jsonl")
            source = ["--input", tmp_path / "new.jsonl", "--output", outputs[-1]]
            infer(run, *source, "--batch-size", batch_size, *place)
        for own, other in zip(*map(read, outputs), strict=True):
            near = {key: pytest.approx(own[key], abs=1e-5) for key in ("probability", "probabilities")}
            assert other == own | near
    main(["bench", str(run), "--runtime", "onnx", "--batch-size", "1,4", "--samples", "8", "--rounds", "1"])
    main(["bench", str(run), "--profile", "--runtime", "onnx", "--batch-size", "1", "--rounds", "1"])
    main(["calibrate", str(run), "--budget-ms", "1000", "--runtime", "onnx", "--alpha", "0.5"])


def test_served_texts_are_answered_as_the_network_routes_them_alone(text_run: Path) -> None:
    opened = open_run(text_run, False)
    service = of_run(opened, None, 16)
    texts, point = films(12), next(iter(service.points))
    asked = [Asked(point, service.inputs.read("", json.dumps({"texts": [text]}).encode())) for text in texts[:8]]
    asked.append(Asked(point, service.inputs.read("", json.dumps({"texts": texts[8:]}).encode())))
    found = answers(asked, lambda name, batch: service.points[name](batch), 16)
    rows = [row for answer in found for row in answer["rows"]]  # type: ignore[index]
    assert len({len(opened.data.tokenizer(text)["input_ids"]) for text in texts}) > 1
    chosen = chosen_point(opened, None)
    for text, row in zip(texts, rows, strict=True):
        tokens = dict(opened.data.tokenizer([text], return_tensors="pt"))
        routed = chosen.point.network(opened.model.network).route(tokens, chosen.point.policy)
        assert row["probabilities"] == pytest.approx(routed.logits[0].softmax(-1).tolist(), abs=1e-5)
        assert (row["exit"], row["macs"]) == (routed.exits.item(), routed.macs.item())


def test_numbers_of_a_single_text_need_no_token_types() -> None:
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = Inputs(tuple(InputSpec(name, "int64", (None,)) for name in names), 4)
    ids = {"input_ids": [[5, 7]], "attention_mask": [[1, 1]]}
    for given in (ids, ids | {"token_type_ids": [[0, 1]]}):
        (row,) = inputs.read("application/json", json.dumps({"inputs": given}).encode())
        assert isinstance(row, dict)
        assert {name: [values.tolist()] for name, values in row.items()} == given
    with pytest.raises(Refused, match="send input_ids, attention_mask, token_type_ids"):
        inputs.read("application/json", json.dumps({"inputs": {"input_ids": [[5, 7]]}}).encode())


@pytest.mark.parametrize(
    ("body", "kind", "status", "problem"),
    [
        ({"texts": [" "]}, "", 422, r"texts\[0\] needs 1 text"),
        ({"texts": [3]}, "", 422, r"texts\[0\] is no text"),
        ({"texts": []}, "", 422, "no rows"),
        ({"inputs": [[1]]}, "", 400, "`texts` alone"),
        ({}, "image/png", 415, "no images are taken"),
    ],
)
def test_what_is_no_text_is_refused(text_run: Path, body: Any, kind: str, status: int, problem: str) -> None:
    inputs = of_run(open_run(text_run, False), None, 16).inputs
    with pytest.raises(Refused, match=problem) as refused:
        inputs.read(kind, json.dumps(body).encode())
    assert refused.value.status == status


def test_an_exported_folder_routes_in_the_networks_place(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    point, exported = "margin-budget-0.6", tmp_path / "exported"
    main(["export", str(run), "--point", point, "--out", str(exported)])
    infer(run, "--input", images, "--output", tmp_path / "own.jsonl", "--point", point)
    infer(run, "--input", images, "--output", tmp_path / "other.jsonl", "--point", point, "--exported", exported)
    assert read(tmp_path / "own.jsonl") == read(tmp_path / "other.jsonl")
    with pytest.raises(SystemExit):
        infer(run, "--input", images, "--output", tmp_path / "third.jsonl", "--exported", exported)
    assert f"holds point '{point}'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def opened(run: Path) -> Run:
    return open_run(run)


class Broken:
    """Images whose last cannot be used."""

    def __init__(self, last: Any) -> None:
        self.last = last

    def __len__(self) -> int:
        return 5

    def __getitem__(self, row: int) -> Any:
        if row == 4 and isinstance(self.last, Exception):
            raise self.last
        return (self.last if row == 4 else torch.zeros(1, 8, 8)), 0


@pytest.mark.parametrize(
    ("last", "match"),
    [
        (torch.zeros(1, 9, 9), r"cannot be routed with shape \(1, 9, 9\)"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"cannot be routed with shape \(1, 8, 8\) of uint8"),
        ({"pixels": torch.zeros(1, 8, 8)}, "cannot be read|cannot be routed with dict of pixels"),
        (RuntimeError("odd"), "cannot be read .*odd"),
        ("text", "must be pairs|cannot be routed with str"),
    ],
    ids=["shape", "bytes", "dict", "raises", "text"],
)
@pytest.mark.parametrize("loader", [True, False])
def test_a_later_batch_that_cannot_be_used_leaves_nothing(
    opened: Run, tmp_path: Path, last: Any, match: str, loader: bool
) -> None:
    data: Any = OwnData(test=DataLoader(Broken(last), batch_size=2))  # type: ignore[arg-type]
    if not loader:
        data = SimpleNamespace(of_tokens=False, dataset=lambda split: Broken(last), fingerprint=lambda split: "known")
    with pytest.raises(UserError, match=match):
        eenet.predict(replace(opened, data=data), tmp_path / "rows.csv", batch_size=2)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_gone_for_a_while_costs_no_rows(opened: Run, tmp_path: Path) -> None:
    broken = Broken(OSError("gone"))  # type: ignore[arg-type]
    data: Any = SimpleNamespace(of_tokens=False, dataset=lambda split: broken, fingerprint=lambda split: "known")
    run, output = replace(opened, data=data), tmp_path / "rows.csv"
    with pytest.raises(UserError, match=r"cannot be read .*gone"):
        eenet.predict(run, output, batch_size=2)
    assert not output.exists()
    assert len(list(tmp_path.iterdir())) == 1
    broken.last = torch.zeros(1, 8, 8)
    eenet.predict(run, output, batch_size=2)
    assert list(tmp_path.iterdir()) == [output]


def test_a_table_that_breaks_off_leaves_nothing(opened: Run, images: Path, tmp_path: Path) -> None:
    names = [str(path) for path in sorted(images.rglob("*.png"))[:4]]
    source, output = tmp_path / "in.csv", tmp_path / "rows.csv"
    source.write_bytes("\n".join(["image", *names]).encode() + b"\n\xff\n")
    with pytest.raises(UserError, match="is no CSV file in UTF-8"):
        eenet.infer(opened, source, output, batch_size=2)
    assert list(tmp_path.iterdir()) == [source]
