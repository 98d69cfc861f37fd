"""Health while every place for streams, and every thread, is taken."""

import contextlib
import threading

import httpx

from firstdraft import Client
from tests.polling import until
from tests.processes import free_port, running


def test_health_answers_while_streams_have_taken_every_thread(redis_url, tmp_path):
    port, health = free_port(), free_port()
    environment = {
        "REDIS_URL": redis_url,
        "XDG_STATE_HOME": str(tmp_path),
        "FIRSTDRAFT_GATEWAY__PORT": str(port),
        "FIRSTDRAFT_GATEWAY__HEALTH_PORT": str(health),
        "FIRSTDRAFT_GATEWAY__THREADS": "4",
        "FIRSTDRAFT_GATEWAY__MAX_TRANSFERS": "1",
        "FIRSTDRAFT_GATEWAY__MAX_STREAMS": "2",
    }
    url, health_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{health}"

    def status(address):
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(address, trust_env=False, timeout=5).status_code
        return None

    with running("gateway", log=tmp_path / "log", **environment), Client(url) as client:
        until(lambda: status(f"{url}/healthz") == 200, "the gateway answers", within_s=30)
        job = client.submit("nobody takes it")
        followers = [threading.Thread(target=list, args=(client.events(job.id),)) for _ in range(2)]
        for follower in followers:
            follower.start()
        until(lambda: status(f"{url}/v1/jobs/{job.id}/events") == 503, "the places are taken")
        assert status(f"{health_url}/healthz") == 200
        assert status(f"{health_url}/readyz") == 503  # no worker
        assert status(f"{url}/healthz") == 200
        client.cancel(job.id)
        for follower in followers:
            follower.join(20)
            assert not follower.is_alive()
