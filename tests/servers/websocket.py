"""WebSockets (RFC 6455) by hand: a server that sends back each message with its number, and a client that checks that.

    websocket.py                    serves on port 8000
    websocket.py PORT HOST COUNT    sends COUNT messages to that host at PORT of 127.0.0.1
"""

import base64
import hashlib
import os
import socket
import socketserver
import struct
import sys

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


def accept(key):
    return base64.b64encode(hashlib.sha1(key + MAGIC).digest())


def head(file):
    first = file.readline()
    headers = {}
    while line := file.readline().strip():
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    return first, headers


def frame(kind, payload, mask=None):
    bit = 0x80 if mask else 0
    if len(payload) < 126:
        length = bytes([bit | len(payload)])
    elif len(payload) < 1 << 16:
        length = bytes([bit | 126]) + struct.pack(">H", len(payload))
    else:
        length = bytes([bit | 127]) + struct.pack(">Q", len(payload))
    if mask:
        payload = masked(payload, mask)
    return bytes([0x80 | kind]) + length + (mask or b"") + payload


def masked(payload, mask):
    key = int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(len(payload), "big")


def receive(file):
    start = file.read(2)
    if len(start) < 2:
        return CLOSE, b""
    length = start[1] & 0x7F
    if length == 126:
        (length,) = struct.unpack(">H", file.read(2))
    elif length == 127:
        (length,) = struct.unpack(">Q", file.read(8))
    mask = file.read(4) if start[1] & 0x80 else None
    payload = file.read(length)
    return start[0] & 0xF, masked(payload, mask) if mask else payload


count = 0


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        global count
        _, headers = head(self.rfile)
        if headers.get(b"upgrade", b"").lower() != b"websocket":
            self.wfile.write(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
            return
        answer = accept(headers[b"sec-websocket-key"])
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + answer + b"\r\n\r\n"
        )
        while True:
            kind, payload = receive(self.rfile)
            if kind == CLOSE:
                self.wfile.write(frame(CLOSE, payload))
                return
            if kind == PING:
                self.wfile.write(frame(PONG, payload))
                continue
            count += 1
            self.wfile.write(frame(TEXT, b"%d " % count + payload))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


def client(port, host, messages):
    connection = socket.create_connection(("127.0.0.1", port))
    file = connection.makefile("rwb")
    key = base64.b64encode(os.urandom(16))
    file.write(
        b"GET /chat HTTP/1.1\r\nHost: " + host.encode() + b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
    )
    file.flush()
    first, headers = head(file)
    assert first.startswith(b"HTTP/1.1 101 "), first
    assert headers[b"sec-websocket-accept"] == accept(key), headers
    for number in range(1, messages + 1):
        payload = os.urandom(number * number * 7)
        file.write(frame(TEXT, payload, os.urandom(4)))
        file.flush()
        kind, back = receive(file)
        assert (kind, back) == (TEXT, b"%d " % number + payload), (kind, back[:20])
    file.write(frame(PING, b"ping", os.urandom(4)) + frame(CLOSE, b"\x03\xe8", os.urandom(4)))
    file.flush()
    assert receive(file) == (PONG, b"ping")
    assert receive(file) == (CLOSE, b"\x03\xe8")
    assert file.read() == b""


if len(sys.argv) > 1:
    client(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
else:
    Server(("127.0.0.1", 8000), Handler).serve_forever()
