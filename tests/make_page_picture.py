"""Draws docs/images/page.png: the page with a result, as a browser shows it. `python -m tests.make_page_picture`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import cv2
import numpy as np

from tests.nuclei import nuclei
from tests.pages import browser, make_given_executor, polygon
from tests.services import Service

TARGET = Path(__file__).parent.parent / "docs" / "images" / "page.png"
AUTHOR = {"GIT_AUTHOR_NAME": "A. Tester", "GIT_AUTHOR_EMAIL": "tester@example.org"}


def main() -> None:
    """Run a service, one job, a browser."""
    os.environ |= {**AUTHOR, **{name.replace("AUTHOR", "COMMITTER"): value for name, value in AUTHOR.items()}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        polygons = []
        for number in range(3):
            image, labels = nuclei(number, size=640, count=110)
            cv2.imwrite(str(folder / f"nuclei_{number + 1}.png"), image)
            polygons.append([_polygon(labels == label, label) for label in range(1, labels.max() + 1)])
        make_given_executor(folder / "nuclei", polygons)
        sent = [("images", (path.name, path.read_bytes())) for path in sorted(folder.glob("*.png"))]
        server = f'[executors]\nnuclei = "{folder}/nuclei"\n'
        with Service(folder / "home", folder / "config", server=server) as service, browser(1180, 860) as page:
            job = service.http.post("/jobs", data={"executor": "nuclei"}, files=sent).json()["job"]
            service.wait(job)
            page.goto(f"{service.url}/#/jobs/{job}")
            page.wait_for_selector(".labels li")
            page.wait_for_timeout(800)
            picture = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    small = cv2.resize(picture, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(TARGET), small, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


def _polygon(mask: np.ndarray, label: int) -> dict[str, object]:
    rings, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    ring = max(rings, key=len)[:, 0].tolist()
    return polygon(ring, "dividing" if label % 7 == 0 else "nucleus", round(0.5 + 0.5 * (label * 37 % 100) / 100, 2))


if __name__ == "__main__":
    main()
