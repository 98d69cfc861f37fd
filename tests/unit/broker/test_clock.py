"""The server's clock as a host knows it, with a stand-in server and a stand-in monotonic clock."""

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from broker.clock import REFRESH_S, ServerClock


class Host:
    """A host's monotonic clock, and a server that tells its own time after a way of `travel_s` there and back."""

    def __init__(self, server_ahead_s, travel_s=0.0):
        self.now_s = 1000.0
        self.ahead_s = server_ahead_s
        self.travel_s = travel_s
        self.away = False
        self.num_asked = 0

    def monotonic(self):
        return self.now_s

    def time(self):
        self.num_asked += 1
        if self.away:
            raise RedisConnectionError("away")
        self.now_s += self.travel_s / 2
        told = self.now_s + self.ahead_s
        self.now_s += self.travel_s / 2
        return int(told), round(told % 1 * 1e6)


def test_the_time_is_the_servers_however_long_its_answer_travels():
    host = Host(server_ahead_s=5e8, travel_s=0.5)
    clock = ServerClock(host, host.monotonic)
    assert clock() == pytest.approx(host.now_s + 5e8, abs=1e-3)


def test_the_server_is_asked_once_in_a_while_and_time_goes_on_in_between():
    host = Host(server_ahead_s=7.25)
    clock = ServerClock(host, host.monotonic)
    told = [clock()]
    for _ in range(9):
        host.now_s += REFRESH_S / 10
        told.append(clock())
    assert host.num_asked == 1
    assert told == pytest.approx([1007.25 + step * REFRESH_S / 10 for step in range(10)], abs=1e-3)
    host.now_s += REFRESH_S / 10
    host.ahead_s = 8.0
    assert clock() == pytest.approx(host.now_s + 8.0, abs=1e-3)
    assert host.num_asked == 2


def test_while_the_server_is_away_time_goes_on_and_not_every_call_asks():
    host = Host(server_ahead_s=3.0)
    clock = ServerClock(host, host.monotonic)
    clock()
    host.away = True
    host.now_s += 2 * REFRESH_S
    assert [clock() for _ in range(5)] == pytest.approx([host.now_s + 3.0] * 5, abs=1e-3)
    assert host.num_asked == 2


def test_a_server_that_never_answered_tells_no_time():
    host = Host(server_ahead_s=3.0)
    host.away = True
    clock = ServerClock(host, host.monotonic)
    for _ in range(2):
        with pytest.raises(RedisConnectionError):
            clock()
    host.away = False
    assert clock() == pytest.approx(host.now_s + 3.0, abs=1e-3)
