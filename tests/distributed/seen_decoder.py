"""A decoder that writes down which rows each step trained on, in $SEEN."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from fastserve.models.causal import Attention
from fastserve.models.decoder_sizes import Decoder15m


class SeenDecoder(Decoder15m):
    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.steps = 0

    def hidden(self, ids: Tensor, attention: Attention) -> Tensor:
        outputs = super().hidden(ids, attention)
        if self.training and outputs.requires_grad:
            starts = (attention.positions == 0).nonzero().flatten().tolist()
            rows = [ids[start:end].tolist() for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]
            outputs.register_hook(lambda _: self._stepped(rows))
        return outputs

    def _stepped(self, rows: list[list[int]]) -> None:
        """A backward pass has begun: unlike a forward pass, which may be a trial, it belongs to a step."""
        self.steps += 1
        with open(Path(os.environ["SEEN"]) / f"{os.environ.get('RANK', '0')}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.steps, "rows": rows}) + "\n")
