"""A network of one's own that writes down which rows each step trained on, in $SEEN."""

from __future__ import annotations

import json
import os
from pathlib import Path

from faulty import Faulty
from torch import Tensor


class Watched(Faulty):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        outputs = super().forward(ids, mask)
        if self.training:
            rank = os.environ.get("RANK", "0")
            rows = [[word for word in row if word] for row in ids.tolist()]
            with open(Path(os.environ["SEEN"]) / f"{rank}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"call": self.calls, "rows": rows}) + "\n")
        return outputs
