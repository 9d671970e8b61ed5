"""A run, or a folder of `export`, behind HTTP: what `eenet serve` does."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eenet import __version__
from eenet.api.clocks import use_threads
from eenet.api.inferring import Router
from eenet.api.opening import Chosen, Run, chosen_point, class_names, open_run
from eenet.api.outputs import Row, rows_of
from eenet.calibration import Calibration
from eenet.calibration.points import CALIBRATION
from eenet.decoding.network import DecoderNetwork
from eenet.errors import UserError
from eenet.images import read_image
from eenet.preprocessing import Preprocessing
from eenet.profile import Costs
from eenet.runtime import ExportedRuntime, RoutedOnnx, load
from eenet.runtime.manifest import MANIFEST, InputSpec
from eenet.serving import Inputs, Route

IDLE_SECONDS = 75
"""How long an idle connection stays open: longer than the 60 s after which proxies stop to use one."""

HOSTS = ("127.0.0.1", "0.0.0.0", "::")
"""Interfaces that LitServe listens at: this machine's own, all of IPv4, all of IPv6."""

PORTS = range(1024, 65536)


@dataclass
class Service:
    """What is served, as it is in one process.

    Attributes:
        inputs: What a request may hold.
        points: What routes, by operating point, the usual one first.
        about: What `/info` says.
        left_out: Why other points are not served.
    """

    inputs: Inputs
    points: dict[str, Callable[[Any], list[Row]]]
    about: dict[str, Any]
    left_out: list[UserError]


@dataclass(frozen=True)
class Opener:
    """Opens what routes in another process.

    Attributes:
        source: Folder of a run or an export.
        point: The usual point.
        checkpoint: Of a run.
        threads: Processor threads of an operator.
    """

    source: str
    point: str | None = None
    checkpoint: str = "last"
    threads: int | None = 1

    def __call__(self) -> Route:
        """A function of an operating point and a batch."""
        use_threads(self.threads)
        points = open_service(self.source, self.point, self.checkpoint, 1).points
        return lambda point, batch: points[point](batch)


def serve(
    source: str | Path,
    *,
    point: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    batch_size: int = 32,
    max_rows: int = 256,
    max_megabytes: float = 16.0,
    timeout: float = 30.0,
    threads: int | None = 1,
    checkpoint: str = "last",
    opened: Callable[[Service], None] = lambda service: None,
) -> None:
    """Answer requests until the process is told to end.

    Args:
        source: Folder of a run, or of `export`.
        point: The operating point of requests that name none; the run's own by default.
        host: `127.0.0.1` for this machine alone, `0.0.0.0` or `::` for all.
        port: From 1024.
        batch_size: Requests, and rows, that are routed together at most; it takes those that wait and waits for none.
        max_rows: Rows of a request at most.
        max_megabytes: Of a request at most.
        timeout: Seconds after which a request that still waits is given up.
        threads: Processor threads of an operator; `None` for torch's.
        checkpoint: Of a run: `last`, `best` or a file.
        opened: Is told what will be served.

    Raises:
        UserError: No such run, folder or point, a network that classifies nothing, a port in use, or no LitServe.
    """
    for field, value in (("batch-size", batch_size), ("max-rows", max_rows), ("threads", threads)):
        if value is not None and value < 1:
            raise UserError(field, value, "must be at least 1")
    for field, real in (("max-megabytes", max_megabytes), ("timeout", timeout)):
        if not 0 < real < math.inf:
            raise UserError(field, real, "must be a number above 0")
    check_place(host, port)
    if find_spec("litserve") is None:
        raise UserError("serve", "litserve", "is not installed: pip install 'eenet[serve]'")
    torch.set_num_threads(1)  # what reads requests is a fork of this process, which threads do not survive
    service = open_service(source, point, checkpoint, max_rows)
    from eenet.serving.server import Offer, Worker, end_with_parent, make_server

    most_bytes = int(max_megabytes * 1e6)
    limits = {"rows": max_rows, "bytes": most_bytes, "batch": batch_size, "seconds": timeout}
    offer = Offer(service.inputs, tuple(service.points), most_bytes, {**service.about, "limits": limits})
    worker = Worker(Opener(str(source), point, checkpoint, threads), batch_size)
    server = make_server(worker, offer, timeout)
    opened(service)
    os.register_at_fork(after_in_child=end_with_parent)
    try:
        server.run(
            host=host, port=port, log_level="warning", generate_client_file=False, timeout_keep_alive=IDLE_SECONDS
        )
    except (EOFError, ConnectionError) as error:  # what LitServe's own processes say of one that is gone
        raise UserError("serve", str(source), "the process that routes ended: out of memory, or killed") from error
    finally:
        for child in multiprocessing.active_children():  # of a server that was ended before it had started
            child.terminate()


def check_place(host: str, port: int) -> None:
    """Raise a `UserError` where there is no such interface, or the port is out of range or in use."""
    if host not in HOSTS:
        raise UserError("host", host, f"must be one of {', '.join(HOSTS)}")
    if port not in PORTS:
        raise UserError("port", port, f"must be from {PORTS[0]} to {PORTS[-1]}")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise UserError("port", port, f"cannot be used at {host} ({error.strerror}); give another one") from error


def open_service(source: str | Path, point: str | None, checkpoint: str, most_rows: int) -> Service:
    """Open a run or a folder of `export`.

    Args:
        source: Its folder.
        point: The usual point, the run's own by default.
        checkpoint: Of a run.
        most_rows: Of a request.

    Raises:
        UserError: It is neither, is damaged, or has no such point.
    """
    if not Path(source, MANIFEST).is_file():
        return of_run(open_run(source, False, checkpoint), point, most_rows)
    if checkpoint != "last":
        raise UserError("ckpt_path", checkpoint, f"is of a run, and {source} is what `eenet export` made of one")
    return of_export(load(source), str(source), point, most_rows)


def of_run(run: Run, point: str | None, most_rows: int) -> Service:
    """A run, at its own point and all that `eenet calibrate` chose for it."""
    if isinstance(run.model.network, DecoderNetwork) or not hasattr(run.data, "reader"):
        raise UserError("run", str(run.folder), "`eenet serve` serves classifiers of images and texts")
    own, left_out = next(iter(run.model.operating_points())), list[UserError]()
    usual, chosen = point or own, dict[str, Chosen]()
    calibrated = Calibration.of(run.folder, run.checkpoint, "all").points if run.file(CALIBRATION).is_file() else {}
    if usual not in calibrated and point is not None:
        chosen_point(run, point)
    for name in dict.fromkeys([usual, own, *calibrated]):
        try:
            chosen[name] = chosen_point(run, name if name in calibrated else None)
        except UserError as error:
            if name == usual:
                raise
            left_out.append(error)
    reader, backbone = run.data.reader(), run.model.network.backbone
    if hasattr(reader, "transform"):
        spec = InputSpec(None, "float32", tuple(backbone.example_input().shape[1:]))
        inputs = Inputs((spec,), most_rows, image=image_reader(run.data.preprocessing))
    else:
        specs = tuple(InputSpec(name, "int64", (None,)) for name in backbone.example_input())
        inputs = Inputs(specs, most_rows, text=partial(reader.fields, base=Path()), texts=len(reader.columns))
    names, network = class_names(run.data), run.model.network
    about = describe(str(run.folder), inputs, names, network.costs)
    about |= {"checkpoint": run.checkpoint.name, "weights": run.model.network_digest()}
    about["points"] = {name: figures(found.point.asked, found.point.got) for name, found in chosen.items()}
    return Service(inputs, {name: Router(run, found).route for name, found in chosen.items()}, about, left_out)


def of_export(runtime: ExportedRuntime | RoutedOnnx, source: str, point: str | None, most_rows: int) -> Service:
    """What `eenet export` made of a run, at the point at which it was made."""
    manifest, own = runtime.manifest, str(runtime.manifest.point.get("name", "own"))
    if point not in (None, own):
        raise UserError("point", point, f"{source} was exported at {own} and has no other; serve the run, or export it")
    image = None if manifest.preprocessing is None else image_reader(manifest.preprocessing)
    inputs = Inputs(manifest.inputs, most_rows, image)
    temperatures = manifest.point.get("temperatures")
    tempered = None if temperatures is None else torch.tensor(temperatures, dtype=torch.float64)

    def route(batch: Tensor | dict[str, Tensor]) -> list[Row]:
        return rows_of(runtime(batch), manifest.labels, tempered, manifest.tree)

    about = describe(source, inputs, manifest.labels, manifest.costs)
    about |= {"format": manifest.format, "weights": manifest.point.get("weights")}
    about["points"] = {own: figures(manifest.point.get("asked") or {}, manifest.point.get("got") or {})}
    return Service(inputs, {own: route}, about, [])


def image_reader(prepared: Preprocessing) -> Callable[[bytes], Tensor]:
    """What makes an input of the bytes of an image file; its steps are made once."""
    transform = prepared.transform()
    return lambda content: transform(read_image(content, prepared.mode))


def describe(source: str, inputs: Inputs, labels: Any, costs: Costs) -> dict[str, Any]:
    """What `/info` says of a network, plain JSON values."""
    return {
        "source": source,
        "eenet": __version__,
        "takes": [kind for kind, taken in (("images", inputs.image), ("texts", inputs.text)) if taken is not None],
        "json": inputs.example,
        "inputs": [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in inputs.specs],
        "labels": None if labels is None else list(labels),
        "exits": costs.num_exits,
        "full_network": {unit: column.full for unit, column in costs.columns.items()},
    }


def figures(asked: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    """What a point was chosen for and what it reached on the validation split; what is not a number is null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.loads(
        json.dumps({key: {k: plain(v) for k, v in values.items()} for key, values in (("asked", asked), ("got", got))})
    )
