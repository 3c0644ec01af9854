"""URLs → pixels: fetched as strangers' URLs are, decoded as every other input is, several at a time, few in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from segserve import inputs
from segserve.config import FetchSettings
from segserve.errors import SegserveError
from segserve.fetching import Limits, Policy, download

Array = NDArray[Any]
_AT_ONCE = 4
_AHEAD = 8  # decoded images that wait for the first stage


class Fetcher:
    """Fetches the images of one request into a folder, which is the caller's to remove."""

    def __init__(self, folder: Path, settings: FetchSettings) -> None:
        self._folder = folder
        self._limits = Limits(int(settings.max_mb * 2**20), settings.timeout_s)
        self._policy = Policy(settings.allow, settings.only, frozenset(settings.ports))
        self._max_pixels = int(settings.max_megapixels * 1e6)

    def pixels(self, url: str, name: str) -> Array:
        """The pixels of an image: (rows, columns) or (rows, columns, 3) as RGB, uint8 or uint16.

        Raises:
            SegserveError: it cannot be fetched, or is no image; the message says so.
        """
        path = self._folder / name
        try:
            download(url, path, self._limits, self._policy, wanted=inputs.foreign)
            return inputs.decoded(path, max_pixels=self._max_pixels)
        finally:
            path.unlink(missing_ok=True)

    def all(self, urls: Sequence[str]) -> Iterator[Array | SegserveError]:
        """The pixels of every URL, in order, or why there are none."""
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool:
            waiting: deque[Future[Array | SegserveError]] = deque()
            try:
                for number, url in enumerate(urls):
                    waiting.append(pool.submit(_attempted, self.pixels, url, f"{number}"))
                    if len(waiting) >= _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def _attempted(pixels: Callable[[str, str], Array], url: str, name: str) -> Array | SegserveError:
    try:
        return pixels(url, name)
    except SegserveError as failure:
        return failure
