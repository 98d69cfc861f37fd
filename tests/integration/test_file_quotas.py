"""What an owner may keep, over HTTP: files, their expiry, and batches that have not ended."""

import io

import pytest

from gateway.app import create_app

BATCH = {"endpoint": "/v1/jobs", "completion_window": "24h"}


@pytest.fixture
def make_client(make_services):
    return lambda **settings: create_app(make_services(**settings)).test_client()


def upload(client, content=b"{}\n", form=None, **options):
    form = {"file": (io.BytesIO(content), "in.jsonl"), "purpose": "batch", **(form or {})}
    return client.post("/v1/files", data=form, content_type="multipart/form-data", **options)


def test_above_its_quota_an_upload_is_refused_with_the_limit_and_what_is_used(make_client):
    client = make_client(owner_max_files=2)
    kept = [upload(client).json["id"] for _ in range(2)]
    refused = upload(client)
    assert (refused.status_code, refused.json["error"]["type"]) == (413, "invalid_request_error")
    assert "gateway.owner_max_files is 2; you keep 6 bytes in 2 files, and this one has 3" in refused.text
    assert len(client.get("/v1/files").json["data"]) == 2
    client.delete(f"/v1/files/{kept[0]}")
    assert upload(client).status_code == 200


def test_the_bytes_count_as_well_and_a_full_owner_begins_no_batch(make_client, headers):
    client = make_client(owner_max_file_bytes=6)
    alice, bob = headers("alice"), headers("bob")
    file_id = upload(client, b"{}{}\n", headers=alice).json["id"]
    assert "gateway.owner_max_file_bytes is 6" in upload(client, b"{}\n", headers=alice).text
    assert upload(client, b"{}\n", headers=bob).status_code == 200
    batch = client.post("/v1/batches", json={"input_file_id": file_id, **BATCH}, headers=alice)
    assert batch.status_code == 200, "there is room for one byte"
    upload(client, b"x", headers=alice)
    full = client.post("/v1/batches", json={"input_file_id": file_id, **BATCH}, headers=alice)
    assert full.status_code == 413
    assert "gateway.owner_max_file_bytes is 6; you keep 6 bytes in 2 files. Delete some" in full.text


@pytest.mark.parametrize(("ttl_s", "asked_s", "expires_at"), [(7200, None, 7212), (7200, 3600, 3612), (60, 3600, 72)])
def test_files_expire_when_they_are_asked_to_or_when_the_gateway_ends_them_whatever_is_earlier(
    make_client, ttl_s, asked_s, expires_at
):
    asked = {} if asked_s is None else {"expires_after[anchor]": "created_at", "expires_after[seconds]": asked_s}
    made = upload(make_client(file_ttl_s=ttl_s), form=asked)
    assert made.json["expires_at"] == expires_at  # it is 12.5 seconds past the epoch


def test_how_long_a_file_is_kept_is_part_of_what_a_key_stands_for(make_client):
    client, key = make_client(), {"Idempotency-Key": "key"}
    kept = {"expires_after[anchor]": "created_at", "expires_after[seconds]": 3600}
    assert upload(client, headers=key).status_code == 200
    assert upload(client, form=kept, headers=key).status_code == 422


def test_more_unfinished_batches_than_an_owner_may_have_are_refused(make_client):
    client = make_client(owner_max_batches=2)
    file_id = upload(client).json["id"]
    told = [client.post("/v1/batches", json={"input_file_id": file_id, **BATCH}) for _ in range(3)]
    assert [answer.status_code for answer in told] == [200, 200, 429]
    assert "gateway.owner_max_batches" in told[2].text
    assert int(told[2].headers["Retry-After"]) > 0


@pytest.mark.parametrize(("window", "status"), [("720h", 200), ("721h", 400), ("43200m", 200), ("43201m", 400)])
def test_a_completion_window_beyond_thirty_days_is_refused(make_client, window, status):
    client = make_client()
    body = {"input_file_id": upload(client).json["id"], **BATCH, "completion_window": window}
    answer = client.post("/v1/batches", json=body)
    assert answer.status_code == status
    assert status == 200 or "must be at most 720h" in answer.text
