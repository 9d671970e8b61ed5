"""The server: LitServe's, with one entry per request in a batch and each request's errors its own.

Requests are read by a dependency of FastAPI in the process that talks to clients, and routed in another. LitServe
deals whatever a batch returns out by position, gives one request's error to all, and asks its queue without pause when
there is nothing to do; so a batch is a list of requests and of answers, an answer is a whole response with its own
status, and the queue is waited for.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from threading import Thread
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, HTTPException, Request
from litserve import LitAPI, LitServer
from litserve.loops.base import collate_requests
from litserve.loops.simple_loops import BatchedLoop
from litserve.transport.base import MessageTransport
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from eenet.errors import some
from eenet.files import size
from eenet.serving.answers import Asked, Route, answers
from eenet.serving.bodies import Inputs, Refused

IDLE = 1.0
"""Seconds between two looks whether a process that has nothing to do is to end."""


class Offer(NamedTuple):
    """What is served.

    Attributes:
        inputs: What a request may hold.
        points: Names of the operating points, the usual one first.
        most_bytes: Of a request.
        about: What `/info` says.
    """

    inputs: Inputs
    points: tuple[str, ...]
    most_bytes: int
    about: dict[str, Any]


async def read(request: Request) -> Asked:
    """The rows of a request and its operating point.

    Raises:
        HTTPException: With the status and the reason of a refusal.
    """
    offer: Offer = request.app.state.offer
    try:
        point = request.query_params.get("point", offer.points[0])
        if point not in offer.points:
            raise Refused(422, f"there is no point {point[:80]!r} here, but {some(offer.points, 20)}")
        body = await bounded(request, offer.most_bytes)
        rows = await run_in_threadpool(offer.inputs.read, request.headers.get("content-type", ""), body)
    except Refused as error:
        raise HTTPException(error.status, error.problem) from None
    return Asked(point, rows)


async def bounded(request: Request, most: int) -> bytes:
    """The body of a request; of one too large the rest is read and dropped, so that the client comes to its answer.

    Raises:
        Refused: It is larger.
    """
    held, length = bytearray(), 0
    async for chunk in request.stream():
        length += len(chunk)
        if length <= most:
            held += chunk
    if length > most:
        raise Refused(413, f"the request has {size(length)}; at most {size(most)} are taken")
    return bytes(held)


class Worker(LitAPI):
    """Routes batches of requests.

    Args:
        opener: Opens what routes, in the process that does.
        batch_size: Requests, and rows, of a batch at most.
    """

    def __init__(self, opener: Callable[[], Route], batch_size: int) -> None:
        super().__init__(max_batch_size=batch_size, loop=WaitingLoop())
        self.opener = opener
        self.route: Route | None = None

    def setup(self, device: str) -> None:
        """Open what routes."""
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the first ends this one
            end_with_parent()
        self.route = self.opener()

    def decode_request(self, request: Annotated[Any, Depends(read)]) -> Asked:
        """The request as it was read."""
        return request

    def predict(self, requests: list[Asked]) -> list[Any]:
        """An answer, or why there is none, for every request."""
        assert self.route is not None
        return answers(requests, self.route, self.max_batch_size)

    def encode_response(self, output: Any) -> Response:
        """The whole response, with a status of its own."""
        if isinstance(output, Refused):
            return JSONResponse({"detail": output.problem}, output.status)
        return JSONResponse(output)


class WaitingLoop(BatchedLoop):
    """LitServe's loop of batches, which sleeps until there is a request."""

    def get_batch_requests(self, lit_api: LitAPI, request_queue: Any, transport: MessageTransport) -> tuple[list, list]:
        """Whoever waits, up to a batch; at least one, or nobody after a second."""
        try:
            return collate_requests(self, lit_api, _Waited(request_queue), transport)
        except (EOFError, ConnectionError) as error:  # the process that keeps the queue has ended
            raise SystemExit(1) from error


class _Waited:
    """A queue of which the first is waited for."""

    def __init__(self, queue: Any) -> None:
        self.queue, self.first = queue, True

    def get_nowait(self) -> Any:
        if self.first:
            self.first = False
            return self.queue.get(timeout=IDLE)
        return self.queue.get_nowait()


def end_with_parent() -> None:
    """End this process within a second after the one that started it, which may be killed and end nobody."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(IDLE)
        os._exit(1)

    Thread(target=watch, name="eenet-parent", daemon=True).start()


def make_server(worker: Worker, offer: Offer, timeout: float) -> LitServer:
    """A server that was not started; a request that still waits after the timeout, in seconds, gets status 504."""
    server = LitServer(worker, accelerator="cpu", model_metadata=offer.about, timeout=timeout)
    server.app.state.offer = offer
    return server
