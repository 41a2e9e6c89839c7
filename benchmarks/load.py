"""Users of a server of text, in a process of their own: print their times as JSON."""

import asyncio
import json
import sys
import time


async def ask(reader, writer, body: bytes) -> tuple[float, float]:
    """Send a request; return the seconds to its first chunk, and to its last."""
    began = time.perf_counter()
    writer.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await reader.readuntil(b"\r\n\r\n")
    first = None
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
        first = first or time.perf_counter() - began
    await reader.readline()
    return first or 0.0, time.perf_counter() - began


async def user(port: int, number: int, count: int, asked: dict) -> list:
    """Send requests one after another; return the times of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    bodies = [
        json.dumps(asked | {"seed": 1000 * number + n}).encode() for n in range(count)
    ]
    times = [await ask(reader, writer, body) for body in bodies]
    writer.close()
    return times


async def main(port: int, users: int, count: int, asked: dict) -> None:
    """Run all users at the same time."""
    began = time.perf_counter()
    found = await asyncio.gather(
        *(user(port, number, count, asked) for number in range(users))
    )
    seconds = time.perf_counter() - began
    first, whole = zip(*(times for one in found for times in one), strict=True)
    print(json.dumps({"seconds": seconds, "first": first, "whole": whole}))


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
