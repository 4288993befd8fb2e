"""What the server answers on each path. It knows the models and the forms of messages, and nothing of sockets."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import unquote

from fastserve import __version__
from fastserve.serving import metrics, openapi, pages
from fastserve.serving.board import Board
from fastserve.serving.deployment import Deployment, Slot
from fastserve.serving.events import Events
from fastserve.serving.keys import Gate
from fastserve.serving.messages import SHARED_PATHS, Exchange, HttpError, Reply, json_reply, read_object
from fastserve.serving.options import ServeOptions

OPEN_PATHS = frozenset(("/v2/health/live", "/v2/health/ready"))
_PROGRESS_SECONDS = 10.0
Route = Callable[[Exchange], Reply | None]
NAMED_PATHS = {"predict": "/v1/models/{name}:predict", "infer": "/v2/models/{name}/infer"}
"""Verbs of models that are named by the path."""
_WHAT = {"predict": "label texts", "infer": "label texts", "completions": "write", "chat": "write"}


class App:
    """Answers exchanges. slots: served name to its slot. draining: no new request is taken any more."""

    def __init__(
        self, slots: Mapping[str, Slot], options: ServeOptions, gate: Gate, board: Board, worker: int, events: Events
    ) -> None:
        self.slots, self.options, self.gate, self.board, self.events = slots, options, gate, board, events
        self.draining = False
        self._since = int(time.time())
        self._rows = {name: board.row(worker, name) for name in board.models}
        self._stall_limit = min(_PROGRESS_SECONDS, options.hang_seconds)
        self.refresh()

    def refresh(self) -> None:
        """Have the routes that the models in charge can answer; call it when one has taken over."""
        self._routes = self._fixed_routes()
        for name, slot in self.slots.items():
            for verb in slot.current.verbs if slot.current is not None else ():
                if verb in SHARED_PATHS:
                    self._routes[SHARED_PATHS[verb]] = {"POST": functools.partial(self._ask_any, verb)}
            self._routes.update(self._model_routes(name))

    def _fixed_routes(self) -> dict[str, dict[str, Route]]:
        """Path to method to what answers, of what every server has."""
        return {
            "/": {"GET": self._front},
            "/labels": {"GET": lambda _: pages.labels()},
            "/write": {"GET": lambda _: pages.write()},
            "/docs": {"GET": lambda _: pages.docs()},
            "/openapi.json": {"GET": lambda _: json_reply(openapi.document(self.slots, self.options))},
            "/metrics": {"GET": self._metrics},
            "/v1/models": {"GET": self._list},
            "/v2": {"GET": self._server},
            "/v2/health/live": {"GET": lambda _: json_reply({"live": True})},
            "/v2/health/ready": {"GET": self._ready},
        }

    def _model_routes(self, name: str) -> dict[str, dict[str, Route]]:
        routes: dict[str, dict[str, Route]] = {
            f"/v1/models/{name}": {"GET": functools.partial(self._v1_model, name=name)}
        }
        current = self.slots[name].current
        if current is None or "predict" in current.verbs:
            ask = functools.partial(self._ask, "predict", name=name, version=None)
            routes[NAMED_PATHS["predict"].format(name=name)] = {"POST": ask}
        return routes | self._v2_routes(f"/v2/models/{name}", name, None)

    def _v2_routes(self, prefix: str, name: str, version: str | None) -> dict[str, dict[str, Route]]:
        routes: dict[str, dict[str, Route]] = {
            prefix: {"GET": functools.partial(self._v2_model, name=name, version=version)},
            f"{prefix}/ready": {"GET": functools.partial(self._v2_model_ready, name=name, version=version)},
        }
        current = self.slots[name].current
        if current is None or "infer" in current.verbs:
            routes[f"{prefix}/infer"] = {"POST": functools.partial(self._ask, "infer", name=name, version=version)}
        return routes

    # ---- the handler's side

    def admit(self, exchange: Exchange) -> Reply | None:
        """Refuse by the headers alone, so that no body is taken from who may not send it."""
        if exchange.path in OPEN_PATHS:
            return None
        try:
            exchange.key = self.gate.check(exchange.headers)
            if self.draining:
                raise HttpError(503, "the server is shutting down", retry_after=1)
            if b"content-encoding" in exchange.headers:
                raise HttpError(415, "compressed bodies are not taken; send the body without Content-Encoding")
        except HttpError as error:
            return error.reply(exchange.path)
        return None

    def handle(self, exchange: Exchange) -> None:
        try:
            reply = self._find(exchange)(exchange)
        except HttpError as error:
            reply = error.reply(exchange.path)
        except Exception as error:  # a defect must not take the connection down without an answer
            self.events.defect("request failed", error, path=exchange.path)
            reply = HttpError(500, "internal error; the server's log says more").reply(exchange.path)
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

    # ---- what models answer

    def _ask(self, verb: str, exchange: Exchange, name: str, version: str | None) -> None:
        """Have the model answer that the path names."""
        exchange.model = name
        self._act(verb, self._deployment(name, version), exchange, name)

    @staticmethod
    def _act(verb: str, deployment: Deployment, exchange: Exchange, name: str) -> None:
        act = deployment.verbs.get(verb)
        if act is None:
            raise HttpError(400, f"model '{name}' does not {_WHAT.get(verb, verb)}; /docs lists what it does")
        act(exchange, name)

    def _ask_any(self, verb: str, exchange: Exchange) -> None:
        """Have the model answer that the body names; it may be left out where only one can be meant."""
        exchange.content = read_object(exchange.body)
        able = [name for name, slot in self.slots.items() if slot.current is None or verb in slot.current.verbs]
        name = exchange.content.get("model")
        if name is None and len(able) == 1:
            name = able[0]
        if not isinstance(name, str):
            raise HttpError(400, f"'model' must be one of: {', '.join(able)}", param="model")
        owners = {name: name for name in self.slots} | {further: base for base, further in self._further_names()}
        if name not in owners:
            message = f"no model is called '{name[:200]}'; there is: {', '.join(owners)}"
            raise HttpError(404, message, param="model", code="model_not_found")
        exchange.model = owners[name]
        self._act(verb, self._deployment(owners[name]), exchange, name)

    def _further_names(self) -> Iterator[tuple[str, str]]:
        """A model's name, and that of an adapter of it."""
        for name, slot in self.slots.items():
            for further in slot.current.names if slot.current is not None else ():
                yield name, further

    # ---- what the server says about itself

    def _front(self, exchange: Exchange) -> Reply:
        """The page for a browser; for a program the sign of life that the KServe v1 client looks for."""
        if b"text/html" not in exchange.headers.get(b"accept", b""):
            return json_reply({"status": "alive"})
        loaded = [slot.current for slot in self.slots.values() if slot.current is not None]
        return pages.labels() if not loaded or any("predict" in each.verbs for each in loaded) else pages.write()

    def _metrics(self, exchange: Exchange) -> Reply:
        self.set_gauges()
        return Reply(200, metrics.render(self.board), metrics.CONTENT_TYPE)

    def set_gauges(self) -> None:
        """Put what is in hand now on the board."""
        for name, slot in self.slots.items():
            row, current = self._rows[name], slot.current
            if current is not None:
                current.set_gauges()
                row["version"] = int(current.version) if current.folder.name.isdecimal() else 0
            row["ready"] = int(current is not None and not self.draining)

    def _list(self, exchange: Exchange) -> Reply:
        models = [self._card(name) for name in self.slots]
        models += [{**self._card(base), "id": name, "parent": base} for base, name in self._further_names()]
        return json_reply({"object": "list", "data": models, "models": list(self.slots)})

    def _card(self, name: str) -> dict[str, object]:
        current = self.slots[name].current
        card: dict[str, object] = {"id": name, "object": "model", "created": self._since, "owned_by": "fastserve"}
        return card | (current.card() if current is not None else {})

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
        return slot.current is not None and slot.current.is_ready(time.monotonic(), self._stall_limit)

    @property
    def stalled_seconds(self) -> float:
        """For how long the slowest model has had work without finishing any."""
        now = time.monotonic()
        running = [slot.current for slot in self.slots.values() if slot.current is not None]
        return max((deployment.stalled_seconds(now) for deployment in running), default=0.0)

    def _v1_model(self, exchange: Exchange, name: str) -> Reply:
        ready = not self.draining and self._is_slot_ready(self.slots[name])
        return json_reply({**self._card(name), "name": name, "ready": ready}, 200 if ready else 503)

    def _v2_model(self, exchange: Exchange, name: str, version: str | None) -> Reply:
        deployment = self._deployment(name, version)
        refused = self.slots[name].refused
        reason = None if refused is None else {"version": refused[0].name, "reason": refused[1]}
        return json_reply(deployment.about(name, reason))

    def _v2_model_ready(self, exchange: Exchange, name: str, version: str | None) -> Reply:
        self._deployment(name, version)
        ready = not self.draining and self._is_slot_ready(self.slots[name])
        return json_reply({"name": name, "ready": ready}, 200 if ready else 503)
