"""http.server with a handler of one's own, a thread a connection: counts what it is asked, and the bytes of a body.

At /bytes/N there are N."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

count = 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/bytes/"):
            answer = b"x" * int(self.path[7:])
        else:
            count += 1
            answer = b"count %d bytes %d\n" % (count, len(body))
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET


ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
