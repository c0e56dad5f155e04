"""Profiles: the file, which server a command means, and that credentials go to their server only."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from poiesis.cli.profiles import Profile, Profiles, find_server
from poiesis.domain.errors import ConfigurationError
from tests.unit.cli.conftest import Done, TesServer

Poiesis = Callable[..., Done]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def test_a_url_without_a_scheme_is_refused(poiesis: Poiesis, home: Path) -> None:
    done = poiesis("profile", "add", "lab", "ada:s3cret@tes.example.org:8000")
    assert done.code == 2 and "missing scheme" in done.err and "use https://tes.example.org:8000" in done.err
    assert "s3cret" not in done.err and "lab" not in poiesis("profile", "list").out


def test_profiles_are_added_used_listed_and_removed(poiesis: Poiesis, home: Path) -> None:
    assert poiesis("profile", "list") == Done(0, "", "poiesis: no profiles\n")
    assert poiesis("profile", "add", "lab", "https://ada:s3cret@tes.example.org/ga4gh/tes/v1").code == 0
    assert poiesis("profile", "add", "own", "http://127.0.0.1:9", "--token-stdin", stdin="t0ken\n").code == 0
    assert poiesis("profile", "use", "own").code == 0

    shown = poiesis("profile", "list").out
    as_json = poiesis("profile", "list", "--json").out

    assert [line.split() for line in shown.splitlines()] == [
        ["NAME", "CREDENTIALS", "URL"],
        ["lab", "user", "and", "password", "https://tes.example.org/ga4gh/tes/v1"],
        ["*", "own", "token", "http://127.0.0.1:9"],
    ]
    assert poiesis("profile", "list", "-o", "name").out == "lab\nown\n"
    assert json.loads(as_json)["profiles"][1]["in_use"] is True
    assert "s3cret" not in shown + as_json and "t0ken" not in shown + as_json
    path = home / "poiesis" / "profiles.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert poiesis("profile", "remove", "own", "lab").code == 0
    assert json.loads(path.read_text()) == {"profiles": {}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("use", "none"), "no such profile"),
        (("remove", "none"), "no such profile"),
        (("add", "../x", "http://h"), "invalid profile name"),
        (("add", "x", "ftp://h"), "invalid server URL"),
        (("add", "x", "http://h", "--token-stdin"), "empty token"),
    ],
)
def test_an_invalid_profile_is_a_usage_error(poiesis: Poiesis, arguments: tuple[str, ...], words: str) -> None:
    done = poiesis("profile", *arguments)
    assert done.code == 2 and words in done.err


@pytest.mark.parametrize("content", ["{", "[]", '{"profiles": {"x": {}}}', '{"profiles": {"x": {"url": 1}}}'])
def test_a_damaged_file_is_named(poiesis: Poiesis, home: Path, content: str) -> None:
    (home / "poiesis").mkdir(mode=0o700)
    path = home / "poiesis" / "profiles.json"
    path.write_text(content)
    path.chmod(0o600)
    done = poiesis("profile", "list")
    assert done.code == 2 and str(path) in done.err and "damaged" in done.err


def test_a_file_that_others_can_read_is_refused(poiesis: Poiesis, home: Path) -> None:
    poiesis("profile", "add", "lab", "http://127.0.0.1:9")
    (home / "poiesis" / "profiles.json").chmod(0o644)
    done = poiesis("task", "list", "--profile", "lab")
    assert done.code == 2 and "chmod 600" in done.err


@pytest.mark.parametrize(
    ("url", "profile", "environ", "expected"),
    [
        (None, None, {}, ("http://used", "profile used")),
        (None, None, {"POIESIS_PROFILE": "lab"}, ("http://lab", "profile lab")),
        (None, None, {"POIESIS_PROFILE": "lab", "TES_URL": "http://e"}, ("http://e", "TES_URL")),
        (None, None, {"POIESIS_URL": "http://p", "TES_URL": "http://e"}, ("http://p", "POIESIS_URL")),
        (None, "lab", {"POIESIS_URL": "http://p"}, ("http://lab", "--profile lab")),
        ("http://u", None, {"POIESIS_PROFILE": "lab"}, ("http://u", "--url")),
    ],
)
def test_the_server_is_chosen_in_a_fixed_order(
    url: str | None, profile: str | None, environ: dict[str, str], expected: tuple[str, str]
) -> None:
    profiles = Profiles()
    profiles.add("used", Profile("http://used"))
    profiles.add("lab", Profile("http://lab"))
    found = find_server(url, profile, {**os.environ, **environ})
    assert (found.url, found.source) == expected


def test_url_and_profile_exclude_each_other(home: Path) -> None:
    assert find_server(None, None, {}).url == "http://127.0.0.1:8000"
    with pytest.raises(ConfigurationError, match="exclude"):
        find_server("http://h", "lab", {})


def test_credentials_of_a_profile_go_to_its_server_only(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"GET /tasks": (200, {"tasks": []})})
    poiesis("profile", "add", "lab", server.url, "--token-stdin", stdin="of-lab")
    assert poiesis("task", "list", POIESIS_TOKEN="of-shell").code == 0
    assert {asked.headers.get("Authorization") for asked in server.asked} == {"Bearer of-lab"}
    server.asked.clear()
    assert poiesis("task", "list", "--url", server.url).code == 0
    assert {asked.headers.get("Authorization") for asked in server.asked} == {None}
    assert "of-lab" not in repr(Profile("http://a:b@h", "of-lab")) + repr(find_server(None, "lab"))
