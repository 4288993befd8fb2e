"""What the server answers on each path. It knows the models and the forms of messages, and nothing of sockets."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from fastserve import __version__
from fastserve.serving import kserve_v1, metrics, oip, openapi, pages
from fastserve.serving.board import Board
from fastserve.serving.deployment import Deployment, Slot
from fastserve.serving.events import Events
from fastserve.serving.keys import Gate
from fastserve.serving.messages import Exchange, HttpError, Reply, json_reply
from fastserve.serving.options import ServeOptions

OPEN_PATHS = frozenset(("/v2/health/live", "/v2/health/ready"))
_PROGRESS_SECONDS = 10.0
Route = Callable[[Exchange], Reply | None]


class App:
    """Answers exchanges. slots: served name to its slot. draining: no new request is taken any more."""

    def __init__(
        self, slots: Mapping[str, Slot], options: ServeOptions, gate: Gate, board: Board, worker: int, events: Events
    ) -> None:
        self.slots, self.options, self.gate, self.board, self.events = slots, options, gate, board, events
        self.draining = False
        self._rows = {name: board.row(worker, name) for name in board.models}
        self._routes = self._fixed_routes()
        self._stall_limit = min(_PROGRESS_SECONDS, options.hang_seconds)

    def _fixed_routes(self) -> dict[str, dict[str, Route]]:
        """Path to method to what answers: everything but versioned paths, whose versions change."""
        routes: dict[str, dict[str, Route]] = {
            "/": {"GET": self._front},
            "/docs": {"GET": lambda _: pages.docs()},
            "/openapi.json": {"GET": lambda _: json_reply(openapi.document(self.slots, self.options))},
            "/metrics": {"GET": self._metrics},
            "/v1/models": {"GET": self._list},
            "/v2": {"GET": self._server},
            "/v2/health/live": {"GET": lambda _: json_reply({"live": True})},
            "/v2/health/ready": {"GET": self._ready},
        }
        for name in self.slots:
            routes[f"/v1/models/{name}"] = {"GET": functools.partial(self._v1_model, name=name)}
            routes[f"/v1/models/{name}:predict"] = {"POST": functools.partial(self._predict, name=name)}
            routes.update(self._v2_routes(f"/v2/models/{name}", name, None))
        return routes

    def _v2_routes(self, prefix: str, name: str, version: str | None) -> dict[str, dict[str, Route]]:
        return {
            prefix: {"GET": functools.partial(self._v2_model, name=name, version=version)},
            f"{prefix}/ready": {"GET": functools.partial(self._v2_model_ready, name=name, version=version)},
            f"{prefix}/infer": {"POST": functools.partial(self._infer, name=name, version=version)},
        }

    # ---- the handler's side

    def admit(self, exchange: Exchange) -> Reply | None:
        """Refuse by the headers alone, so that no body is taken from who may not send it."""
        if exchange.path in OPEN_PATHS:
            return None
        try:
            self.gate.check(exchange.headers)
            if self.draining:
                raise HttpError(503, "the server is shutting down", retry_after=1)
            if b"content-encoding" in exchange.headers:
                raise HttpError(415, "compressed bodies are not taken; send the body without Content-Encoding")
        except HttpError as error:
            return error.reply()
        return None

    def handle(self, exchange: Exchange) -> None:
        try:
            reply = self._find(exchange)(exchange)
        except HttpError as error:
            reply = error.reply()
        except Exception as error:  # a defect must not take the connection down without an answer
            self.events.defect("request failed", error, path=exchange.path)
            reply = HttpError(500, "internal error; the server's log says more").reply()
        if reply is not None:
            exchange.respond(reply)

    def finished(self, exchange: Exchange, reply: Reply, now: float) -> None:
        seconds = now - exchange.started
        self._rows[exchange.model].count(reply.status, seconds)
        if self.options.access_log:
            self.events.access(exchange, reply, seconds)

    def _find(self, exchange: Exchange) -> Route:
        """The route of a request, or 404 or 405."""
        methods = self._routes.get(exchange.path) or self._find_slowly(exchange.path)
        route = methods.get("GET" if exchange.method == "HEAD" else exchange.method)
        if route is None:
            allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
            raise HttpError(
                405, f"{exchange.path} takes {allowed}, not {exchange.method}", headers=(("allow", allowed),)
            )
        return route

    def _find_slowly(self, path: str) -> dict[str, Route]:
        """Versioned and percent-encoded paths, and names that are not there."""
        path = unquote(path)
        if path in self._routes:
            return self._routes[path]
        parts = path.split("/")
        if path.startswith(("/v1/models/", "/v2/models/")):
            name = parts[3].partition(":")[0]
            self._slot(name)
            if len(parts) in (6, 7) and parts[1] == "v2" and parts[4] == "versions":
                prefix = "/".join(parts[:6])
                routes = self._v2_routes(prefix, name, parts[5])
                if path in routes:
                    return routes[path]
        raise HttpError(404, f"there is nothing at {path[:200]}; /docs lists what there is")

    def _slot(self, name: str) -> Slot:
        slot = self.slots.get(name)
        if slot is None:
            raise HttpError(404, f"no model is called '{name[:200]}'; there is: {', '.join(self.slots)}")
        return slot

    def _deployment(self, name: str, version: str | None = None) -> Deployment:
        current = self._slot(name).current
        if current is None:
            raise HttpError(503, f"model '{name}' is not loaded yet", retry_after=1)
        if version is not None and version != current.version:
            raise HttpError(404, f"model '{name}' has no version '{version[:200]}' here; it has {current.version}")
        return current

    # ---- predictions

    def _predict(self, exchange: Exchange, name: str) -> None:
        exchange.model = name
        deployment = self._deployment(name)
        texts = kserve_v1.read_request(exchange.body, self.options.max_texts)
        deployment.answer(exchange, texts, functools.partial(kserve_v1.write_reply, deployment.model))

    def _infer(self, exchange: Exchange, name: str, version: str | None) -> None:
        exchange.model = name
        deployment = self._deployment(name, version)
        request = oip.read_request(exchange.body, exchange.headers.get(oip.LENGTH_HEADER), name, self.options.max_texts)
        write = functools.partial(oip.write_reply, request, name, deployment.version, deployment.model)
        deployment.answer(exchange, request.texts, write)

    # ---- what the server says about itself

    def _front(self, exchange: Exchange) -> Reply:
        """The page for a browser; for a program the sign of life that the KServe v1 client looks for."""
        if b"text/html" in exchange.headers.get(b"accept", b""):
            return pages.front()
        return json_reply({"status": "alive"})

    def _metrics(self, exchange: Exchange) -> Reply:
        self.set_gauges()
        return Reply(200, metrics.render(self.board), metrics.CONTENT_TYPE)

    def set_gauges(self) -> None:
        """Put what is in hand now on the board."""
        for name, slot in self.slots.items():
            row, current = self._rows[name], slot.current
            if current is not None:
                row["waiting"] = current.runner.batcher.waiting
                row["waiting_tokens"] = current.runner.batcher.waiting_tokens
                row["version"] = int(current.version) if current.folder.name.isdecimal() else 0
            row["ready"] = int(current is not None and not self.draining)

    def _list(self, exchange: Exchange) -> Reply:
        models = [{"id": name, "object": "model", "owned_by": "fastserve"} for name in self.slots]
        return json_reply({"object": "list", "data": models, "models": list(self.slots)})

    def _server(self, exchange: Exchange) -> Reply:
        return json_reply({"name": "fastserve", "version": __version__, "extensions": ["binary_tensor_data"]})

    def _ready(self, exchange: Exchange) -> Reply:
        ready = self.is_ready
        return json_reply({"ready": ready}, 200 if ready else 503)

    @property
    def is_ready(self) -> bool:
        """Whether every model is loaded and, where it has work, gets on with it."""
        return not self.draining and all(self._is_slot_ready(slot) for slot in self.slots.values())

    def _is_slot_ready(self, slot: Slot) -> bool:
        return slot.current is not None and slot.current.runner.stalled_seconds(time.monotonic()) < self._stall_limit

    @property
    def stalled_seconds(self) -> float:
        """For how long the slowest model has had work without finishing any."""
        now = time.monotonic()
        running = [slot.current for slot in self.slots.values() if slot.current is not None]
        return max((deployment.runner.stalled_seconds(now) for deployment in running), default=0.0)

    def _v1_model(self, exchange: Exchange, name: str) -> Reply:
        ready = not self.draining and self._is_slot_ready(self.slots[name])
        return json_reply({"name": name, "ready": ready}, 200 if ready else 503)

    def _v2_model(self, exchange: Exchange, name: str, version: str | None) -> Reply:
        deployment = self._deployment(name, version)
        refused = self.slots[name].refused
        further: dict[str, Any] = {"max_length": deployment.model.max_length, "runtime": deployment.model.runtime}
        if refused is not None:
            further["refused"] = {"version": refused[0].name, "reason": refused[1]}
        return json_reply(oip.metadata(name, deployment.version, deployment.model, further))

    def _v2_model_ready(self, exchange: Exchange, name: str, version: str | None) -> Reply:
        self._deployment(name, version)
        ready = not self.draining and self._is_slot_ready(self.slots[name])
        return json_reply({"name": name, "ready": ready}, 200 if ready else 503)
