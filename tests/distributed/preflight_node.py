"""One node of a check, with a clock that goes wrong: run by test_preflight.py.

python preflight_node.py HOST:PORT NODES SECONDS_AHEAD [CONFIG]: prints the outcome as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from fastserve import log
from fastserve.config import load_config
from fastserve.distributed import preflight
from fastserve.distributed.network import Endpoint


def main(endpoint: str, nodes: str, ahead: str, config: Path | None = None) -> None:
    log.configure()
    settings = None if config is None else load_config(config)
    request = preflight.Request(Endpoint.parse(endpoint), (int(nodes), int(nodes)), settings, 120.0)
    outcome = preflight.check(request, clock=lambda: time.time() + float(ahead))
    print(json.dumps(outcome.to_json()))


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(Path, sys.argv[4:]))
