#!/bin/sh
# ray 2.60.0 (Python 3.11): `ray.init(address="HOST:PORT")` of a port where nobody listens, which a socket is told at once,
# is still trying after a minute and raises nothing. Ask the port with a socket first.
#
# Output seen:
#     a socket: ConnectionRefusedError
#     ray.init: still trying after 60 s
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ray==2.60.0
cat > "$folder/refused.py" <<'PYTHON'
import socket
import subprocess
import sys

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
try:
    socket.create_connection(("127.0.0.1", port), timeout=60)
except OSError as error:
    print(f"a socket: {type(error).__name__}")
program = f"import ray; ray.init(address='127.0.0.1:{port}')"
try:
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    print(f"ray.init: ended with status {ended.returncode}")
except subprocess.TimeoutExpired:
    print("ray.init: still trying after 60 s")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/refused.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "a socket: ConnectionRefusedError
ray.init: still trying after 60 s" ]
