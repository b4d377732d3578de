"""What is random in CPython, a line each: its name and a value."""

import os
import random
import secrets
import sqlite3
import ssl
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def of_sqlite():
    return sqlite3.connect("/tmp/entropy").execute("select hex(randomblob(8))").fetchone()[0]


SOURCES = {
    "os.urandom": lambda: os.urandom(8).hex(),
    "secrets": lambda: secrets.token_hex(8),
    "random.SystemRandom": lambda: random.SystemRandom().random(),
    "uuid.uuid4": uuid.uuid4,
    "ssl.RAND_bytes": lambda: ssl.RAND_bytes(8).hex(),
    "sqlite3's randomblob": of_sqlite,
    "random.random": random.random,
    "random.Random()": lambda: random.Random().random(),
    "hash": lambda: hash("a text"),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        answer = "".join(f"{name}\t{source()}\n" for name, source in SOURCES.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
