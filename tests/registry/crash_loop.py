"""Kills a process that publishes, promotes and deletes, again and again, and checks what is left each time.

usage: python crash_loop.py HOME SOURCE ROUNDS SEED. Run in a process of its own, since it forks.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from fastserve.errors import NotFoundError
from fastserve.registry import Registry

_CANNOT_GO_ON = 3


def work(registry: Registry, source: Path, random_numbers: random.Random) -> None:
    """Change the registry until killed."""
    while True:
        version = registry.publish(source, "m", parent="m" if registry.names() else None)
        registry.promote(version.reference, random_numbers.choice(["production", "candidate"]))
        try:
            registry.rollback("m", "candidate")
            registry.delete(f"m@{random_numbers.randint(1, version.number)}", force=True)
        except NotFoundError:  # nothing to roll back to, or deleted before
            continue


def killed_once(registry: Registry, source: Path, random_numbers: random.Random, longest_seconds: float) -> None:
    child = os.fork()
    if child == 0:
        try:
            work(registry, source, random_numbers)
        finally:
            os._exit(_CANNOT_GO_ON)
    time.sleep(random_numbers.uniform(0, longest_seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise SystemExit("the child ended by itself: one of its calls failed")


def check(registry: Registry) -> None:
    """Every visible version is whole, and every alias points at one."""
    for reference, faults in registry.verify().items():
        if faults:
            raise SystemExit(f"{reference}: {faults}")
    for model in registry.list():
        numbers = {version.number for version in model.versions}
        if not set(model.aliases.values()) <= numbers:
            raise SystemExit(f"aliases {model.aliases} point beside {numbers}")


def main() -> None:
    home, source, rounds, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    registry = Registry(home)
    start = time.monotonic()
    registry.promote(registry.publish(source, "m").reference)
    longest_seconds = 3 * (time.monotonic() - start)
    for number in range(rounds):
        killed_once(registry, source, random.Random(seed + number), longest_seconds)
        check(registry)
    print(registry.publish(source, "m").number)


if __name__ == "__main__":
    main()
