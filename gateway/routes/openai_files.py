"""/v1/files and /v1/batches: OpenAI's Batch API."""

import uuid
from collections.abc import Iterator
from typing import BinaryIO, Literal, Self, cast

from flask import Response, request
from flask_openapi3.models.file import FileStorage
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, Field, model_validator

from broker.batches import BatchStore
from gateway.answers import json_answer
from gateway.authentication import asking_owner, may_see
from gateway.documents import FILES, openai_errors
from gateway.files import CHUNK, Files
from gateway.pages import Page, page_of, unknown_after
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
from schemas.owners import NOBODY

#: Seconds in each unit of a completion window.
UNITS = {"s": 1, "m": 60, "h": 3600}


#: The fewest and the most seconds for which a file can be asked to be kept, as OpenAI has them.
LEAST_KEPT_S, LONGEST_KEPT_S = 3600, 30 * 24 * 3600


class UploadForm(BaseModel):
    """A file to keep."""

    file: FileStorage = Field(description="JSON lines: custom_id, method, url and body of each request.")
    purpose: Purpose = "batch"
    anchor: Literal["created_at"] | None = Field(
        None, alias="expires_after[anchor]", description="From when on `expires_after[seconds]` count."
    )
    kept_s: int | None = Field(
        None,
        alias="expires_after[seconds]",
        ge=LEAST_KEPT_S,
        le=LONGEST_KEPT_S,
        description="Seconds after which the file may be deleted.",
    )

    @model_validator(mode="after")
    def _expiry_is_whole(self) -> Self:
        if (self.anchor is None) != (self.kept_s is None):
            raise ValueError("expires_after needs both its anchor and its seconds")
        return self


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
    order: Literal["asc", "desc"] = Field("desc", description="By the time of creation.")


class FilesQuery(PageQuery):
    """Which page of files."""

    limit: int = Field(10_000, ge=1, le=10_000)
    purpose: Purpose | None = None


def add(app: OpenAPI, services: Services) -> None:
    """Add the routes."""
    _add_files(app, services)
    _add_batches(app, services)


def _add_files(app: OpenAPI, services: Services) -> None:
    files = services.files
    errors = openai_errors(404)

    @app.post("/v1/files", tags=[FILES], responses={200: StoredFile, **errors})
    def upload(form: UploadForm) -> Response:
        """Keep a file."""
        created_at = int(services.clock())
        description = StoredFile(
            id=f"file-{uuid.uuid4().hex}",
            bytes=0,
            created_at=created_at,
            expires_at=None if form.kept_s is None else created_at + form.kept_s,
            filename=form.file.filename or "upload.jsonl",
            purpose=form.purpose,
            owner=(asking_owner() or NOBODY).name,
        )
        return json_answer(files.save(cast("BinaryIO", form.file.stream), description))

    @app.get("/v1/files", tags=[FILES], responses={200: FileList, **errors})
    def list_files(query: FilesQuery) -> Response:
        """The files, the newest first unless `order` is `asc`."""
        found = [one for one in files.listed(query.purpose) if may_see(one.owner)]
        page = page_of(found if query.order == "desc" else found[::-1], query.after, query.limit)
        return json_answer(
            FileList(data=page.data, first_id=page.first_id, last_id=page.last_id, has_more=page.has_more)
        )

    @app.get("/v1/files/<file_id>", tags=[FILES], responses={200: StoredFile, **errors})
    def read_file(path: FilePath) -> Response:
        """One file's description."""
        found = _own_file(files, path.file_id)
        return _no_such("file", path.file_id) if found is None else json_answer(found)

    @app.get("/v1/files/<file_id>/content", tags=[FILES], responses={200: {"description": "The file."}, **errors})
    def read_content(path: FilePath) -> Response:
        """The file itself."""
        found = _own_file(files, path.file_id)
        if found is None:
            return _no_such("file", path.file_id)
        with services.transfers.taken() as slot:
            response = Response(content_type="application/octet-stream")
            if request.method != "HEAD":
                content = files.open(path.file_id)
                response.response = _chunks(content)
                response.call_on_close(content.close)  # where the client has left before the first piece
            response.content_length = found.bytes
            return slot.held_by(response)

    @app.delete("/v1/files/<file_id>", tags=[FILES], responses={200: FileDeleted, **errors})
    def delete_file(path: FilePath) -> Response:
        """Forget a file. A batch that still reads it fails."""
        if _own_file(files, path.file_id) is None or not files.delete(path.file_id):
            return _no_such("file", path.file_id)
        return json_answer(FileDeleted(id=path.file_id))


def _add_batches(app: OpenAPI, services: Services) -> None:
    batches = services.batches
    errors = openai_errors(404)

    @app.post("/v1/batches", tags=[FILES], responses={200: Batch, **errors})
    def create_batch(body: BatchRequest) -> Response:
        """Run the requests in a file."""
        if _own_file(services.files, body.input_file_id) is None:
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
            owner=asking_owner() or NOBODY,
        )
        batches.create(batch)
        app.logger.info("batch_created batch_id=%s", batch.id)
        return json_answer(batch)

    @app.get("/v1/batches", tags=[FILES], responses={200: BatchList, **errors})
    def list_batches(query: PageQuery) -> Response:
        """The batches, the newest first unless `order` is `asc`."""
        if query.after is not None and _own_batch(batches, query.after) is None:
            raise unknown_after(query.after)
        page = Page(
            *batches.listed(
                query.after,
                query.limit,
                lambda batch: may_see(batch.owner.name),
                newest_first=query.order == "desc",
            )
        )
        return json_answer(
            BatchList(data=page.data, first_id=page.first_id, last_id=page.last_id, has_more=page.has_more)
        )

    @app.get("/v1/batches/<batch_id>", tags=[FILES], responses={200: Batch, **errors})
    def read_batch(path: BatchPath) -> Response:
        """How far a batch is."""
        found = _own_batch(batches, path.batch_id)
        return _no_such("batch", path.batch_id) if found is None else json_answer(found)

    @app.post("/v1/batches/<batch_id>/cancel", tags=[FILES], responses={200: Batch, **errors})
    def cancel_batch(path: BatchPath) -> Response:
        """Stop a batch; what has been answered can be fetched. One that has ended stays as it is."""
        found = _own_batch(batches, path.batch_id)
        if found is None:
            return _no_such("batch", path.batch_id)
        if found.status not in ENDED:
            batches.ask_to_cancel(path.batch_id, services.clock())
        return json_answer(batches.read(path.batch_id) or found)


def _own_file(files: Files, file_id: str) -> StoredFile | None:
    found = files.find(file_id)
    return found if found is not None and may_see(found.owner) else None


def _own_batch(batches: BatchStore, batch_id: str) -> Batch | None:
    found = batches.read(batch_id)
    return found if found is not None and may_see(found.owner.name) else None


def _chunks(content: BinaryIO) -> Iterator[bytes]:
    with content:
        while chunk := content.read(CHUNK):
            yield chunk


def _no_such(kind: str, name: str) -> Response:
    return problem(404, f"No such {kind}", f"There is no {kind} {name!r} (any more).")


def is_upload() -> bool:
    """Whether the current request brings a file, which is no JSON and may be large."""
    return request.method == "POST" and request.path == "/v1/files"
