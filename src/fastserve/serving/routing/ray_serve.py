"""Servers of the same models on the machines of a Ray cluster, behind the address of the command.

Ray Serve places the servers, looks after them, and replaces those that are lost. Requests do not go through it: the
command's process routes them, as it does to servers of one machine, and asks Ray Serve where the servers are now.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.schema import ApplicationStatus

from fastserve import errors, log
from fastserve.distributed import ray_cluster
from fastserve.errors import ConfigError, FastServeError, NotFoundError, ServingError, UserError
from fastserve.plugins import import_object
from fastserve.serving.events import Events
from fastserve.serving.keys import Gate, Key
from fastserve.serving.listener import address, bind
from fastserve.serving.model import Named
from fastserve.serving.options import ServeOptions
from fastserve.serving.routing.member import MemberOrder, MemberProcess
from fastserve.serving.routing.replica import Replica
from fastserve.serving.routing.route import run
from fastserve.serving.routing.router import Router
from fastserve.serving.source import ModelSource

CHECK_SECONDS = 1.0
"""Between two looks at where the servers are, and of Ray Serve at whether each is well."""
ANSWER_SECONDS = 5.0
"""In which a server must say where it is."""
ALONE_SECONDS = 30.0
"""After which a server that no command asks for any more has all of them ended."""
GRACE_SECONDS = 10.0
"""Beyond the drain, before a server is killed."""
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What each replica serves. folder: of the command; is_shared: on a cluster, whose machines reach each other."""

    models: tuple[Named, ...]
    options: ServeOptions
    source: str
    keys: tuple[Key, ...]
    folder: str
    is_shared: bool


# In a replica's process, on its machine


class Server:
    """What Ray Serve has of a replica: a whole server in processes of its own, ready once this is made.

    UserError or ServingError where it cannot serve.
    """

    _process: MemberProcess | None = None

    async def __init__(self, wanted: Wanted) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        self._wanted = wanted
        if Path(wanted.folder).is_dir():
            os.chdir(wanted.folder)  # where models and the user's own modules are looked for
        if wanted.is_shared:
            _look_for_models(wanted)
        with bind(ray.util.get_node_ip_address() if wanted.is_shared else _LOOPBACK, 0) as listening:
            self._replica = Replica(address(listening))
            self._process = _started(wanted, listening)
        while not await self._replica.check(CHECK_SECONDS):
            if self._process.code is not None:
                raise _error_of(self._process)
            await asyncio.sleep(0.1)
        self._asked = self._was_ready = time.monotonic()

    def tell(self) -> str:
        """Its address; who asks is the command, which therefore lives."""
        self._asked = time.monotonic()
        return self._replica.name

    async def check_health(self) -> None:
        """ServingError where it must be replaced. A worker that ended is started again by the server itself."""
        assert self._process is not None
        if self._process.code is not None:
            raise _error_of(self._process)
        now = time.monotonic()
        if await self._replica.check(CHECK_SECONDS):
            self._was_ready = now
        elif now - self._was_ready > self._wanted.options.start_seconds:
            raise ServingError(f"{self._replica.name} was not ready for {now - self._was_ready:.0f} s")
        if now - self._asked > ALONE_SECONDS:
            await asyncio.to_thread(serve.delete, serve.get_replica_context().app_name, _blocking=False)

    def __del__(self) -> None:
        """Let it finish what it has. Called by Ray Serve; the server ends with this process in any case."""
        if self._process is not None:
            with self._process as process:
                process.end(self._wanted.options.drain_seconds + GRACE_SECONDS)


def _look_for_models(wanted: Wanted) -> None:
    """NotFoundError, with the machine's name, where it does not have one of the models."""
    source: ModelSource = import_object(wanted.source)(wanted.options)
    for model in wanted.models:
        try:
            source.resolve(model.reference)
        except FastServeError as error:
            raise NotFoundError(
                f"on {os.uname().nodename}: {error}. Every machine of the Ray cluster reads the model from its own "
                "disk: set $FASTSERVE_HOME to a folder on storage that all of them share, or copy the model there"
            ) from error


def _started(wanted: Wanted, listening: socket.socket) -> MemberProcess:
    return MemberProcess(
        MemberOrder(
            models=wanted.models,
            options=wanted.options,
            source=wanted.source,
            keys=wanted.keys,
            listening=listening.fileno(),
        )
    )


def _error_of(process: MemberProcess) -> FastServeError:
    """Why a server ended."""
    reason = process.reason() or f"the server ended with exit code {process.code}"
    return UserError(reason) if process.code == UserError.exit_code else ServingError(reason)


# In the command's process


class OnRay:
    """The servers as their router has them; all that is done with Ray happens in a thread beside it.

    error: why they ended, if they did by themselves.
    """

    def __init__(self, router: Router, wanted: Wanted, place: str) -> None:
        self.router, self.wanted, self.place = router, wanted, place
        self.code = 0
        self.error: Exception | None = None
        self._name = f"fastserve-{os.uname().nodename}-{os.getpid()}"
        self._is_attached = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ray-serve", daemon=True)
        self._said = ""

    def begin(self, stop: asyncio.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), stop
        self._thread.start()

    async def finish(self) -> None:
        """End all of them, which finish what they have."""
        self._ending.set()
        wait = self.wanted.options.drain_seconds + GRACE_SECONDS if self._is_attached else 0.0
        await self._loop.run_in_executor(None, self._thread.join, wait + GRACE_SECONDS)

    def _take_signals(self) -> None:
        """Once more: Ray has set its own handler in place of ours, which tells stacks and may abort the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)

    # ---- the thread

    def _keep(self) -> None:
        options = self.wanted.options
        try:
            with ray_cluster.attached(self.place, options.replicas * _asked_cpus(options), ServingError):
                self._is_attached = True
                self._loop.call_soon_threadsafe(self._take_signals)
                self._serve()
        except (RayError, RayServeException) as error:
            self.error = ServingError(f"Ray cannot go on: {ray_cluster.first_line(error)}")
        except Exception as error:
            self.error = error
        self._loop.call_soon_threadsafe(self._stop.set)

    def _serve(self) -> None:
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # what matters is said in our own words
        was_there = _serve_is_there()
        serve.start(proxy_location="Disabled")
        target = serve.RunTarget(_application(self.wanted, self.place), name=self._name, route_prefix=None)
        try:
            handle = serve.run_many([target], wait_for_applications_running=False)[0]
            while not self._ending.wait(CHECK_SECONDS):
                self._look_where(handle)
                self._look_how()
        finally:
            self._end()
            if self.wanted.is_shared and not was_there and not serve.status().applications:
                _end_serve()

    def _look_where(self, handle: Any) -> None:
        """Have the router follow the servers. One that does not say where it is stays: the router sees how it is."""
        try:
            told = handle.broadcast("tell").results(timeout_s=ANSWER_SECONDS, return_exceptions=True)
        except DeploymentUnavailableError:
            told = []
        except TimeoutError:
            return
        addresses = [one for one in told if isinstance(one, str)]
        if len(addresses) < len(told):
            addresses += [replica.name for replica in self.router.replicas]
        self._loop.call_soon_threadsafe(self.router.follow, dict.fromkeys(addresses))

    def _look_how(self) -> None:
        """Say what keeps a server from starting; the error itself where none of them ever could."""
        application = serve.status().applications.get(self._name)
        if application is None:
            raise ServingError(f"somebody deleted the application {self._name} of Ray Serve, and its servers with it")
        message = "".join(deployment.message for deployment in application.deployments.values())
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise _error_in(message or application.message)
        if message and application.status != ApplicationStatus.RUNNING:
            self._warn(str(_error_in(message)))

    def _warn(self, text: str) -> None:
        if text != self._said:
            self._said = text
            log.warn(f"a server on Ray is not there: {text}")

    def _end(self) -> None:
        serve.delete(self._name, _blocking=False)
        end = time.monotonic() + self.wanted.options.drain_seconds + GRACE_SECONDS
        while self._name in serve.status().applications and time.monotonic() < end:
            time.sleep(0.05)


def serve_replicas(
    models: Sequence[Named], options: ServeOptions, source: str, keys: Sequence[Key], place: str | None
) -> int:
    """`options.replicas` servers on a Ray behind `options.port`, until a signal; the exit code.

    place: of a cluster, or `auto`; None for $RAY_ADDRESS or a Ray of our own.
    """
    where = ray_cluster.meant(place)
    is_shared = where != ray_cluster.OWN or ray.is_initialized()
    if is_shared and not (options.insecure or options.api_key_file):
        raise ConfigError(
            "the servers on a Ray cluster listen where other machines reach them, and there is no API key file: give "
            "--api-key-file FILE (one key a line), or --insecure where anyone may use them"
        )
    wanted = Wanted(tuple(models), options, source, tuple(keys), os.getcwd(), is_shared)
    listening = bind(options.host, options.port)
    try:
        names = ", ".join(model.name for model in models)
        on = f"the Ray at {where}" if is_shared else "a Ray of its own"
        log.say(
            f"loading {names} {options.replicas} times on {on}; {address(listening)} routes to them (Ctrl+C ends it)"
        )
        events = Events(level=options.log_level)
        router = Router([], Gate(keys, rate=options.requests_per_second, burst=options.burst), events)
        servers = OnRay(router, wanted, where)
        code = asyncio.run(run(router, listening, options, servers))
    finally:
        listening.close()
    if servers.error is not None:
        raise servers.error
    return code


def _application(wanted: Wanted, place: str) -> Any:
    """What Ray Serve is to run: how many, what each takes of a machine, how it is looked after."""
    options = wanted.options
    room = room_for(options, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    own = options.model_copy(update={"engine_threads": room.threads})
    variables = ray_cluster.variables(place)
    deployment = serve.deployment(Server).options(
        num_replicas=options.replicas,
        ray_actor_options={
            "num_cpus": room.cpus,
            "num_gpus": room.gpus,
            **({"runtime_env": {"env_vars": variables}} if variables else {}),
        },
        health_check_period_s=CHECK_SECONDS,
        health_check_timeout_s=10 * CHECK_SECONDS,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=options.drain_seconds + GRACE_SECONDS,
        max_constructor_retry_count=1,
    )
    return deployment.bind(replace(wanted, options=own))


@dataclass(frozen=True, slots=True)
class Room:
    """What each server takes of its machine, and the threads that each of its engines computes with."""

    cpus: int
    gpus: int
    threads: int


def room_for(options: ServeOptions, nodes: Sequence[Mapping[str, float]]) -> Room:
    """nodes: what each machine has, by Ray's names. A GPU for each server where there are so many."""
    cores = [int(node.get("CPU", 0)) for node in nodes]
    gpus = int(sum(node.get("GPU", 0) for node in nodes) >= options.replicas)
    if options.engine_threads == "auto":
        cpus = share(cores, options.replicas)
        threads = max(cpus // options.workers, 1)
    else:
        cpus, threads = _asked_cpus(options), options.engine_threads
    if sum(each // cpus for each in cores) < options.replicas:
        log.warn(
            f"Ray's machines have {', '.join(map(str, cores))} CPUs, too few for {options.replicas} servers of {cpus} "
            "each: it waits until there are more"
        )
    return Room(cpus, gpus, threads)


def _asked_cpus(options: ServeOptions) -> int:
    """CPUs that a server takes for sure."""
    return options.workers * (1 if options.engine_threads == "auto" else options.engine_threads)


def share(cores: Sequence[int], replicas: int) -> int:
    """The most CPUs that each of so many replicas can have on machines with so many cores; at least 1."""
    return max((n for n in range(1, max(cores, default=1) + 1) if sum(c // n for c in cores) >= replicas), default=1)


def _serve_is_there() -> bool:
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def _end_serve() -> None:
    """Leave the cluster as it was found. Ray tells of its own calls that this cuts off: of no use to anybody."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        serve.shutdown()


def _error_in(message: str) -> FastServeError:
    """The error of a server's start, out of the traceback in which Ray Serve tells it."""
    lines = [line for line in message.splitlines() if line.strip()]
    for line in reversed(lines):
        if found := re.match(r"fastserve\.errors\.(\w+): (.+)", line):
            kind: type[FastServeError] = getattr(errors, found[1])
            return kind(found[2])
    return ServingError(lines[-1].strip() if lines else "Ray Serve does not say why")
