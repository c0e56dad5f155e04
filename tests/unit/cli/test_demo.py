"""The end of an interrupted demo; a complete one runs in integration/embedded."""

from __future__ import annotations

from pathlib import Path

import pytest

from poiesis.cli import demo
from poiesis.cli.client import TesClient
from poiesis.cli.main import main
from tests.unit.cli.conftest import TesServer


def test_an_interrupted_demo_cancels_its_task_and_waits_for_its_end(
    server: TesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that stops does not stop running commands, and the demo's directory is removed."""
    states = [(200, {"id": "t", "state": s}) for s in ("RUNNING", "RUNNING", "RUNNING", "CANCELED")]
    server.serve({"POST /tasks": (200, {"id": "t"}), "GET /tasks/t": states, "POST /tasks/t:cancel": (200, {})})
    naps = iter([KeyboardInterrupt()])

    def sleep(seconds: float) -> None:
        for interruption in naps:
            raise interruption

    monkeypatch.setattr("time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        demo._run_task(TesClient(server.url, {}), tmp_path)
    asked = [f"{a.method} {a.path.partition('?')[0]}" for a in server.asked]
    assert asked.index("POST /ga4gh/tes/v1/tasks/t:cancel") == len(asked) - 3 and len(states) == 1


def test_a_demo_whose_task_does_not_end_gives_up(
    server: TesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running = (200, {"id": "t", "state": "RUNNING"})
    server.serve({"POST /tasks": (200, {"id": "t"}), "GET /tasks/t": running, "POST /tasks/t:cancel": (200, {})})
    monkeypatch.setattr(demo, "TIMEOUT_S", 0)
    monkeypatch.setattr(demo, "CANCEL_S", 0)
    assert demo._run_task(TesClient(server.url, {}), tmp_path) == 1
    assert "did not end" in capsys.readouterr().out


def test_a_demo_with_authentication_says_what_to_unset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own client has no credentials, and switching authentication off would open its service to other users of the machine."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("POIESIS_API__AUTH", "api_key")
    assert main(["demo"]) == 2
    assert "unset POIESIS_API__AUTH" in capsys.readouterr().err
