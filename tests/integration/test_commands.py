"""The commands against a whole running system with stand-in engines."""

import hashlib
import json

import pytest
from click.testing import CliRunner

from firstdraft import Client
from firstdraft.cli import main
from tests.processes import free_port


@pytest.fixture
def run(system):
    def command(*arguments, **options):
        options.setdefault("env", {"FIRSTDRAFT_URL": system.url})
        return CliRunner().invoke(main, arguments, **options)

    return command


def test_a_prompt_is_asked(run):
    asked = run("ask", "one two", "--max-tokens", "2")
    assert (asked.exit_code, asked.output) == (0, "two one \n")
    piped = run("ask", "-", "--max-tokens", "2", "--policy", "edge_only", "--json", input="one two")
    assert json.loads(piped.output)["result"]["policy"] == "edge_only"


def test_a_job_is_submitted_watched_and_fetched(run):
    job_id = run("submit", "unsure two", "--max-tokens", "3").output.strip()
    watched = [json.loads(line) for line in run("watch", job_id, "--json").output.splitlines()]
    assert [event["type"] for event in watched][0::100] == ["queued"]
    assert watched[-1]["type"] == "done"
    assert run("result", job_id, "--timeout", "20").output == watched[-1]["result"]["text"] + "\n"
    assert run("watch", job_id).output.splitlines()[0] == "queued     tier=edge"


def test_jobs_are_cancelled(run):
    job_ids = [run("submit", "forever").output.strip() for _ in range(2)]
    assert run("cancel", *job_ids).output == "".join(f"{job_id} cancelled\n" for job_id in job_ids)
    fetched = run("result", job_ids[0])
    assert (fetched.exit_code, fetched.output) == (1, f"Error: job {job_ids[0]}: it is cancelled\n")
    as_json = run("result", job_ids[0], "--json")
    assert (as_json.exit_code, json.loads(as_json.output)["status"]) == (1, "cancelled")


def test_a_conversation_keeps_its_history_and_survives_a_failure(run):
    talked = run("chat", "--json", "--max-tokens", "2", input="one two\nbreak\nthree\n")
    answers = [json.loads(line) for line in talked.output.splitlines()]
    assert [answer["status"] for answer in answers] == ["succeeded", "failed", "succeeded"]
    assert answers[0]["result"]["text"] == "two one "
    shown = run("chat", "--max-tokens", "2", input="one two\n/new\nnothing /quit\n/quit\nnever said\n")
    assert shown.exit_code == 0
    assert "two one" in shown.output
    assert "never" not in shown.output


def test_what_the_system_does_is_shown(run):
    run("ask", "one two")
    assert json.loads(run("stats", "--json").output)["counters"]["accepted"] >= 1
    assert "answered edge" in run("stats").output
    workers = [json.loads(line) for line in run("workers", "--json").output.splitlines()]
    assert {worker["tier"] for worker in workers} == {"edge", "cloud"}
    assert run("workers").exit_code == 0


def test_a_load_is_measured(run):
    figures = json.loads(run("bench", "--requests", "6", "--max-tokens", "2", "--json").output)["figures"]
    assert figures["requests_per_s"] > 0
    assert figures["edge_share"] == 1.0


def test_a_gateway_that_is_not_there_is_one_line(run):
    asked = run("workers", "--url", f"http://127.0.0.1:{free_port()}")
    assert asked.exit_code == 1
    assert asked.output.startswith("Error: GET /v1/stats: ConnectError")
    assert asked.output.count("\n") == 1


def test_the_doctor_says_what_is_there_and_what_to_do(run, system, tmp_path):
    environment = {"REDIS_URL": system.redis_url, "FIRSTDRAFT_MODELS__CACHE_PATH": str(tmp_path)}
    well = run("doctor", "--json", env=environment)
    findings = {finding["name"]: finding for finding in json.loads(well.output)["findings"]}
    assert findings["Redis"]["fine"]
    assert "models prepare" in findings["edge model"]["advice"]
    ill = run("doctor", env={**environment, "REDIS_URL": f"redis://127.0.0.1:{free_port()}"})
    assert ill.exit_code == 1
    assert "REDIS_URL" in ill.output


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"word{n}", "max_tokens": 1}) + "\n" for n in range(30)))
    return path


def test_a_batch_answers_every_line(run, prompts, tmp_path):
    ran = run("batch", str(prompts), "-o", str(tmp_path / "out.jsonl"))
    assert ran.exit_code == 0, ran.output
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    texts = {answer["custom_id"]: answer["response"]["body"]["result"]["text"] for answer in answers}
    assert texts == {str(n + 1): f"word{n} " for n in range(30)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_batch_with_lines_that_fail_says_so_in_its_exit_status(run, prompts, tmp_path):
    prompts.write_text(prompts.read_text() + '{"prompt": "x", "max_tokens": 0}\n')
    ran = run("batch", str(prompts), "-o", str(tmp_path / "out.jsonl"), "--json")
    assert ran.exit_code == 3
    assert json.loads(ran.output)["request_counts"] == {"total": 31, "completed": 30, "failed": 1}
    (error,) = (tmp_path / "out.jsonl.errors").read_text().splitlines()
    assert json.loads(error)["custom_id"] == "31"


@pytest.mark.parametrize("wrapped", [True, False], ids=["requests", "bodies"])
@pytest.mark.parametrize("before", ["\ufeff", "\ufeff\n\n", "\n \n"])
def test_a_byte_order_mark_and_blank_lines_before_a_batch_are_no_part_of_it(run, tmp_path, wrapped, before):
    source = tmp_path / "in.jsonl"
    bodies = [{"prompt": f"word{n}", "max_tokens": 1} for n in range(2)]
    head = {"method": "POST", "url": "/v1/jobs"}
    lines = [{"custom_id": f"w{n}", **head, "body": body} if wrapped else body for n, body in enumerate(bodies)]
    source.write_text(before + "".join(json.dumps(line) + "\r\n" for line in lines), encoding="utf-8")
    ran = run("batch", str(source), "-o", str(tmp_path / "out.jsonl"))
    assert ran.exit_code == 0, ran.output
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(answer["response"]["body"]["result"]["text"] for answer in answers) == ["word0 ", "word1 "]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("command", [["batch", "IN", "-o", "OUT"], ["ablate", "IN"], ["bench", "IN"]])
def test_prompts_in_another_encoding_are_said_to_be(run, tmp_path, command, encoding):
    source = tmp_path / "in.jsonl"
    mark = "" if encoding == "utf-16" else "\ufeff"
    source.write_bytes((mark + '{"prompt": "x"}\n').encode(encoding))
    places = {"IN": str(source), "OUT": str(tmp_path / "out")}
    refused = run(*(places.get(part, part) for part in command))
    assert refused.exit_code == 1
    assert f"Error: {source} is UTF-16: save it as UTF-8" in refused.output


def test_an_interrupted_batch_is_followed_again_and_another_input_is_another_batch(run, system, prompts, tmp_path):
    memory = tmp_path / "out.jsonl.batch"
    with Client(system.url) as client:
        lines = tmp_path / "begun.jsonl"
        body = {"prompt": "begun before", "max_tokens": 1}
        lines.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/jobs", "body": body}) + "\n")
        begun = client.start_batch(lines)
    digest = hashlib.sha256(prompts.read_bytes()).hexdigest()
    memory.write_text(json.dumps({"batch_id": begun.id, "digest": digest}))
    assert run("batch", str(prompts), "-o", str(tmp_path / "out.jsonl")).exit_code == 0
    assert "before " in (tmp_path / "out.jsonl").read_text()
    memory.write_text(json.dumps({"batch_id": begun.id, "digest": "another"}))
    assert run("batch", str(prompts), "-o", str(tmp_path / "out.jsonl")).exit_code == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 30
    assert not memory.exists()
