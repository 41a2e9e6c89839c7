"""A server of generated text under load: users in slots, one at a time, and torch.

    python -m benchmarks.serving --users 16 --requests 4

The server is `http.server` with a thread for each connection. Users in another process
send requests one after another and read the text as it arrives. The model has the sizes
of the quickstart and random parameters, since speed does not depend on their values.
"""

import argparse
import importlib.util
import itertools
import json
import queue
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxlstm.lab.config import loading as configs
from jaxlstm.lab.data import vocabulary as vocabularies
from jaxlstm.lab.tasks.language_modelling import TASK
from jaxlstm.lab.tasks.language_modelling.streaming import AHEAD, TextStream

SYMBOLS = "".join(map(chr, range(32, 32 + 165)))
LOAD = Path(__file__).with_name("load.py")
PROMPT = "def f(x): return x"
Generate = Callable[[str, int, int], Iterator[str]]  # of prompt, length, seed


def text_stream(slots: int) -> TextStream:
    """Return the streams of a model with the sizes of the quickstart."""
    config = configs.load({"data": {"source": "text", "path": "-"}})
    vocabulary = vocabularies.characters(SYMBOLS)
    model = TASK.model(config, vocabulary)
    params, _ = model.init(jax.random.key(0))
    return TextStream(model, params, vocabulary, config, slots=slots)


def in_slots(slots: int) -> Generate:
    """Return the generator whose users share one batch."""
    stream, free = text_stream(slots), queue.SimpleQueue[int]()
    stream.warm_up()
    for slot in range(slots):
        free.put(slot)

    def generate(prompt: str, length: int, seed: int) -> Iterator[str]:
        slot = free.get()  # waits while all slots are taken
        try:
            yield from stream.generate(slot, prompt, length=length, seed=seed)
        finally:
            free.put(slot)

    return generate


def with_torch() -> Generate:
    """Return the same model in torch, with a state for each request."""
    import torch

    torch.set_num_threads(1)  # threads of one step of one row only wait
    vocabulary, units = vocabularies.characters(SYMBOLS), 192
    embed = torch.nn.Embedding(vocabulary.size, 64)
    rnn, head = torch.nn.LSTM(64, units), torch.nn.Linear(units, vocabulary.size)

    def generate(prompt: str, length: int, seed: int) -> Iterator[str]:
        random = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            tokens = torch.as_tensor(vocabulary.encode(prompt)).long()
            hs, state = rnn(embed(tokens))
            for _ in range(length):
                p = torch.softmax(head(hs[-1]) / 0.8, -1)
                token = torch.multinomial(p, 1, generator=random)
                yield vocabulary.decode([int(token)])
                hs, state = rnn(embed(token), state)

    return generate


def server(generate: Generate) -> ThreadingHTTPServer:
    """Return a server; POST {"prompt", "length", "seed"} streams the text."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            """Send the text of a few tokens as a chunk."""
            size = int(self.headers["Content-Length"])
            asked = json.loads(self.rfile.read(size))
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            pieces = generate(asked["prompt"], asked["length"], asked["seed"])
            while tokens := list(itertools.islice(pieces, AHEAD)):
                data = "".join(tokens).encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 1024

    return Server(("127.0.0.1", 0), Handler)


class Load(NamedTuple):
    """Times of a server under load.

    Attributes:
        tokens_per_second: of all users together.
        first: seconds from each request to its first token.
        whole: seconds of each request.
    """

    tokens_per_second: float
    first: list[float]
    whole: list[float]

    def __str__(self) -> str:
        """Return the row of a table."""
        cells = [f"{self.tokens_per_second:,.0f}"]
        for seconds in self.first, self.whole:
            cuts = statistics.quantiles(seconds, n=100, method="inclusive")
            cells += [f"{1e3 * cuts[49]:,.0f}", f"{1e3 * cuts[98]:,.0f}"]
        return " | ".join(cells)


def measure(generate: Generate, *, users: int, requests: int, length: int) -> Load:
    """Return the times of users who send requests one after another."""
    serving = server(generate)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    asked = {"prompt": PROMPT, "length": length}
    options = {"port": serving.server_port, "users": users, "asked": asked}
    for count in 1, requests:  # the first ones compile
        command = [sys.executable, LOAD, json.dumps(options | {"count": count})]
        found = json.loads(
            subprocess.run(command, capture_output=True, check=True).stdout
        )
    serving.shutdown()
    serving.server_close()
    tokens = users * requests * length
    return Load(tokens / found["seconds"], found["first"], found["whole"])


def main() -> None:
    """Print a table of servers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args()
    print(
        "| server | users | tokens/s | first token p50 ms | p99 | request p50 | p99 |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for users in options.users:
        servers = {"slots": in_slots(users), "one at a time": in_slots(1)}
        if importlib.util.find_spec("torch"):
            servers["torch"] = with_torch()
        for name, generate in servers.items():
            found = measure(
                generate, users=users, requests=options.requests, length=options.length
            )
            print(f"| {name} | {users} | {found} |", flush=True)


if __name__ == "__main__":
    main()
