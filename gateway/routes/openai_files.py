"""/v1/files and /v1/batches: OpenAI's Batch API."""

import uuid
from collections.abc import Iterator
from typing import BinaryIO, cast

from flask import Response, request
from flask_openapi3.models.file import FileStorage
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, Field

from gateway.answers import json_answer
from gateway.documents import FILES, openai_errors
from gateway.files import CHUNK
from gateway.problems import problem
from gateway.services import Services
from schemas.openai_files import (
    ENDED,
    Batch,
    BatchList,
    BatchRequest,
    FileDeleted,
    FileList,
    Purpose,
    StoredFile,
)

#: Seconds in each unit of a completion window.
UNITS = {"s": 1, "m": 60, "h": 3600}


class UploadForm(BaseModel):
    """A file to keep."""

    file: FileStorage = Field(description="JSON lines: custom_id, method, url and body of each request.")
    purpose: Purpose = "batch"


class FilePath(BaseModel):
    """Which file."""

    file_id: str = Field(description="The id that POST /v1/files answered with.")


class BatchPath(BaseModel):
    """Which batch."""

    batch_id: str = Field(description="The id that POST /v1/batches answered with.")


class PageQuery(BaseModel):
    """Which page of a list."""

    after: str | None = Field(None, description="The last id of the page before.")
    limit: int = Field(20, ge=1, le=10_000)


class FilesQuery(PageQuery):
    """Which page of files."""

    purpose: Purpose | None = None


def add(app: OpenAPI, services: Services) -> None:
    """Add the routes."""
    _add_files(app, services)
    _add_batches(app, services)


def _add_files(app: OpenAPI, services: Services) -> None:
    files = services.files
    errors = openai_errors(400, 404, 413, 503)

    @app.post("/v1/files", tags=[FILES], responses={200: StoredFile, **errors})
    def upload(form: UploadForm) -> Response:
        """Keep a file."""
        description = StoredFile(
            id=f"file-{uuid.uuid4().hex}",
            bytes=0,
            created_at=int(services.clock()),
            filename=form.file.filename or "upload.jsonl",
            purpose=form.purpose,
        )
        return json_answer(files.save(cast("BinaryIO", form.file.stream), description))

    @app.get("/v1/files", tags=[FILES], responses={200: FileList})
    def list_files(query: FilesQuery) -> Response:
        """The files, the newest first."""
        found = files.listed(query.purpose)
        ids = [one.id for one in found]
        start = ids.index(query.after) + 1 if query.after in ids else 0
        page = found[start : start + query.limit]
        return json_answer(
            FileList(
                data=tuple(page),
                first_id=page[0].id if page else None,
                last_id=page[-1].id if page else None,
                has_more=start + query.limit < len(found),
            )
        )

    @app.get("/v1/files/<file_id>", tags=[FILES], responses={200: StoredFile, **errors})
    def read_file(path: FilePath) -> Response:
        """One file's description."""
        found = files.find(path.file_id)
        return _no_such("file", path.file_id) if found is None else json_answer(found)

    @app.get("/v1/files/<file_id>/content", tags=[FILES], responses={200: {"description": "The file."}, **errors})
    def read_content(path: FilePath) -> Response:
        """The file itself."""
        found = files.find(path.file_id)
        if found is None:
            return _no_such("file", path.file_id)
        response = Response(_chunks(files.open(path.file_id)), content_type="application/octet-stream")
        response.content_length = found.bytes
        return response

    @app.delete("/v1/files/<file_id>", tags=[FILES], responses={200: FileDeleted, **errors})
    def delete_file(path: FilePath) -> Response:
        """Forget a file. A batch that still reads it fails."""
        if not files.delete(path.file_id):
            return _no_such("file", path.file_id)
        return json_answer(FileDeleted(id=path.file_id))


def _add_batches(app: OpenAPI, services: Services) -> None:
    batches = services.batches
    errors = openai_errors(400, 404, 503)

    @app.post("/v1/batches", tags=[FILES], responses={200: Batch, **errors})
    def create_batch(body: BatchRequest) -> Response:
        """Run the requests in a file."""
        if services.files.find(body.input_file_id) is None:
            return _no_such("file", body.input_file_id)
        now = int(services.clock())
        batch = Batch(
            id=f"batch_{uuid.uuid4().hex}",
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            completion_window=body.completion_window,
            created_at=now,
            expires_at=now + int(body.completion_window[:-1]) * UNITS[body.completion_window[-1]],
            metadata=body.metadata,
        )
        batches.create(batch)
        app.logger.info("batch_created batch_id=%s", batch.id)
        return json_answer(batch)

    @app.get("/v1/batches", tags=[FILES], responses={200: BatchList})
    def list_batches(query: PageQuery) -> Response:
        """The batches, the newest first."""
        page, more = batches.listed(query.after, query.limit)
        return json_answer(
            BatchList(
                data=tuple(page),
                first_id=page[0].id if page else None,
                last_id=page[-1].id if page else None,
                has_more=more,
            )
        )

    @app.get("/v1/batches/<batch_id>", tags=[FILES], responses={200: Batch, **errors})
    def read_batch(path: BatchPath) -> Response:
        """How far a batch is."""
        found = batches.read(path.batch_id)
        return _no_such("batch", path.batch_id) if found is None else json_answer(found)

    @app.post("/v1/batches/<batch_id>/cancel", tags=[FILES], responses={200: Batch, **errors})
    def cancel_batch(path: BatchPath) -> Response:
        """Stop a batch; what has been answered can be fetched. One that has ended stays as it is."""
        found = batches.read(path.batch_id)
        if found is None:
            return _no_such("batch", path.batch_id)
        if found.status not in ENDED:
            batches.ask_to_cancel(path.batch_id, services.clock())
        return json_answer(batches.read(path.batch_id) or found)


def _chunks(content: BinaryIO) -> Iterator[bytes]:
    with content:
        while chunk := content.read(CHUNK):
            yield chunk


def _no_such(kind: str, name: str) -> Response:
    return problem(404, f"No such {kind}", f"There is no {kind} {name!r} (any more).")


def is_upload() -> bool:
    """Whether the current request brings a file, which is no JSON and may be large."""
    return request.method == "POST" and request.path == "/v1/files"
