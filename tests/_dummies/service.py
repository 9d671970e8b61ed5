"""LitServe's own server and loop in threads of this process, with real sockets, and a client."""

import json
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from litserve.loops import inference_worker
from litserve.loops.base import _SENTINEL_VALUE
from litserve.transport.process_transport import MPQueueTransport
from litserve.utils import WorkerSetupStatus

from eenet.api.serving import Opener, open_service
from eenet.serving.server import Offer, Worker, make_server


class Answer(NamedTuple):
    """Status and content of a response."""

    status: int
    content: Any


class Client:
    """Sends requests to a service.

    Args:
        url: Of the service.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Answer:
        return self._open(urllib.request.Request(f"{self.url}{path}"))

    def post(self, body: Any, kind: str = "application/json", query: str = "") -> Answer:
        """Send bytes, or a value as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._open(urllib.request.Request(f"{self.url}/predict{query}", data, {"Content-Type": kind}))

    def _open(self, request: urllib.request.Request) -> Answer:
        try:
            with urllib.request.urlopen(request, timeout=30) as found:
                return Answer(found.status, _content(found.read()))
        except urllib.error.HTTPError as error:
            return Answer(error.code, _content(error.read()))


def _content(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


@contextmanager
def serving(
    source: Path, batch_size: int = 8, max_rows: int = 64, most_bytes: int = 100_000, worker: type[Worker] = Worker
) -> Iterator[Client]:
    """A service of a folder."""
    service = open_service(source, None, "last", max_rows)
    offer = Offer(service.inputs, tuple(service.points), most_bytes, service.about)
    made = worker(Opener(str(source)), batch_size)
    server = make_server(made, offer, 30)
    server.app.response_queue_id, waiting = 0, queue.Queue[Any]()
    server.litapi_request_queues = {made.api_path: waiting}
    server._transport, states = MPQueueTransport(None, [queue.Queue()]), {"predict_0": WorkerSetupStatus.STARTING}
    server.workers_setup_status = states
    arguments = (made, "cpu", 0, waiting, server._transport, states, server._callback_runner, False)
    front = uvicorn.Server(uvicorn.Config(server.app, port=0, log_level="error"))
    threads = [
        threading.Thread(target=inference_worker, args=arguments),
        threading.Thread(target=front.run),
    ]
    for thread in threads:
        thread.start()
    try:
        while not (front.started and WorkerSetupStatus.READY in states.values()):
            assert all(thread.is_alive() for thread in threads)
        yield Client(f"http://127.0.0.1:{front.servers[0].sockets[0].getsockname()[1]}")
    finally:
        front.should_exit = True
        waiting.put(_SENTINEL_VALUE)
        server._transport.close()
        for thread in threads:
            thread.join(10)
        os.environ.pop("LITSERVE_WORKER_ID", None)
