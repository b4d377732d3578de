#!/usr/bin/env python3
"""check-png.py FILE: is it a PNG? Signature, every chunk's CRC, the size of the inflated picture."""
import struct
import sys
import zlib

data = open(sys.argv[1], "rb").read()
if data[:8] != b"\x89PNG\r\n\x1a\n":
    sys.exit("no PNG signature")
at, chunks, idat = 8, [], b""
while at < len(data):
    length, kind = struct.unpack_from(">I4s", data, at)
    body = data[at + 8:at + 8 + length]
    (crc,) = struct.unpack_from(">I", data, at + 8 + length)
    if crc != zlib.crc32(kind + body):
        sys.exit(f"wrong CRC in chunk {kind}")
    if kind == b"IHDR":
        width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", body)
    if kind == b"IDAT":
        idat += body
    chunks.append(kind)
    at += 12 + length
if chunks[0] != b"IHDR" or chunks[-1] != b"IEND":
    sys.exit(f"chunks out of order: {chunks}")
samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
want = height * (1 + (width * samples * depth + 7) // 8)  # a filter byte before each row
got = len(zlib.decompress(idat))
if interlace == 0 and got != want:
    sys.exit(f"the picture has {got} bytes, not {want}")
