"""What the supervisor answers on the same socket while no worker can: 503 with Retry-After, and that it lives."""

from __future__ import annotations

from fastserve.serving.messages import Exchange, HttpError, Reply, json_reply


class StandIn:
    """A handler without models. draining is always true: a client comes back by a new connection, to a worker."""

    draining = True

    def __init__(self) -> None:
        self.reason = "the server is starting"
        self.answered = 0

    def admit(self, exchange: Exchange) -> Reply | None:
        if exchange.path == "/v2/health/live":
            return json_reply({"live": True})
        if exchange.path == "/v2/health/ready":
            return json_reply({"ready": False}, 503)
        return HttpError(503, self.reason, retry_after=1).reply(exchange.path)

    def handle(self, exchange: Exchange) -> None:
        exchange.respond(HttpError(503, self.reason, retry_after=1).reply(exchange.path))

    def finished(self, exchange: Exchange, reply: Reply, now: float) -> None:
        self.answered += 1
