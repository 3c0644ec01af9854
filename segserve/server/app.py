"""The application: routes, errors, and who may call."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

import segserve
from segserve.config import ServerSettings
from segserve.server import (
    antenna,
    compatibility,
    executors,
    exports,
    health,
    jobs,
    login,
    mlflow,
    page,
    pictures,
    problems,
)
from segserve.server.desk import Desk
from segserve.server.door import Door
from segserve.server.guard import Guard
from segserve.server.logs import Requests
from segserve.server.places import Places
from segserve.server.uploads import Limits
from segserve.tokens import Scope

_ABOUT = """\
Run any segmentation repository on your images. `POST /jobs` puts a request into a durable queue; follow it by
`/jobs/{id}/events` and fetch `/jobs/{id}/result`. Errors are problem details whose `detail` says what to do.
"""


def create_app(
    desk: Desk, door: Door, places: Places, settings: ServerSettings, working: Callable[[], bool]
) -> FastAPI:
    """The application for one desk behind one door. `working` says whether somebody works on the queue."""
    app = FastAPI(
        title="segserve",
        version=segserve.__version__,
        description=_ABOUT,
        redoc_url=None,
    )
    limits = Limits(body_bytes=settings.max_body_mb * 2**20, files=settings.max_images)
    registry = CollectorRegistry()
    problems.install(app, desk.session.ctx.home)
    app.include_router(login.router(door))
    app.include_router(health.router(desk, registry, places, working))
    app.include_router(antenna.router(desk, antenna.Known(desk.session), working, settings.sync_wait_s))
    app.include_router(jobs.router(desk, limits))
    app.include_router(pictures.router(desk))
    app.include_router(exports.router(desk))
    app.include_router(executors.router(desk))
    app.include_router(mlflow.router(desk, Scope(settings.mlflow)))
    app.include_router(compatibility.router(desk, limits, registry, settings.sync_wait_s))
    app.include_router(page.router())
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    app.add_middleware(Guard, door=door, places=places, settings=settings)
    app.add_middleware(Requests)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Idempotency-Key", "Last-Event-ID"),
            expose_headers=("Location", "Retry-After"),
        )
    return app
