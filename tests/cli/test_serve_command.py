"""`eenet serve`: LitServe's server and loop over real sockets; the whole command under load is slow."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

pytest.importorskip("litserve")

from datamodules.fashion_mnist import debian_folder
from eenet.api.opening import chosen_point, open_run
from eenet.cli.main import main
from eenet.serving.server import Worker
from tests._dummies.service import Client, serving
from tests.cli.test_cli import QUIET, failure
from tests.survive.harness import config

ROOT = Path(__file__).parents[2]


class Held(Worker):
    """A worker that notes its batches, and waits with them until it is let go."""

    go = threading.Event()
    batches: list[int] = []

    def predict(self, requests: list[Any]) -> list[Any]:
        assert self.go.wait(20)
        self.batches.append(len(requests))
        return super().predict(requests)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    file = folder.with_name("config.yaml")
    file.write_text(yaml.safe_dump(config(folder)))
    main(["fit", "--config", str(file), *QUIET])
    main(["calibrate", str(folder), "--budget", "0.4,0.8"])
    return folder


@pytest.fixture(scope="module")
def service(run: Path) -> Iterator[Client]:
    Held.go.set()
    with serving(run, worker=Held) as client:
        yield client


def own_point(run: Path) -> str:
    return next(iter(open_run(run, False).model.operating_points()))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty digits as PNG files."""
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(load_digits().images[:20]):
        Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


def near(row: dict[str, Any]) -> dict[str, Any]:
    close = {name: pytest.approx(row[name], abs=1e-6) for name in ("probability", "probabilities")}
    return {**row, **close}


def upload(*files: bytes) -> tuple[bytes, str]:
    """A body of several files and its type, as `curl -F` sends them."""
    edge = b"----edge7f3a"
    head = b'\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    body = b"".join(b"--" + edge + head + file + b"\r\n" for file in files)
    return body + b"--" + edge + b"--\r\n", f"multipart/form-data; boundary={edge.decode()}"


def test_images_are_answered_as_infer_routes_them(run: Path, service: Client, images: Path, tmp_path: Path) -> None:
    output, point = tmp_path / "rows.jsonl", "budget-0.8"
    main(["infer", str(run), "--input", str(images), "--output", str(output), "--point", point, "--batch-size", "1"])
    expected = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row.pop("id") for row in expected] == [f"{number:02}.png" for number in range(20)]
    files = [path.read_bytes() for path in sorted(images.iterdir())]
    alone = service.post(files[0], "image/png", f"?point={point}")
    assert alone == (200, {"point": point, "rows": [near(expected[0])]})
    several = service.post(*upload(*files), f"?point={point}")
    assert several.content["rows"] == [near(row) for row in expected]
    assert len({row["exit"] for row in several.content["rows"]}) > 1


def test_points_are_switched_by_request_and_described(run: Path, service: Client) -> None:
    opened, inputs = open_run(run, False), torch.randn(12, 1, 8, 8)
    about = service.get("/info").content["model"]
    assert list(about["points"]) == [own_point(run), "budget-0.4", "budget-0.8"]
    for name in about["points"]:
        answer = service.post({"inputs": inputs.tolist()}, query=f"?point={name}").content
        chosen = chosen_point(opened, None if name == own_point(run) else name)
        routed = chosen.point.network(opened.model.network).route(inputs, chosen.point.policy)
        assert answer["point"] == name
        assert [row["exit"] for row in answer["rows"]] == routed.exits.tolist()
        assert [row["macs"] for row in answer["rows"]] == routed.macs.tolist()
        assert about["points"][name] == {"asked": chosen.point.asked, "got": chosen.point.got}
    assert service.post({"inputs": inputs.tolist()}).content["point"] == own_point(run)
    assert service.get("/health") == (200, "ok")


WRONG: dict[str, tuple[Any, str, int, str]] = {
    "no JSON": (b"{", "application/json", 400, "is no JSON"),
    "deep JSON": (b"[" * 50_000, "application/json", 400, "is no JSON"),
    "another key": ({"input": []}, "application/json", 400, "send an object with `inputs` alone"),
    "no list": ({"inputs": 3}, "application/json", 400, "have to be a list"),
    "empty": ({"inputs": []}, "application/json", 422, "holds no rows"),
    "another shape": ({"inputs": [[[0.0] * 8] * 8]}, "application/json", 422, "is of shape [8, 8], not [1, 8, 8]"),
    "ragged": ({"inputs": [[[[0.0], [0.0, 1.0]]]]}, "application/json", 422, "inputs[0] is no array"),
    "text": ({"inputs": ["a"]}, "application/json", 422, "inputs[0] is no array of numbers"),
    "NaN": ({"inputs": [[[[float("nan")] * 8] * 8]]}, "application/json", 422, "inputs[0] holds NaN"),
    "infinite": ({"inputs": [[[[1e39] * 8] * 8]]}, "application/json", 422, "beyond float32"),
    "overflow": ({"inputs": [[[[3e38] * 8] * 8]]}, "application/json", 422, "row 0: what the network makes of it"),
    "rows": ({"inputs": [0] * 65}, "application/json", 413, "holds 65 rows; at most 64"),
    "bytes": (b" " * 100_001, "application/json", 413, "at most 100.00 kB are taken"),
    "no image": (b"no image", "image/png", 422, "image 0: not a readable image"),
    "half an image": (*upload(b"\x89PNG\r\n\x1a\n"), 422, "image 0: not a readable image"),
    "no boundary": (b"abc", "multipart/form-data", 400, "no boundary or is cut off"),
    "cut off": (upload(b"abc")[0][:-20], upload(b"abc")[1], 400, "no boundary or is cut off"),
    "no file": (*upload(), 422, "holds no rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_refused_in_one_line(service: Client, name: str) -> None:
    body, kind, status, message = WRONG[name]
    answer = service.post(body, kind)
    assert answer.status == status
    assert message in answer.content["detail"]
    assert "\n" not in answer.content["detail"]


def test_an_unknown_point_is_refused(service: Client) -> None:
    answer = service.post({"inputs": []}, query="?point=other")
    assert answer == (422, {"detail": "there is no point 'other' here, but budget-0.5, budget-0.4, budget-0.8"})


def test_requests_that_share_a_batch_do_not_harm_each_other(service: Client) -> None:
    inputs = torch.randn(30, 1, 8, 8)
    alone = [service.post({"inputs": [row]}).content["rows"][0] for row in inputs.tolist()]
    bodies: list[Any] = [{"inputs": [row]} for row in inputs[:20].tolist()]
    bodies += [{"inputs": inputs[20:].tolist()}, {"inputs": [[[[3e38] * 8] * 8], inputs[0].tolist()]}]
    bodies += [WRONG[name][0] for name in ("NaN", "empty", "another shape", "no JSON")]
    Held.go.clear()
    Held.batches.clear()
    with ThreadPoolExecutor(len(bodies)) as clients:
        asked = [clients.submit(service.post, body) for body in bodies]
        threading.Timer(0.5, Held.go.set).start()
        found = [answer.result() for answer in asked]
    assert [answer.content["rows"] for answer in found[:20]] == [[near(row)] for row in alone[:20]]
    assert found[20].content["rows"] == [near(row) for row in alone[20:]]
    assert [answer.status for answer in found[21:]] == [422, 422, 422, 422, 400]
    assert sum(Held.batches) == 22
    assert max(Held.batches) == 8


@pytest.mark.slow
def test_an_exported_folder_answers_as_the_run_does(run: Path, service: Client, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    main(["export", str(run), "--point", "budget-0.4", "--out", str(folder)])
    image = BytesIO()
    Image.linear_gradient("L").resize((11, 9)).save(image, "PNG")
    with serving(folder) as client:
        assert list(client.get("/info").content["model"]["points"]) == ["budget-0.4"]
        for body, kind in ((image.getvalue(), "image/png"), (json.dumps({"inputs": [[[[0.5] * 8] * 8]]}), "")):
            data = body if isinstance(body, bytes) else body.encode()
            found, expected = client.post(data, kind), service.post(data, kind, "?point=budget-0.4")
            assert found.content["rows"] == [near(expected.content["rows"][0])]
        assert client.post({"inputs": []}, query="?point=budget-0.8").status == 422


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--port", "80"], "port = 80: must be from 1024"),
        (["--host", "example.org"], "host = 'example.org': must be one of"),
        (["--batch-size", "0"], "batch-size = 0: must be at least 1"),
        (["--max-megabytes", "0"], "max-megabytes = 0"),
        (["--point", "other"], "point = 'other'"),
    ],
)
def test_wrong_arguments_are_refused(
    run: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failure(capsys, "serve", str(run), "--port", "18765", *args)


def test_a_port_in_use_is_refused(run: Path, service: Client, capsys: pytest.CaptureFixture[str]) -> None:
    port = service.url.rpartition(":")[2]
    assert f"port = {port}: cannot be used" in failure(capsys, "serve", str(run), "--port", port)


def test_a_folder_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no" in failure(capsys, "serve", str(tmp_path), "--port", "18765")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_the_command_ends_with_all_its_processes(run: Path, sent: signal.Signals, status: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom eenet.cli.main import main"
    command = [sys.executable, "-c", f"{program}\nmain(['serve', {str(run)!r}, '--port', '{port}'])"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=ROOT)
    client = Client(f"http://127.0.0.1:{port}")
    while True:
        assert process.poll() is None
        with suppress(OSError):
            if client.get("/health").status == 200:
                break
        time.sleep(0.2)
    inputs = torch.randn(3, 1, 8, 8)
    assert len(client.post({"inputs": inputs.tolist()}).content["rows"]) == 3
    if sent == signal.SIGTERM:  # which it heeds beside an idle connection, too
        idle = http.client.HTTPConnection("127.0.0.1", port)
        for seconds in (6, 0):  # uvicorn closes idle connections after 5
            idle.request("GET", "/health")
            assert idle.getresponse().read()
            time.sleep(seconds)
    others = psutil.Process(process.pid).children(recursive=True)
    assert len(others) >= 3
    process.send_signal(sent)
    assert process.wait(60) == status
    assert psutil.wait_procs(others, 20)[1] == []
    assert "Traceback" not in (tmp_path / "said").read_text()


@pytest.mark.slow
@pytest.mark.skipif(debian_folder() is None, reason="needs Fashion-MNIST")
def test_under_load_every_request_gets_its_own_answer(tmp_path: Path) -> None:
    options = ["--network", "cifar_resnet_14", "--seconds", "3", "--clients", "8", "--output", str(tmp_path / "a.json")]
    subprocess.run([sys.executable, "benchmarks/serve.py", "load", *options], cwd=ROOT, check=True)
    found = json.loads((tmp_path / "a.json").read_text())
    for kind in ("routed", "full"):
        assert [row["asked"] for row in found[kind]] == [row["answered"] for row in found[kind]]
        assert found[kind][0]["answered"] > 0
