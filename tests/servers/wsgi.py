"""A WSGI application: counts what it is asked, and the bytes of a body."""

count = 0


def app(environ, start_response):
    global count
    count += 1
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    answer = b"count %d bytes %d\n" % (count, len(body))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
