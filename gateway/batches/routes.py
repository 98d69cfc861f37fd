"""/v1/files and /v1/batches: OpenAI's Batch API."""

import uuid
from collections.abc import Iterator
from typing import BinaryIO, Literal, Self, cast

from flask import Response, request
from flask_openapi3.models.file import FileStorage
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, Field, model_validator

from broker.batches import NotListed
from config.settings import GatewaySettings
from gateway.batches.files import CHUNK, Quota, check_room
from gateway.http.answers import json_answer
from gateway.http.authentication import asking_owner, may_see, seen_owner
from gateway.http.errors import ApiError
from gateway.http.idempotency import REPLAYED, IdempotencyHeader
from gateway.http.openapi import FILES, openai_errors
from gateway.http.pagination import page_of, unknown_after
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
    window_s,
)
from schemas.owners import NOBODY, Owner

#: The least and the most seconds for which a client can ask to keep a file (OpenAI's own limits).
LEAST_KEPT_S, LONGEST_KEPT_S = 3600, 30 * 24 * 3600


class UploadForm(BaseModel):
    """A file to keep."""

    file: FileStorage = Field(description="JSON lines: custom_id, method, url and body of each request.")
    purpose: Purpose = "batch"
    anchor: Literal["created_at"] | None = Field(
        None, alias="expires_after[anchor]", description="When `expires_after[seconds]` begin to count."
    )
    kept_s: int | None = Field(
        None,
        alias="expires_after[seconds]",
        ge=LEAST_KEPT_S,
        le=LONGEST_KEPT_S,
        description="Seconds after which the file is deleted, if `gateway.file_ttl_s` does not end them earlier.",
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

    @app.post("/v1/files", tags=[FILES], responses={200: StoredFile, **openai_errors(404, 422)})
    def upload(header: IdempotencyHeader, form: UploadForm) -> Response:
        """Keep a file."""
        filename = form.file.filename or "upload.jsonl"
        new_id = f"file-{uuid.uuid4().hex}"
        with files.receiving(cast("BinaryIO", form.file.stream)) as received:
            key = header.of_upload(filename, form.purpose, form.kept_s, received.digest)
            # If a gateway was killed after claiming the id, there is no file yet, and this makes it.
            file_id = new_id if key is None else services.idempotency_keys.claim(key, new_id)
            description = _description(services, form, file_id, filename)
            stored = files.keep(received, description, _quota(services.settings))
        return json_answer(stored, headers=REPLAYED if file_id != new_id else {})

    @app.get("/v1/files", tags=[FILES], responses={200: FileList, **errors})
    def list_files(query: FilesQuery) -> Response:
        """The files, the newest first unless `order` is `asc`."""
        found = files.listed(query.purpose, seen_owner())
        page = page_of(found if query.order == "desc" else found[::-1], query.after, query.limit)
        return json_answer(FileList.of(*page))

    @app.get("/v1/files/<file_id>", tags=[FILES], responses={200: StoredFile, **errors})
    def read_file(path: FilePath) -> Response:
        """One file's description."""
        return json_answer(_find_file(services, path.file_id))

    @app.get("/v1/files/<file_id>/content", tags=[FILES], responses={200: {"description": "The file."}, **errors})
    def read_content(path: FilePath) -> Response:
        """The file itself."""
        found = _find_file(services, path.file_id)
        with services.transfers.permit() as permit:
            response = Response(content_type="application/octet-stream")
            if request.method != "HEAD":
                content = files.open(path.file_id)
                response.response = _chunks(content)
                response.call_on_close(content.close)  # also if the client leaves before the first chunk
            response.content_length = found.bytes
            return permit.release_after(response)

    @app.delete("/v1/files/<file_id>", tags=[FILES], responses={200: FileDeleted, **errors})
    def delete_file(path: FilePath) -> Response:
        """Delete a file. A batch that still reads it fails."""
        _find_file(services, path.file_id)
        if not files.delete(path.file_id):
            raise _not_found("file", path.file_id)
        return json_answer(FileDeleted(id=path.file_id))


def _add_batches(app: OpenAPI, services: Services) -> None:
    batches, settings = services.batches, services.settings
    errors = openai_errors(404)

    @app.post("/v1/batches", tags=[FILES], responses={200: Batch, **openai_errors(404, 422)})
    def create_batch(header: IdempotencyHeader, body: BatchRequest) -> Response:
        """Run the requests in a file."""
        key = header.of_json()
        if key is not None and (earlier := services.idempotency_keys.read(key)):
            return json_answer(_find_batch(services, earlier), headers=REPLAYED)
        _find_file(services, body.input_file_id)
        batch = _new_batch(body, asking_owner() or NOBODY, int(services.clock()))
        check_room(services.files.usage(batch.owner.name), _quota(settings))  # its output is kept whatever its size
        batch_id = batches.create(batch, settings.owner_max_batches, key)
        if batch_id != batch.id:
            return json_answer(_find_batch(services, batch_id), headers=REPLAYED)
        app.logger.info("batch_created batch_id=%s", batch.id)
        return json_answer(batch)

    @app.get("/v1/batches", tags=[FILES], responses={200: BatchList, **errors})
    def list_batches(query: PageQuery) -> Response:
        """The batches, the newest first unless `order` is `asc`."""
        newest_first = query.order == "desc"
        try:
            page = batches.listed(query.after, query.limit, seen_owner(), newest_first=newest_first)
        except NotListed as error:
            raise unknown_after(str(error)) from error
        return json_answer(BatchList.of(*page))

    @app.get("/v1/batches/<batch_id>", tags=[FILES], responses={200: Batch, **errors})
    def read_batch(path: BatchPath) -> Response:
        """How far a batch is."""
        return json_answer(_find_batch(services, path.batch_id))

    @app.post("/v1/batches/<batch_id>/cancel", tags=[FILES], responses={200: Batch, **errors})
    def cancel_batch(path: BatchPath) -> Response:
        """Stop a batch; what has been answered can be fetched. One that has ended stays as it is."""
        found = _find_batch(services, path.batch_id)
        if found.status not in ENDED:
            batches.ask_to_cancel(path.batch_id, services.clock())
        return json_answer(batches.read(path.batch_id) or found)


def is_upload() -> bool:
    """Whether the current request uploads a file, which is no JSON and may be large."""
    return request.method == "POST" and request.path == "/v1/files"


def _description(services: Services, form: UploadForm, file_id: str, filename: str) -> StoredFile:
    now, ttl_s = int(services.clock()), services.settings.file_ttl_s
    return StoredFile(
        id=file_id,
        bytes=0,
        created_at=now,
        expires_at=now + min(form.kept_s or ttl_s, ttl_s),
        filename=filename,
        purpose=form.purpose,
        owner=(asking_owner() or NOBODY).name,
    )


def _new_batch(body: BatchRequest, owner: Owner, now: int) -> Batch:
    return Batch(
        id=f"batch_{uuid.uuid4().hex}",
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        created_at=now,
        expires_at=now + window_s(body.completion_window),
        metadata=body.metadata,
        owner=owner,
    )


def _quota(settings: GatewaySettings) -> Quota:
    return Quota(settings.owner_max_files, settings.owner_max_file_bytes)


def _find_file(services: Services, file_id: str) -> StoredFile:
    """The file. Raises 404 where there is none that the caller may see."""
    found = services.files.find(file_id)
    if found is None or not may_see(found.owner):
        raise _not_found("file", file_id)
    return found


def _find_batch(services: Services, batch_id: str) -> Batch:
    """The batch. Raises 404 where there is none that the caller may see."""
    found = services.batches.read(batch_id)
    if found is None or not may_see(found.owner.name):
        raise _not_found("batch", batch_id)
    return found


def _not_found(kind: str, name: str) -> ApiError:
    return ApiError(404, f"No such {kind}", f"There is no {kind} {name!r} (any more).")


def _chunks(content: BinaryIO) -> Iterator[bytes]:
    with content:
        while chunk := content.read(CHUNK):
            yield chunk
