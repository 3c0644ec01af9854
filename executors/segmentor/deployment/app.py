"""The segmentation service: POST an image to /predict, get its polygons. `deploy` puts model.onnx beside this file.

    uvicorn app:app --host 0.0.0.0 --port 8000

Environment: MODEL (model.onnx beside this file), DEVICE (auto), MAX_BYTES of a request (64 MiB), MAX_PIXELS of an image
(50 million), ROOT_PATH when a proxy serves it below a path.
"""

import os
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

MAX_BYTES = int(os.environ.get("MAX_BYTES", "67108864"))
MAX_PIXELS = int(os.environ.get("MAX_PIXELS", "50000000"))
# cv2 looks at the header before it allocates, with a limit that it reads when it is imported.
os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_PIXELS)

import cv2
import numpy as np
from fastapi import FastAPI, UploadFile
from fastapi.responses import JSONResponse
from segmentor.predict import Model
from segserve_sdk import output

# The two codes of the service that this one stands in for: all went well; the model failed.
SUCCESS, FAILED = "200", "100"
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")

model = Model(Path(os.environ.get("MODEL", Path(__file__).parent / "model.onnx")), os.environ.get("DEVICE", "auto"))
one_at_a_time = threading.Lock()  # a prediction takes all cores and, for large images, gigabytes
app = FastAPI(title="segmentor", root_path=os.environ.get("ROOT_PATH", ""))

Message = MutableMapping[str, Any]


class Refused(Exception):
    """The request cannot be answered: HTTP status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(reason)


class BodyLimit:
    """Refuses bodies above MAX_BYTES, by what they say (Content-Length) and by what they are."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        got = 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > MAX_BYTES:
                raise _too_large()
            return message

        try:
            if announced.isdigit() and int(announced) > MAX_BYTES:
                raise _too_large()
            await self.app(scope, counted, send)
        except Refused as refused:
            await _refusal(refused)(scope, receive, send)


app.add_middleware(BodyLimit)


@app.exception_handler(Refused)
async def _refused(_: Any, refused: Refused) -> JSONResponse:
    return _refusal(refused)


@app.get("/health")
def health() -> dict[str, Any]:
    """Whether the service can answer, and for what classes."""
    return {"status": SUCCESS, "classes": list(model.metadata.classes), "providers": model.session.get_providers()}


@app.post("/predict")
def predict(file: UploadFile) -> Any:
    """Polygons of one image (PNG, JPEG, TIFF, BMP; 8 or 16 bit), as format 0.2 has them: (x, y) through pixel centres.

    415: no image. 422: an image that cannot be read. 413: too large. 500 with status 100: the model failed.
    """
    image = decode(file.file.read())
    start = time.perf_counter()
    try:
        with one_at_a_time:
            found = model.segment(image)
    except (RuntimeError, ValueError, MemoryError) as error:  # onnxruntime's errors are RuntimeErrors
        return JSONResponse({"status": FAILED, "detail": f"the model failed: {error}"}, 500)
    names = [model.metadata.classes[index - 1] for index in found.classes]
    return {
        "status": SUCCESS,
        "file": file.filename,
        "width": image.shape[1],
        "height": image.shape[0],
        "seconds": round(time.perf_counter() - start, 3),
        "polygons": output.objects(found.labels, found.scores.round(4), names),
    }


def decode(content: bytes) -> np.ndarray:
    """The image in a file: (rows, columns) or (rows, columns, 3 or 4) as RGB(A).

    Raises:
        Refused: 415 or 422 with the reason.
    """
    if not content.startswith(_SIGNATURES):
        raise Refused(415, "this is no PNG, JPEG, TIFF or BMP file")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # its limits on width, height and pixels
        raise Refused(413, f"the image has more than {MAX_PIXELS:,} pixels") from None
    if image is None:
        raise Refused(422, "the image is damaged or of a kind that cannot be read")
    if image.dtype not in (np.uint8, np.uint16):
        raise Refused(422, f"the image has pixels of type {image.dtype}; 8 or 16 bit are needed")
    return image[..., [2, 1, 0, 3][: image.shape[2]]] if image.ndim == 3 else image


def _too_large() -> Refused:
    return Refused(413, f"the request has more than {MAX_BYTES:,} bytes")


def _refusal(refused: Refused) -> JSONResponse:
    return JSONResponse({"status": str(refused.status), "detail": refused.reason}, refused.status)
