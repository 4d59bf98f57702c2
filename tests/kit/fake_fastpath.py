"""A service of a test's own in the fast path's place: each request says what becomes of it."""

from __future__ import annotations

FAKE_FASTPATH = r"""
import asyncio, json, os, sys

PATH = sys.argv[1]
seen, connections = {}, 0

async def one(reader, writer):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    lines = (line.split(": ", 1) for line in head[1:] if line)
    headers = {name.lower(): value for name, value in lines}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    does = headers.get("x-fake", "answer")
    if does == "facts":
        return await answer(writer, 200, {"seen": seen, "connections": connections})
    seen[f"{method} {target}"] = seen.get(f"{method} {target}", 0) + 1
    if does == "pass":
        return await answer(writer, 418, {}, "X-Reason: test\r\n")
    if does == "unknown":
        return await answer(writer, 503, {})
    if does == "drop":
        return False
    if does == "hang":
        await asyncio.sleep(60)
    return await answer(writer, 200, {"headers": headers, "bytes": len(body)}, "X-Answered-By: fastpath\r\n")

async def answer(writer, status, facts, more=""):
    body = json.dumps(facts).encode()
    writer.write(
        f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        .encode() + body
    )
    await writer.drain()
    return True

async def serve(reader, writer):
    global connections
    connections += 1
    try:
        while await one(reader, writer):
            pass
    except (OSError, asyncio.IncompleteReadError):
        pass
    writer.close()

async def main():
    os.umask(0)
    await asyncio.start_unix_server(serve, PATH + ".new", limit=1 << 20)
    os.rename(PATH + ".new", PATH)
    await asyncio.Event().wait()

asyncio.run(main())
"""
"""For `python3 -c`, with the socket's path. What the header X-Fake of a request says:

answer (the default)  200, with what it got
pass                  418: not mine
unknown               503: whether it was done is not known
drop                  reads the request and closes the connection
hang                  answers after a minute
facts                 200: how often each "METHOD target" was asked, and how many connections there were
"""
