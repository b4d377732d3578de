"""The demo's unmodified server: Python's own, with a counter that only forks keep at 1."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from sys import version

count = 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        answer = f"Request {count} of Python {version.split()[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
