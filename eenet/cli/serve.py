"""`eenet serve RUN|FOLDER`: answer images, texts or numbers over HTTP, from a run or what `eenet export` made."""

import os
import signal
from contextlib import suppress
from typing import Any

from eenet.parsing.refusals import Parser

INTERRUPTED, TERMINATED = 130, 143
"""Status after Ctrl-C and after SIGTERM."""


def main(args: list[str]) -> None:
    """Run `eenet serve` with some arguments, until Ctrl-C or SIGTERM; a `UserError` for what `eenet.serve` refuses."""
    parser = Parser(prog="eenet serve", description="Answer requests over HTTP, those that wait together in one batch.")
    parser.add_argument("source", type=str, help="run folder, or folder of `eenet export`")
    parser.add_argument("--ckpt_path", type=str, default="last", help="of a run: last, best or a file")
    parser.add_argument("--point", type=str | None, default=None, help="of requests that name none, else the run's own")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="127.0.0.1, or 0.0.0.0 or :: for other machines")
    parser.add_argument("--port", type=int, default=8000, help="from 1024")
    parser.add_argument("--batch-size", type=int, default=32, help="requests, and rows, that are routed together")
    parser.add_argument("--max-rows", type=int, default=256, help="of a request")
    parser.add_argument("--max-megabytes", type=float, default=16.0, help="of a request")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds after which a waiting request is given up")
    parser.add_argument("--threads", type=int | None, default=1, help="processor threads of an operator; null: torch's")
    options = vars(parser.parse_args(args))
    from eenet.api.serving import serve

    source, checkpoint, place = options.pop("source"), options.pop("ckpt_path"), f"{options['host']}:{options['port']}"

    def say(service: Any) -> None:
        for error in service.left_out:
            print(f"not served: {error}")
        usual, *others = service.points
        more = f", and {', '.join(others)} by ?point=" if others else ""
        print(f"{source} at {usual}{more}: POST http://{place}/predict, GET http://{place}/info", flush=True)

    own, sent = os.getpid(), list[int]()

    def end(number: int, _: Any) -> None:
        if os.getpid() != own:  # a fork that has no handler of its own
            os._exit(TERMINATED)
        sent.append(number)
        raise KeyboardInterrupt  # upon which LitServe ends its processes

    signal.signal(signal.SIGTERM, end)
    with suppress(KeyboardInterrupt):
        serve(source, checkpoint=checkpoint, opened=say, **options)
    raise SystemExit(TERMINATED if sent else INTERRUPTED)
