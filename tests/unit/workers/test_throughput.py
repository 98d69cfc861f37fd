from workers.runtime.throughput import Throughput


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_nothing_is_known_before_the_first_job_has_ended():
    clock = Clock()
    throughput = Throughput(clock)
    throughput.begun()
    clock.now = 3.0
    assert throughput.tokens_per_s is None


def test_the_speed_is_work_over_busy_time_and_idleness_changes_nothing():
    clock = Clock()
    throughput = Throughput(clock)
    throughput.begun()
    throughput.begun()
    clock.now = 0.02
    throughput.ended(10)
    throughput.ended(30)
    busy = throughput.tokens_per_s
    assert busy == 40 / 0.02
    clock.now = 1000.0
    assert throughput.tokens_per_s == busy
    throughput.begun()
    assert throughput.tokens_per_s == busy


def test_what_is_long_past_is_forgotten():
    clock = Clock()
    throughput = Throughput(clock)
    for tokens in (1000, 1):
        for _ in range(100):
            throughput.begun()
            clock.now += 10.0
            throughput.ended(tokens)
    assert 0.1 <= throughput.tokens_per_s < 0.2
