"""Where machines meet, decided by several of them in one process: who takes over, and who may not."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastserve.distributed import meeting, strangers
from fastserve.distributed.meeting import FILE, NOWHERE, Meeting
from fastserve.distributed.network import Endpoint
from fastserve.distributed.strangers import Strangers
from fastserve.errors import ConfigError, StorageError, TrainingError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "BEAT_SECONDS": 0.05,
        "ALIVE_SECONDS": 0.5,
        "FENCE_SECONDS": 0.0,
        "MOVED_SECONDS": 0.0,
    }.items():
        monkeypatch.setattr(meeting, name, seconds)
    monkeypatch.setattr(strangers, "SECONDS", 1.0)


@pytest.fixture
def listening() -> Iterator[Endpoint]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Endpoint("127.0.0.1", server.getsockname()[1])


SILENT = Endpoint("127.0.0.1", 9)
ELSEWHERE = Endpoint("192.0.2.1", 9)
"""An address of documentation, which no machine has."""


def machine(folder: Path, name: str, reached: int, beats: int = 1) -> None:
    (folder / "machines").mkdir(parents=True, exist_ok=True)
    (folder / "machines" / f"{name}.json").write_text(json.dumps({"beats": beats, "reached": reached}), "utf-8")


def say(folder: Path, endpoint: Endpoint, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps({"endpoint": str(endpoint), "number": number, "host": "a"}), "utf-8")


def test_the_first_that_has_a_place_keeps_the_meeting(tmp_path: Path) -> None:
    with Meeting(tmp_path, [ELSEWHERE, SILENT]) as first:
        place = first.place(5)
    assert (place.endpoint, place.number, place.hosts) == (SILENT, 1, True)


def test_others_go_where_it_is(tmp_path: Path, listening: Endpoint) -> None:
    say(tmp_path, listening, 4)
    with Meeting(tmp_path, [SILENT, listening]) as other:
        place = other.place(5)
        assert (place.endpoint, place.number, place.hosts) == (listening, 4, False)
        assert not place.moved()
        say(tmp_path, SILENT, 5)
        assert place.moved()


def test_a_place_that_nobody_reaches_is_left(tmp_path: Path) -> None:
    say(tmp_path, ELSEWHERE, 1)
    machine(tmp_path, "dead", reached=1)
    with Meeting(tmp_path, [ELSEWHERE, SILENT]) as survivor:
        place = survivor.place(20)
    assert (place.endpoint, place.number, place.hosts) == (SILENT, 2, True)


def test_one_that_is_cut_off_does_not_draw_the_others_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two living machines reach the place, this one does not."""
    say(tmp_path, ELSEWHERE, 1)
    with Meeting(tmp_path, [ELSEWHERE, SILENT]) as cut_off:
        living = [{"reached": NOWHERE}, {"reached": 1}, {"reached": 1}]
        monkeypatch.setattr(cut_off, "_living", lambda: living)
        with pytest.raises(TrainingError, match="answered within"):
            cut_off.place(2)
        living[2] = {"reached": NOWHERE}
        assert cut_off.place(5).number == 2


def test_what_earlier_machines_agreed_on_is_forgotten(tmp_path: Path) -> None:
    say(tmp_path, SILENT, 3)
    machine(tmp_path, "a", reached=3)
    meeting.forget(tmp_path)
    assert not (tmp_path / FILE).exists()
    assert not list((tmp_path / "machines").iterdir())


def test_a_folder_that_is_not_shared_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_is_here", lambda endpoint: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = Endpoint("127.0.0.1", server.getsockname()[1])
        with (
            Meeting(tmp_path, [endpoint]) as stranger,
            pytest.raises(StorageError, match=r"\$FASTSERVE_HOME is not shared"),
        ):
            stranger.place(5)


def test_a_stranger_is_heard_of_where_they_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    endpoint = Endpoint("127.0.0.1", store.port)
    told = Strangers(endpoint)
    assert told.heard() is None
    monkeypatch.setattr(meeting, "_is_here", lambda endpoint: False)
    with Meeting(tmp_path, [endpoint]) as stranger, pytest.raises(StorageError, match="is not shared"):
        stranger.place(5)
    assert told.heard() == socket.gethostname()


def test_a_place_that_is_kept_elsewhere_is_not_kept_here_as_well(tmp_path: Path, listening: Endpoint) -> None:
    """This machine has a place too, and a home of its own."""
    with Meeting(tmp_path, [listening, SILENT]) as stranger, pytest.raises(StorageError, match="is not shared"):
        meeting_here(stranger, SILENT)


def meeting_here(machine: Meeting, endpoint: Endpoint) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meeting, "_is_here", lambda asked: asked == endpoint)
        machine.place(5)


def test_the_name_of_a_machine_that_is_gone_may_be_unknown(tmp_path: Path, listening: Endpoint) -> None:
    gone = Endpoint("gone.invalid", 29400)
    with Meeting(tmp_path, [gone, SILENT]) as survivor:
        assert survivor.place(5).endpoint == SILENT
    with Meeting(tmp_path / "other", [gone]) as alone, pytest.raises(ConfigError, match="unknown here"):
        alone.place(5)
