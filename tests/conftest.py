"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported; spinning threads starve each other


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside the repository; their licenses do not allow copies in it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets in {folder}, which are not part of the repository")
    return folder


@pytest.fixture(autouse=True)
def fastserve_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models and runs of a test stay in its own folder."""
    folder = tmp_path / "home"
    monkeypatch.setenv("FASTSERVE_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder
