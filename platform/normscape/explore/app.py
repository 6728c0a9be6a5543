"""The routes of the explorer: its page, frames, and dropped scans."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from importlib import resources
from typing import Annotated, Any

import anyio
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import normscape
from normscape.errors import DataError, UserError
from normscape.explore.intake import check_scan
from normscape.explore.render import Renderer
from normscape.explore.scans import RESULTS, SERVED, STRIPPERS, Asked, scoring
from normscape.explore.security import RESULT_POLICY, Guard, problem
from normscape.explore.storage import Full, Storage, Upload
from normscape.explore.trained import Trained
from normscape.explore.work import Job, Worker
from normscape.report.scan_page import PAGE_NAME

_log = logging.getLogger(__name__)
STATIC = {
    "page.css": ("normscape.report", "templates/page.css", "text/css"),
    "explore.css": ("normscape.explore", "static/explore.css", "text/css"),
    "explore.js": ("normscape.explore", "static/explore.js", "text/javascript"),
    "frames.js": ("normscape.explore", "static/frames.js", "text/javascript"),
    "scans.js": ("normscape.explore", "static/scans.js", "text/javascript"),
}
"""Packaged files that the page loads: package, path, type."""
PATIENCE_SECONDS = 60.0
"""Longest silence of somebody who sends a file."""
SCAN = "scan"
"""Name under which a dropped scan itself can be asked for."""


class TooLarge(UserError):
    """More bytes than a file may have."""


def create_app(trained: Trained, storage: Storage, worker: Worker, guard: Guard, *, most_bytes: int) -> FastAPI:
    """The application.

    Args:
        trained: what is shown.
        storage: of dropped files.
        worker: scores them.
        guard: looks at every request first.
        most_bytes: of a dropped file.
    """
    app = FastAPI(title="normscape explore", docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(guard)
    _add_errors(app)
    _add_page(app)
    _add_frames(app, trained, most_bytes)
    _add_scans(app, trained, storage, worker, most_bytes)
    return app


# ---- the page ------------------------------------------------------------------------------------------------------------


def _add_page(app: FastAPI) -> None:
    texts = {name: (_packaged(package, path), kind) for name, (package, path, kind) in STATIC.items()}
    index = _packaged("normscape.explore", "static/index.html")

    @app.get("/")
    def page() -> Response:
        return Response(index, media_type="text/html")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in texts:
            return problem(404, "no such file")
        content, kind = texts[name]
        return Response(content, media_type=kind)


def _packaged(package: str, path: str) -> bytes:
    return (resources.files(package) / path).read_bytes()


# ---- pictures ------------------------------------------------------------------------------------------------------------


def _add_frames(app: FastAPI, trained: Trained, most_bytes: int) -> None:
    renderer = Renderer(trained)
    config, model = trained.config, trained.scan_model

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return {
            "name": config.name,
            "description": config.description,
            "origin": trained.origin,
            "version": normscape.__version__,
            "controls": [control.described() for control in renderer.controls.values()],
            "planes": list(renderer.planes),
            "subjects": renderer.subjects.described() if renderer.subjects is not None else [],
            "scans": None if model is None else {
                "megabytes": most_bytes >> 20, "cohort": model.cohort, "stripping": model.settings.strip,
                "strippers": [name for name in STRIPPERS if name],
            },
        }  # fmt: skip

    @app.get("/api/frames")
    def frames(
        who: Annotated[str, Query(max_length=20)],
        control: Annotated[str, Query(max_length=64)],
        values: Annotated[str, Query(max_length=1000)],
        at: Annotated[list[str] | None, Query(max_length=16)] = None,
        plane: Annotated[str, Query(max_length=10)] = "",
    ) -> Response:
        asked = dict(_pair(text) for text in at or ())
        content = renderer.strip(who, control, [_number(text) for text in values.split(",")], asked, plane)
        return Response(content, media_type="image/png")

    @app.get("/api/original")
    def original(who: Annotated[str, Query(max_length=20)]) -> Response:
        return Response(renderer.original(who), media_type="image/png")


def _pair(text: str) -> tuple[str, float]:
    name, _, value = text.partition(":")
    return name, _number(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"expected a number, found `{text[:20]}`") from None


# ---- scans ---------------------------------------------------------------------------------------------------------------


def _add_scans(app: FastAPI, trained: Trained, storage: Storage, worker: Worker, most_bytes: int) -> None:
    reading = anyio.Semaphore(1)  # scans are large: one at a time is unpacked to be looked at

    @app.get("/api/scans")
    def scans(request: Request) -> dict[str, Any]:
        mine = [_described(upload, worker) for upload in storage.owned(request.state.session)]
        return {"scans": [one for one in mine if one is not None]}

    @app.put("/api/scans", status_code=201)
    async def bring(
        request: Request,
        name: Annotated[str, Query(max_length=1000)],
        age: Annotated[str, Query(max_length=40)] = "",
        sex: Annotated[str, Query(max_length=10)] = "",
        strip: Annotated[str, Query(max_length=10)] = "",
    ) -> Mapping[str, Any]:
        model, size = trained.scan_model, _length(request)
        try:
            if model is None:
                raise UserError(f"the model is of {trained.config.data.source}, not of brains: it cannot score a scan")
            if size > most_bytes:
                raise TooLarge(_too_large(name, most_bytes))
            asked = Asked.read(age, sex, strip)
            with storage.receive(request.state.session, name, size) as upload:
                await _receive(request, upload, most_bytes)
                async with reading:
                    await anyio.to_thread.run_sync(check_scan, upload)
                worker.add(Job(upload.id, upload.folder, scoring(upload, asked, model)))
        except TooLarge:
            raise
        except UserError:
            await _drain(request, most_bytes)
            raise
        return _described(upload, worker) or {}

    @app.post("/api/scans/{number}/cancel")
    def cancel(request: Request, number: str) -> Mapping[str, Any]:
        upload = _own(request, storage, number)
        worker.cancel(upload.id)
        return _described(upload, worker) or {}

    @app.delete("/api/scans/{number}")
    def delete(request: Request, number: str) -> dict[str, bool]:
        upload = _known(storage.hide(request.state.session, number))
        worker.forget(upload.id, lambda: storage.remove(upload))
        return {"deleted": True}

    @app.get("/api/scans/{number}/{name}")
    def result(request: Request, number: str, name: str) -> Response:
        upload = _own(request, storage, number)
        stem = upload.name.removesuffix(".gz").removesuffix(".nii")
        if name == SCAN:
            return FileResponse(upload.path, media_type="application/octet-stream", filename=upload.name)
        path = upload.folder / RESULTS / name
        if name not in SERVED or not path.is_file():
            return problem(404, "no such file")
        if name == PAGE_NAME:
            return FileResponse(path, media_type=SERVED[name], headers={"Content-Security-Policy": RESULT_POLICY})
        kind = "inline" if name.endswith(".png") else "attachment"
        return FileResponse(path, media_type=SERVED[name], filename=f"{stem}-{name}", content_disposition_type=kind)


def _own(request: Request, storage: Storage, number: str) -> Upload:
    """The session's own scan."""
    return _known(storage.find(request.state.session, number))


def _known(upload: Upload | None) -> Upload:
    """A scan that was found; of somebody else's not even that it exists is said."""
    if upload is None:
        raise HTTPException(404, "no such scan; it may have been deleted")
    return upload


def _described(upload: Upload, worker: Worker) -> dict[str, Any] | None:
    job = worker.described(upload.id)
    return None if job is None else {"id": upload.id, "name": upload.name} | job


def _length(request: Request) -> int:
    """Bytes that the request says it has; 0 where it does not say."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isdecimal() else 0


def _too_large(name: str, most_bytes: int) -> str:
    return f"{name[-80:]}: larger than {most_bytes / 2**20:g} megabytes; `--max-megabytes` of `normscape explore` allows more"


async def _parts(request: Request) -> AsyncIterator[bytes]:
    """A body as it arrives.

    Raises:
        UserError: nothing came for a while.
    """
    stream = request.stream()
    while True:
        try:
            yield await asyncio.wait_for(anext(stream), PATIENCE_SECONDS)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise UserError(f"nothing arrived for {PATIENCE_SECONDS:.0f} seconds") from None


async def _receive(request: Request, upload: Upload, most_bytes: int) -> None:
    """Write a body into its file, and stop as soon as it is too large."""
    held = 0
    with upload.path.open("xb") as file:
        async for part in _parts(request):
            held += len(part)
            if held > most_bytes:
                raise TooLarge(_too_large(upload.name, most_bytes))
            file.write(part)


async def _drain(request: Request, most_bytes: int) -> None:
    """Read the rest of a refused body, within reason: a browser reads no answer while it still sends."""
    held = 0
    try:
        async for part in _parts(request):
            held += len(part)
            if held > most_bytes:
                return
    except (UserError, RuntimeError, ClientDisconnect):  # RuntimeError: it was read to its end
        return


# ---- errors --------------------------------------------------------------------------------------------------------------


def _add_errors(app: FastAPI) -> None:
    """Every error is JSON with one plain sentence."""

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        if isinstance(error, TooLarge):
            answer = problem(413, str(error))
            answer.headers["Connection"] = "close"  # else the server would go on reading what it does not want
            return answer
        return problem(409 if isinstance(error, Full) else 422, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return problem(422, f"{first['loc'][-1]}: {first['msg'][0].lower()}{first['msg'][1:]}")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)  # which nobody reads; without it the terminal would show a stack trace

    @app.exception_handler(OSError)
    async def disk(_: Request, error: OSError) -> JSONResponse:
        _log.error("%s", error)
        return problem(507, f"this machine could not keep the file ({error.strerror or error})")
