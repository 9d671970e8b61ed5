"""What clients see of `eenet serve`, from a process of their own.

    python benchmarks/serve.py load --seconds 60     # a routed file, then the full network, behind the same server
    python benchmarks/serve.py soak --minutes 10     # the routed file, with wrong requests among the right ones

Both networks run on ONNX Runtime. Weights are random, thresholds near 60 % of the MACs; images of Fashion-MNIST's test
split are sent as PNG, each client the next as soon as it has its answer. Prints JSON; `--output` writes it, too.
"""

import http.client
import json
import random
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock, Thread
from typing import Any

import numpy as np
import psutil
import torch
from jsonargparse import auto_cli
from report import finish
from runtime import CPU, device_name, prepare
from torch import Tensor

from eenet.api.outputs import rows_of
from eenet.api.serving import open_service
from eenet.backbones.proofs import varied
from eenet.exporting import Description, export_network
from eenet.exporting.contenders import full_network
from eenet.gates import ConfidenceGate
from eenet.routing.route import Routed
from eenet.runtime import load as load_export
from eenet.serving import Route

IMAGES = 256
NETWORK = "vit_tiny_12x192_50_tokens"
WRONG = [b"no image", b"", b"{}", b"\x89PNG\r\n\x1a\n" + bytes(40)]


@dataclass(frozen=True)
class FullNetwork:
    """Opens the plain backbone on ONNX Runtime in the process that routes.

    Args:
        name: Of the benchmark's networks.
    """

    name: str

    def __call__(self) -> Route:
        network, _, _ = prepare(self.name, 0.6, "second", ConfidenceGate)
        run, last, costs = (
            full_network(network, varied(network.backbone.example_input())),
            network.num_exits - 1,
            network.costs,
        )

        def route(point: str, batch: Tensor) -> list[dict[str, Any]]:
            exits = torch.full((len(batch),), last)
            return rows_of(
                Routed(run(batch), exits, torch.full_like(exits, costs.full), exits), None, None, network.tree
            )

        return route


def export(name: str, folder: Path) -> list[bytes]:
    """Write a routed network as one ONNX file that skips; test images as PNG."""
    from PIL import Image

    network, policy, data = prepare(name, 0.6, "second", ConfidenceGate)
    about = Description(None, {"name": "near-0.6"}, data.preprocessing)  # type: ignore[attr-defined]
    export_network(network, policy, folder, varied(network.backbone.example_input()), "onnx", about, one=True)
    files = []
    for row in np.asarray(data.dataset("test").inputs[:IMAGES]):
        content = BytesIO()
        Image.fromarray(row.reshape(28, 28)).save(content, "PNG")
        files.append(content.getvalue())
    return files


def full(folder: Path, name: str, port: int = 8701) -> None:
    """Serve the full network as `eenet serve` does the routed one: the same server, reader and limits.

    Args:
        folder: Of the routed one, whose preprocessing it has.
        name: Of the benchmark's networks.
        port: To listen at.
    """
    from eenet.serving.server import Offer, Worker, make_server

    torch.set_num_threads(1)
    service = open_service(folder, None, "last", 256)
    server = make_server(Worker(FullNetwork(name), 32), Offer(service.inputs, ("full",), 16_000_000, {}), 30)
    server.run("127.0.0.1", port, log_level="warning", generate_client_file=False)


@contextmanager
def started(command: list[str], port: int) -> Iterator[psutil.Process]:
    """A server in a process of its own, once it is ready."""
    process = subprocess.Popen([sys.executable, *command, "--port", str(port)])
    try:
        while True:
            assert process.poll() is None, command
            try:
                if ask(http.client.HTTPConnection("127.0.0.1", port, 30), "GET", "/health")[0] == 200:
                    break
            except OSError:
                time.sleep(0.5)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(2 if "benchmarks" in command[0] else 15)
        process.wait(60)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    connection.request(method, path, body or None, {"Content-Type": "image/png"})
    response = connection.getresponse()
    return response.status, response.read()


def processor_seconds(server: psutil.Process) -> float:
    """Of all processes of a server."""
    times = [process.cpu_times() for process in [server, *server.children(recursive=True)]]
    return sum(found.user + found.system for found in times)


class Clients:
    """Clients that each ask again as soon as they have their answer, for some seconds.

    Args:
        port: Of the server.
        files: Images.
        expected: The row of each; `None` to compare nothing.
        wrong: Share of requests that are wrong.
        pause: Mean seconds that a client waits before it asks again, drawn exponentially.
    """

    def __init__(
        self,
        port: int,
        files: list[bytes],
        expected: list[dict[str, Any]] | None,
        wrong: float = 0.0,
        pause: float = 0.0,
    ) -> None:
        self.port, self.files, self.expected, self.wrong, self.pause = port, files, expected, wrong, pause
        self.counts, self.latencies, self.lock = Counter[str](), list[float](), Lock()

    def run(self, clients: int, seconds: float) -> dict[str, Any]:
        self.end = time.monotonic() + seconds
        threads = [Thread(target=self._client, args=(number,)) for number in range(clients)]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken, latencies = time.monotonic() - start, 1e3 * np.array(self.latencies)
        quantiles = {f"p{q}_ms": float(np.quantile(latencies, q / 100)) for q in (50, 95, 99)}
        return {"clients": clients, **self.counts, "per_second": len(latencies) / taken, **quantiles}

    def _client(self, number: int) -> None:
        draw, counts, latencies = random.Random(number), Counter[str](), []
        connection = http.client.HTTPConnection("127.0.0.1", self.port, 60)
        while time.monotonic() < self.end:
            time.sleep(self.pause * draw.expovariate(1))
            image, wrong = draw.randrange(len(self.files)), draw.random() < self.wrong
            start = time.monotonic()
            counts["asked"] += 1
            try:
                status, body = ask(connection, "POST", "/predict", draw.choice(WRONG) if wrong else self.files[image])
            except (OSError, http.client.HTTPException):
                counts["lost"] += 1
                connection.close()
                continue
            latencies.append(time.monotonic() - start)
            if wrong:
                counts["wrong_refused" if 400 <= status < 500 else "wrong_not_refused"] += 1
            elif status != 200:
                counts["errors"] += 1
            else:
                right = self.expected is None or same(json.loads(body)["rows"], self.expected[image])
                counts["answered" if right else "different"] += 1
        with self.lock:
            self.counts += counts
            self.latencies += latencies


def same(rows: list[dict[str, Any]], expected: dict[str, Any]) -> bool:
    """Whether one row has the label, exit and cost, and probabilities to 1e-5."""
    alike = len(rows) == 1 and all(rows[0][name] == expected[name] for name in ("label", "exit", "macs"))
    return alike and np.allclose(rows[0]["probabilities"], expected["probabilities"], atol=1e-5)


def one_by_one(folder: Path, files: list[bytes]) -> list[dict[str, Any]]:
    """What the exported network says of each image alone."""
    model = load_export(folder)
    return [rows_of(model(model.transform(file)[None]), None, None, model.manifest.tree)[0] for file in files]


def load(
    network: str = NETWORK,
    seconds: float = 60.0,
    clients: int = 64,
    rounds: int = 1,
    port: int = 8700,
    output: Path | None = None,
) -> None:
    """Saturate the routed and the full network in turns, and compare every answer of the routed one with that alone.

    Args:
        network: One of the networks of `benchmarks/runtime.py` for images.
        seconds: Of each.
        clients: That ask at once.
        rounds: Turns of both.
        port: To listen at; the next one for the full network.
        output: JSON file.
    """
    found: dict[str, list[dict[str, Any]]] = {"routed": [], "full": []}
    with TemporaryDirectory() as place:
        folder = Path(place, "exported")
        files = export(network, folder)
        expected = one_by_one(folder, files)
        commands = {
            "routed": ["-m", "eenet", "serve", str(folder)],
            "full": ["benchmarks/serve.py", "full", str(folder), network],
        }
        with started(commands["routed"], port) as routed, started(commands["full"], port + 1) as plain:
            for _ in range(rounds):
                for kind, server, at in (("routed", routed, port), ("full", plain, port + 1)):
                    Clients(at, files, None).run(clients, min(2.0, seconds))  # warms up
                    before = processor_seconds(server)
                    row = Clients(at, files, expected if kind == "routed" else None).run(clients, seconds)
                    used = 1e3 * (processor_seconds(server) - before) / row["asked"]
                    found[kind].append({**row, "processor_ms": used})
        fractions = [row["macs"] for row in expected]
    about = {"network": network, "device": device_name(CPU), "mean_macs": float(np.mean(fractions))}
    finish({**about, "load_average": psutil.getloadavg(), **found}, output)


def soak(
    network: str = NETWORK,
    minutes: float = 10.0,
    clients: int = 32,
    wrong: float = 0.1,
    pause: float = 0.0,
    port: int = 8700,
    output: Path | None = None,
) -> None:
    """Ask the routed network for long, some of the requests wrong, and watch the memory of its processes.

    Args:
        network: As for `load`.
        minutes: How long.
        clients: That ask at once.
        wrong: Share of requests that are wrong.
        pause: Mean seconds that a client waits before it asks again; with 0 they saturate the service.
        port: To listen at.
        output: JSON file.
    """
    megabytes: list[float] = []
    with TemporaryDirectory() as place:
        folder = Path(place, "exported")
        files = export(network, folder)
        expected = one_by_one(folder, files)
        with started(["-m", "eenet", "serve", str(folder)], port) as server:
            asking, row = Clients(port, files, expected, wrong, pause), dict[str, Any]()
            thread = Thread(target=lambda: row.update(asking.run(clients, 60 * minutes)))
            thread.start()
            while thread.is_alive():
                thread.join(0.6 * minutes)
                processes = [server, *server.children(recursive=True)]
                megabytes.append(sum(process.memory_info().rss for process in processes) / 1e6)
    quarter = max(1, len(megabytes) // 4)
    growth = float(np.mean(megabytes[-quarter:]) - np.mean(megabytes[quarter : 2 * quarter]))
    memory = {"megabytes": megabytes, "megabytes_grown_from_second_to_last_quarter": growth}
    finish({"network": network, "minutes": minutes, "load_average": psutil.getloadavg(), **row, **memory}, output)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    auto_cli({"load": load, "soak": soak, "full": full})
