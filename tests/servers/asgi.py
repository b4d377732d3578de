"""An ASGI application: counts what it is asked, and the bytes of a body."""

count = 0


async def app(scope, receive, send):
    global count
    if scope["type"] != "http":
        return
    count += 1
    size, more = 0, True
    while more:
        piece = await receive()
        size += len(piece.get("body", b""))
        more = piece.get("more_body", False)
    answer = b"count %d bytes %d\n" % (count, size)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})
