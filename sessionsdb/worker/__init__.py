"""The worker: drains the inboxes, runs the agent, commits its turns."""

from sessionsdb.worker.retry import Backoff, Retry
from sessionsdb.worker.turn import Handler, Reply, Turn
from sessionsdb.worker.worker import Worker

__all__ = ["Backoff", "Handler", "Reply", "Retry", "Turn", "Worker"]
