"""Before a run on several nodes: do they reach each other, and are they alike? `check` is started on each of them."""

from fastserve.distributed.preflight.check import Request, check
from fastserve.distributed.preflight.outcome import Outcome

__all__ = ["Outcome", "Request", "check"]
