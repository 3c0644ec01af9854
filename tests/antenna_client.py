"""A client of a processing service, written from how Antenna behaves (its documentation and INTEROP of its API).

It knows no tokens, asks `readyz`, `livez` and `info` with short time limits and tries again, calls `/process` by its
absolute path and waits for it as long as it takes, and believes no key that `/info` has not declared.
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urljoin

import httpx

SHORT_SECONDS = 10.0  # Antenna's own limits are of this order; a loaded test machine gets no less
TRIES = 3


class AntennaClient:
    """One registered processing service."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.http = httpx.Client(follow_redirects=True)
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.algorithms: dict[str, dict[str, Any]] = {}

    def get(self, path: str) -> httpx.Response:
        """A short request, tried again when nobody answers."""
        for attempt in range(1, TRIES + 1):
            try:
                return self.http.get(urljoin(self.endpoint, path), timeout=SHORT_SECONDS)
            except httpx.TransportError:
                if attempt == TRIES:
                    raise
                time.sleep(attempt * 0.5)
        raise AssertionError("not reached")

    def ready(self) -> list[str]:
        """Slugs of the pipelines that can be used now; none when the service says that it is not ready."""
        answer = self.get("readyz")
        if answer.status_code == 503:
            assert answer.json() == {"status": []}
            return []
        assert answer.status_code == 200
        return list(answer.json()["status"])

    def register(self) -> None:
        """Read `/info`, as Antenna does when somebody registers the service there."""
        assert self.get("livez").json() == {"status": True}
        info = self.get("info").json()
        self.pipelines = {one["slug"]: one for one in info["pipelines"]}
        self.algorithms = {one["key"]: one for one in info["algorithms"]}
        for algorithm in self.algorithms.values():
            _check_algorithm(algorithm)
        for pipeline in self.pipelines.values():
            assert {"name", "slug", "version", "algorithms", "stages"} <= pipeline.keys()
            assert all(one["key"] in self.algorithms for one in pipeline["algorithms"])

    def process(self, pipeline: str, images: dict[str, str], **more: Any) -> dict[str, Any]:
        """Results for images (id → URL)."""
        answer = self.post(pipeline, images, **more)
        assert answer.status_code == 200, answer.text
        found = dict(answer.json())
        self._check(found, set(images))
        return found

    def post(self, pipeline: str, images: dict[str, str], **more: Any) -> httpx.Response:
        """The bare answer of `/process`. Its path is absolute, and it has no time limit."""
        body = {
            "pipeline": pipeline,
            "source_images": [{"id": id_, "url": url} for id_, url in images.items()],
            "config": {"request_source_image_count": len(images), **more.pop("config", {})},
            **more,
        }
        return self.http.post(urljoin(self.endpoint, "/process"), json=body, timeout=None)

    def _check(self, found: dict[str, Any], ids: set[str]) -> None:
        assert found["pipeline"] in self.pipelines
        assert found["total_time"] >= 0
        assert set(found["algorithms"]) <= set(self.algorithms)
        for algorithm in found["algorithms"].values():
            _check_algorithm(algorithm)
        assert {one["id"] for one in found["source_images"]} >= ids
        for detection in found["detections"]:
            assert detection["source_image_id"] in ids
            assert detection["algorithm"]["key"] in self.algorithms
            for said in detection["classifications"]:
                known = self.algorithms[said["algorithm"]["key"]]["category_map"]
                assert said["classification"] in known["labels"]
                assert len(said["labels"]) == len(said["scores"])


def _check_algorithm(algorithm: dict[str, Any]) -> None:
    assert algorithm["name"]
    assert algorithm["key"]
    if algorithm["task_type"] == "classification":
        categories = algorithm["category_map"]
        assert [one["label"] for one in categories["data"]] == categories["labels"]
        assert [one["index"] for one in categories["data"]] == list(range(len(categories["labels"])))
