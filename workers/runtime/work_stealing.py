"""Brings work to a worker that has room: from the shared queue, from dead workers' queues, from longer ones.

Owns the thread that keeps the worker's queue alive in Redis. Only moves jobs between queues; the worker takes them off
its own, which is the one queue that it listens on, so that no dequeue is ever unreliable.
"""

import logging
import threading
from collections.abc import Callable

from redis.exceptions import RedisError

from broker.background import Loop
from broker.routing import worth_taking
from broker.run_queues import RunQueues, Survey

log = logging.getLogger(__name__)

#: Seconds between looks around when nothing happens; the queue's lease is a multiple of it.
LOOK_S = 0.5
#: Jobs that are moved from a dead worker's queue at once.
TAKEN_OVER = 1000


class Forager:
    """Looks around for the worker of one queue, which works on `capacity` jobs at once."""

    def __init__(self, queues: RunQueues, queue: str, capacity: int, is_willing: Callable[[], bool]) -> None:
        self._queues = queues
        self._queue = queue
        self._capacity = capacity
        self._is_willing = is_willing
        self._room = threading.Event()
        #: Looks around, once the forager is started.
        self.loop = Loop("forager", self._look_around, every_s=0.0)

    def start(self) -> None:
        """Open the queue and go on. Raises Redis's error where the queue cannot be opened."""
        self._queues.survey(self._queue)
        self.loop.start()

    def has_room(self) -> None:
        """Say that a job has ended. Does not block."""
        self._room.set()

    def close(self) -> None:
        """Stop, and leave what waits on the queue to others. Blocks for a second at most."""
        self.loop.closing.set()
        self._room.set()
        self.loop.close()
        try:
            self._queues.leave(self._queue)
        except RedisError as error:
            # The lease ends by itself, and others take over what waits.
            log.warning("queue_not_left queue=%s error=%s", self._queue, error)

    def _look_around(self) -> None:
        self._room.clear()
        survey = self._queues.survey(self._queue)
        self._bury_the_dead(survey)
        room = self._capacity - survey.num_own
        if room <= 0 or not self._is_willing():
            self._room.wait(LOOK_S)
            return
        if survey.num_shared:
            self._queues.move(self._queues.shared, self._queue, room)
        elif taken := worth_taking(survey.neighbours, room=room, num_own=survey.num_own):
            neighbour, num_jobs = taken
            stolen = self._queues.move(neighbour.queue, self._queue, num_jobs, newest=True)
            if stolen:
                log.info("jobs_stolen from=%s jobs=%d", neighbour.queue, len(stolen))
        else:
            self._queues.wait_for_shared(self._queue, LOOK_S)

    def _bury_the_dead(self, survey: Survey) -> None:
        for neighbour in survey.neighbours:
            if neighbour.alive:
                continue
            moved = self._queues.move(neighbour.queue, self._queues.shared, TAKEN_OVER, newest=True)
            if moved:
                log.warning("queue_taken_over from=%s jobs=%d", neighbour.queue, len(moved))
            self._queues.bury(neighbour.queue)
