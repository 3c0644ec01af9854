"""An executor that stays: its models are loaded once, then batches of images come over a socket, and answers go back.

segserve starts the entry point as always and names the socket in `SEGSERVE_SERVE`. A message is one line of JSON; the
images of a request follow it as raw bytes, `bytes` many, one after the other:

    us    {"serve": 1, "seconds": 0.8}                                  loaded
    them  {"id": 1, "values": {"min_area": "30"}, "images": [{"name": "a.png", "shape": [64, 48], "dtype": "uint8"}],
           "bytes": 3072}
    us    {"id": 1, "seconds": 0.02, "found": [[{object of format 0.2}, …], …]}   or   {"id": 1, "error": "…"}

`values` are parameters as text, as on the command line. When the connection ends, so do we.
"""

import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

SERVE = "SEGSERVE_SERVE"
VERSION = 1

Message = Dict[str, Any]
Answer = Callable[[Message, List[np.ndarray]], Message]


def place() -> Optional[str]:
    """The socket on which somebody waits for us; None when we are to run once, as usual."""
    return os.environ.get(SERVE) or None


def serve(where: str, load: Callable[[], None], answer: Answer) -> None:
    """Connect, `load`, then answer requests until the connection ends. What `answer` raises is its answer."""
    start = time.perf_counter()
    with _connected(where) as connection, connection.makefile("rwb") as line:
        load()
        _say(line, {"serve": VERSION, "seconds": time.perf_counter() - start})
        while True:
            heard = _hear(line)
            if heard is None:
                return
            _say(line, _answered(answer, *heard))


def _answered(answer: Answer, message: Message, images: List[np.ndarray]) -> Message:
    start = time.perf_counter()
    try:
        found = answer(message, images)
    except Exception as error:  # one bad image is no reason to end
        traceback.print_exc(file=sys.stderr)
        found = {"error": f"{type(error).__name__}: {error}"}
    return {"id": message["id"], "seconds": time.perf_counter() - start, **found}


def _connected(where: str) -> socket.socket:
    # The address of a socket has room for 107 bytes only; a folder's descriptor makes any path short.
    folder = os.open(str(Path(where).parent), os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"/proc/self/fd/{folder}/{Path(where).name}")
        return connection
    finally:
        os.close(folder)


def _say(line: Any, message: Message) -> None:
    line.write(json.dumps(message, allow_nan=False).encode("utf-8") + b"\n")
    line.flush()


def _hear(line: Any) -> Optional[Tuple[Message, List[np.ndarray]]]:
    head = line.readline()
    if not head.endswith(b"\n"):
        return None
    message = json.loads(head.decode("utf-8"))
    content = line.read(message["bytes"])
    if len(content) < message["bytes"]:
        return None
    return message, list(_images(message["images"], content))


def _images(described: Sequence[Dict[str, Any]], content: bytes) -> List[np.ndarray]:
    found, start = [], 0
    for one in described:
        shape = tuple(one["shape"])
        size = int(np.prod(shape)) * np.dtype(one["dtype"]).itemsize
        # A copy: models may write into what they are given.
        found.append(np.frombuffer(content[start : start + size], one["dtype"]).reshape(shape).copy())
        start += size
    return found
