"""/v1/files and /v1/batches: OpenAI's Batch API."""

import uuid
from collections.abc import Iterator
from typing import BinaryIO, Literal, Self, cast

from flask import Response, request
from flask_openapi3.models.file import FileStorage
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, Field, model_validator

from broker.batches import BatchStore, NotListed
from config.settings import GatewaySettings
from gateway.batches.files import CHUNK, Files, Quota, check_room
from gateway.http.authentication import asking_owner, may_see, seen_owner
from gateway.http.idempotency import REPLAYED, IdempotencyHeader
from gateway.http.openapi import FILES, openai_errors
from gateway.http.pagination import Page, page_of, unknown_after
from gateway.http.problems import problem
from gateway.jobs.answers import json_answer
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
from schemas.owners import NOBODY

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
    files, settings = services.files, services.settings
    errors = openai_errors(404)

    @app.post("/v1/files", tags=[FILES], responses={200: StoredFile, **openai_errors(404, 422)})
    def upload(header: IdempotencyHeader, form: UploadForm) -> Response:
        """Keep a file."""
        now, owner = int(services.clock()), (asking_owner() or NOBODY).name
        filename = form.file.filename or "upload.jsonl"
        new_id = f"file-{uuid.uuid4().hex}"
        with files.receiving(cast("BinaryIO", form.file.stream)) as received:
            key = header.of_upload(filename, form.purpose, form.kept_s, received.digest)
            # Whoever was killed between the two steps left an id of which this makes a file.
            file_id = new_id if key is None else services.idempotency_keys.claim(key, new_id)
            description = StoredFile(
                id=file_id,
                bytes=0,
                created_at=now,
                expires_at=now + min(form.kept_s or settings.file_ttl_s, settings.file_ttl_s),
                filename=filename,
                purpose=form.purpose,
                owner=owner,
            )
            stored = received.keep(description, _quota(settings))
        return json_answer(stored, headers=REPLAYED if file_id != new_id else {})

    @app.get("/v1/files", tags=[FILES], responses={200: FileList, **errors})
    def list_files(query: FilesQuery) -> Response:
        """The files, the newest first unless `order` is `asc`."""
        found = files.listed(query.purpose, seen_owner())
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
    batches, settings = services.batches, services.settings
    errors = openai_errors(404)

    @app.post("/v1/batches", tags=[FILES], responses={200: Batch, **openai_errors(404, 422)})
    def create_batch(header: IdempotencyHeader, body: BatchRequest) -> Response:
        """Run the requests in a file."""
        key = header.of_json()
        if key is not None and (earlier := services.idempotency_keys.read(key)):
            return _batch_again(batches, earlier)
        owner, now = asking_owner() or NOBODY, int(services.clock())
        if _own_file(services.files, body.input_file_id) is None:
            return _no_such("file", body.input_file_id)
        check_room(services.files.usage(owner.name), _quota(settings))  # its output is kept, whatever its size
        batch = Batch(
            id=f"batch_{uuid.uuid4().hex}",
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            completion_window=body.completion_window,
            created_at=now,
            expires_at=now + window_s(body.completion_window),
            metadata=body.metadata,
            owner=owner,
        )
        made = batches.create(batch, settings.owner_max_batches, key)
        if made != batch.id:
            return _batch_again(batches, made)
        app.logger.info("batch_created batch_id=%s", batch.id)
        return json_answer(batch)

    @app.get("/v1/batches", tags=[FILES], responses={200: BatchList, **errors})
    def list_batches(query: PageQuery) -> Response:
        """The batches, the newest first unless `order` is `asc`."""
        page = _batches_of(batches, query)
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


def _quota(settings: GatewaySettings) -> Quota:
    return Quota(settings.owner_max_files, settings.owner_max_file_bytes)


def _batch_again(batches: BatchStore, batch_id: str) -> Response:
    """The batch that an earlier request with the same key made."""
    found = _own_batch(batches, batch_id)
    return _no_such("batch", batch_id) if found is None else json_answer(found, headers=REPLAYED)


def _own_file(files: Files, file_id: str) -> StoredFile | None:
    found = files.find(file_id)
    return found if found is not None and may_see(found.owner) else None


def _own_batch(batches: BatchStore, batch_id: str) -> Batch | None:
    found = batches.read(batch_id)
    return found if found is not None and may_see(found.owner.name) else None


def _batches_of(batches: BatchStore, query: PageQuery) -> Page[Batch]:
    """A page of those that whoever asks may see."""
    newest_first = query.order == "desc"
    try:
        return Page(*batches.listed(query.after, query.limit, seen_owner(), newest_first=newest_first))
    except NotListed as error:
        raise unknown_after(str(error)) from error


def _chunks(content: BinaryIO) -> Iterator[bytes]:
    with content:
        while chunk := content.read(CHUNK):
            yield chunk


def _no_such(kind: str, name: str) -> Response:
    return problem(404, f"No such {kind}", f"There is no {kind} {name!r} (any more).")


def is_upload() -> bool:
    """Whether the current request brings a file, which is no JSON and may be large."""
    return request.method == "POST" and request.path == "/v1/files"
