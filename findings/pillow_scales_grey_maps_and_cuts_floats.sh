#!/bin/sh
# Pillow 13.0.0 (Python 3.11): grey images of more than eight bits, as medical and depth data sets have them, become three
# different things on the way to eight. A PGM whose header says that its largest value is 4095 is opened as mode "I" with
# all values multiplied to a largest of 65535, so that the stored numbers are gone; a 16-bit image converted to "L" is cut
# at 255, and a float image of 0 to 1 converted to "L" is rounded down to 0 and 1.
#
# Output seen:
#     PGM I [0, 16004, 65535, 32776]
#     16 bits [255, 255]
#     float [0, 1]
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'pillow==13.0.0'
cat > "$folder/grey.py" <<'PYTHON'
import io
import struct

from PIL import Image

stored = b"P5 4 1 4095\n" + struct.pack(">4H", 0, 1000, 4095, 2048)
image = Image.open(io.BytesIO(stored))
print("PGM", image.mode, list(image.get_flattened_data()))
print("16 bits", list(Image.frombytes("I;16", (2, 1), struct.pack("<2H", 300, 65535)).convert("L").get_flattened_data()))
print("float", list(Image.frombytes("F", (2, 1), struct.pack("<2f", 0.25, 1.0)).convert("L").get_flattened_data()))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/grey.py")
echo "$seen"
[ "$seen" = "PGM I [0, 16004, 65535, 32776]
16 bits [255, 255]
float [0, 1]" ]
