"""`firstdraft keys` on a real Redis."""

import json

import pytest
from click.testing import CliRunner

from broker.api_keys import ApiKeys
from firstdraft.cli import main
from schemas.owners import Owner, Scope


@pytest.fixture
def run(redis_url, redis_connection, monkeypatch):  # noqa: ARG001 - flushed before each test
    monkeypatch.setenv("REDIS_URL", redis_url)
    return lambda *arguments: CliRunner().invoke(main, ["keys", *arguments])


def test_keys_are_made_listed_and_revoked(run, redis_connection):
    made = run("create", "alice", "--scope", "read", "--weight", "2", "--label", "the report", "--cache-group", "team")
    assert made.exit_code == 0
    found = ApiKeys(redis_connection).find(made.output.strip())
    assert found.owner == Owner(name="alice", weight=2.0, scopes=(Scope.READ,), cache_group="team")
    (listed,) = json.loads(run("list", "--json").output)
    assert (listed["key_id"], listed["label"]) == (found.key_id, "the report")
    assert "digest" not in listed
    assert "alice" in run("list").output
    assert run("revoke", found.key_id).exit_code == 0
    assert ApiKeys(redis_connection).find(made.output.strip()) is None


@pytest.mark.parametrize("label", ["firstdraft[edge]", "[/x]", "[bold]b[/bold]", "p:smile:q"])
def test_a_label_is_shown_as_it_was_given(run, label, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run("create", "alice", "--label", label)
    assert label in run("list").output


def test_a_key_that_is_not_there_and_an_owner_that_cannot_be_are_said_so(run):
    missing = run("revoke", "nothing")
    assert missing.exit_code == 1
    assert "firstdraft keys list" in missing.output
    assert run("create", "alice and bob").exit_code == 1
    assert run("create", "alice", "--cache-group", "owner:bob").exit_code == 1


def test_without_a_server_in_the_settings_the_embedded_one_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setattr("firstdraft.local.connection.state_folder", lambda: tmp_path)
    made = CliRunner().invoke(main, ["keys", "create", "alice", "--json"])
    key = json.loads(made.output)["key"]
    listed = CliRunner().invoke(main, ["keys", "list", "--json"])
    assert key.split("_")[1] in listed.output
