"""Workers: they claim sessions with messages, run the agent over them and commit its turns."""

from sessionsdb.worker.handler import Handler
from sessionsdb.worker.reply import Reply
from sessionsdb.worker.retry import Backoff, Retry
from sessionsdb.worker.turn import Turn
from sessionsdb.worker.worker import Worker

__all__ = ["Backoff", "Handler", "Reply", "Retry", "Turn", "Worker"]
