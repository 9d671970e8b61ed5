#!/bin/sh
# litserve 0.2.19 (fastapi 0.165.0, pydantic 2.14.4, Python 3.11): `LitServer(..., fast_queue=True)`, which its docstring
# says enables ZeroMQ, is served by the same queue of Python's multiprocessing as without. The server passes its choice
# to a pydantic model under a name that the model does not have, pydantic drops it without a word, and the field keeps
# its default.
#
# Output seen:
#     fast_queue=False: asked for ZeroMQ False, transport mp
#     fast_queue=True: asked for ZeroMQ True, transport mp
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet litserve==0.2.19 fastapi==0.165.0 uvicorn==0.54.0 pyzmq==27.3.0 pydantic==2.14.4 starlette==1.10.0 numpy==2.4.6
cat > "$folder/fast.py" <<'PYTHON'
import litserve


class Echo(litserve.LitAPI):
    def setup(self, device):
        pass

    def predict(self, request):
        return request


for fast in (False, True):
    server = litserve.LitServer(Echo(), accelerator="cpu", fast_queue=fast)
    transport = server.transport_config.transport_type
    print(f"fast_queue={fast}: asked for ZeroMQ {server.use_zmq}, transport {transport}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/fast.py" 2>/dev/null)
echo "$seen"
[ "$seen" = "fast_queue=False: asked for ZeroMQ False, transport mp
fast_queue=True: asked for ZeroMQ True, transport mp" ]
