"""A network of one's own that writes down which rows each step trained on, in $SEEN."""

from __future__ import annotations

import json
import os
from pathlib import Path

from faulty import Faulty
from torch import Tensor


class Watched(Faulty):
    def stepped(self, ids: Tensor) -> None:
        super().stepped(ids)
        rank = os.environ.get("RANK", "0")
        rows = [[word for word in row if word] for row in ids.tolist()]
        with open(Path(os.environ["SEEN"]) / f"{rank}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.steps, "rows": rows}) + "\n")
