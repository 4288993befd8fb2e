"""What a person may say about an export."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fastserve.compression.check import Limits
from fastserve.config import Columns, Section


class ExportOptions(Section):
    """What to make of a model, and how it is checked."""

    runtime: Literal["onnx", "openvino"]
    int8: bool = Field(False, description="8-bit matrices: smaller and often faster, not quite the same answers")
    data: str | None = Field(None, description="labelled texts that the model has not seen, to check it with")
    columns: Columns = Columns()
    max_drop: Annotated[float, Field(ge=0, le=100)] = Field(
        0.5, description="points of accuracy that int8 may lose and still be used"
    )
    min_agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        0.97, description="share of texts that int8 must answer as before"
    )

    @property
    def limits(self) -> Limits:
        return Limits(self.max_drop / 100, self.min_agreement)

    @property
    def form(self) -> str:
        """For messages."""
        return f"{self.runtime} {'int8' if self.int8 else 'fp32'}"
