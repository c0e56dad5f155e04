"""The command line: invalid arguments, exit codes, `info`, and what `up` refuses before it starts anything."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from poiesis.cli import main as cli
from poiesis.cli.parser import ROLES, make_parser
from poiesis.cli.up import Embedded, _lock, embedded_settings, example
from poiesis.config import ApiSettings
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.states import Role
from tests.unit.cli.conftest import Done, TesServer

Poiesis = Callable[..., Done]


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            [],
            ["task"],
            ["fly"],
            ["task", "create"],
            ["task", "get", "x", "--view", "SOME"],
            ["up", "--runtime", "magic"],
        ),
        *(["up", "--port", p] for p in ("70000", "-1", "http", "", "8 0")),
    ],
)
def test_an_invalid_command_line_exits_with_2_and_usage(poiesis: Poiesis, arguments: list[str]) -> None:
    done = poiesis(*arguments)
    assert done.code == 2 and done.out == "" and done.err.startswith("usage: poiesis")


@pytest.mark.parametrize(
    ("arguments", "command", "hint"),
    [
        (["profile", "list", "--nope"], "poiesis profile list", ""),
        (["whoami", "-o", "json"], "poiesis whoami", ""),
        (["run", "alpine", "ls", "-l"], "poiesis run", "the command comes after --"),
    ],
)
def test_an_unknown_option_is_reported_by_its_command(
    poiesis: Poiesis, arguments: list[str], command: str, hint: str
) -> None:
    done = poiesis(*arguments)
    assert done.code == 2 and done.err.startswith(f"usage: {command} ")
    assert f"{command}: error: unrecognized arguments: " in done.err and hint in done.err


def test_a_wrong_command_line_shows_a_short_usage(poiesis: Poiesis) -> None:
    assert poiesis("run", "--wrong", COLUMNS="80").err.splitlines() == [
        "usage: poiesis run [OPTION ...] IMAGE [COMMAND ...]",
        "poiesis run: error: the following arguments are required: IMAGE, COMMAND",
        "Try `poiesis run --help`.",
    ]
    up, whoami = (poiesis(command, "--wrong", COLUMNS="80").err.splitlines()[0] for command in ("up", "whoami"))
    assert up == "usage: poiesis up [OPTION ...]"
    assert whoami == "usage: poiesis whoami [-h] [--url URL] [--profile PROFILE] [--json]"


def test_every_role_is_a_command() -> None:
    assert set(ROLES) == {"api", "monitor", "notifier", "flower"} | {role.value for role in Role}
    for role in ROLES:
        assert make_parser().parse_args([role]).command == role


def test_an_interruption_exits_with_130(poiesis: Poiesis, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert poiesis("task", "list").code == 130


def test_an_interruption_while_modules_are_imported_exits_with_130() -> None:
    setup = ConfigParser()
    setup.read(Path(__file__).parents[3] / "setup.cfg")
    module, _, function = setup["options.entry_points"]["console_scripts"].rpartition("=")[2].strip().partition(":")
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'poiesis.cli.main': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        f"from {module} import {function}\n"
        f"sys.exit({function}())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("role", ["api", "torc", "monitor"])
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"POIESIS_LOG_LEVEL": "LOUD"}, "LOUD"),
        ({"POIESIS_LOG_FORMAT": "xml"}, "xml"),
        ({"POIESIS_LOG_LEVL": "INFO"}, "did you mean POIESIS_LOG_LEVEL"),
        ({"POIESIS_KUBERNETES__NAMESPCE": "x"}, "did you mean POIESIS_KUBERNETES__NAMESPACE"),
        ({"POIESIS_API__PORT": "70000"}, "70000"),
        ({"POIESIS_ROLE_THREADS": "0"}, "POIESIS_ROLE_THREADS"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_role_with_an_invalid_setting_exits_with_2(
    poiesis: Poiesis, role: str, variables: dict[str, str], words: str
) -> None:
    done = poiesis(role, **variables)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        ((), {"POIESIS_POLICY__GRACE": "soon"}, ("POIESIS_POLICY__GRACE", "90s")),
        ((), {"POIESIS_API__WORKERS": "two"}, ("POIESIS_API__WORKERS",)),
        ((), {"POIESIS_FILER__PARALLEL": "0"}, ("parallel",)),
        ((), {"POIESIS_FILER__S3": "[]"}, ("POIESIS_FILER__S3", "JSON object")),
        ((), {"POIESIS_MONGO_URI_FILE": "/nonexistent"}, ("POIESIS_MONGO_URI_FILE",)),
        ((), {"POIESIS_MAX_PARALLEL": "0"}, ("POIESIS_MAX_PARALLEL", "at least 1")),
        (("--allow-dir", "/nonexistent"), {}, ("--allow-dir", "/nonexistent")),
        (("--dir", "/proc/poiesis"), {}, ("/proc/poiesis", "--dir")),
        (
            (),
            {"POIESIS_VISIBLE_DIRECTORIES": "/usr,/nonexistent"},
            ("POIESIS_VISIBLE_DIRECTORIES", "no such directory: /nonexistent"),
        ),
    ],
    ids=lambda v: next(iter(v), "") if isinstance(v, dict) else "",
)
def test_up_with_an_invalid_setting_exits_with_2(
    poiesis: Poiesis, tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, str], words: tuple[str, ...]
) -> None:
    done = poiesis("up", "--port", "0", "--dir", str(tmp_path), *arguments, **variables)
    assert done.code == 2 and done.out == "" and done.err.startswith("poiesis: ") and done.err.count("\n") == 1
    assert all(word in done.err for word in words)


def test_a_directory_is_used_by_one_service(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    with _lock(directory):
        assert directory.stat().st_mode & 0o077 == 0
        with pytest.raises(ConfigurationError, match="in use by another"):
            _lock(directory)
    _lock(directory).close()


def test_the_command_line_takes_precedence_over_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POIESIS_DIRECTORY", "/elsewhere")
    monkeypatch.setenv("POIESIS_RUNTIME", "docker")
    monkeypatch.setenv("POIESIS_FILER__FILE_ROOTS", "/srv")
    monkeypatch.setenv("POIESIS_POLICY__LAYOUT", "staged")
    own = tmp_path / "own"
    given = make_parser().parse_args(["up", "--dir", str(own), "--runtime", "process", "--allow-dir", str(tmp_path)])
    settings, filer = embedded_settings(given, port=0)
    assert (settings.directory, settings.runtime) == (str(own), "process")
    assert filer.file_roots == ("/srv", str(tmp_path)) and filer.file_hidden == (str(own),)
    assert settings.policy.layout == "single" and not settings.policy.retry_started
    given = make_parser().parse_args(["up"])
    settings, _ = embedded_settings(given, port=given.port)
    assert (settings.directory, settings.runtime) == ("/elsewhere", "docker")
    assert (settings.api.host, settings.api.port, settings.log_level) == ("127.0.0.1", 8000, "ERROR")
    monkeypatch.setenv("POIESIS_API__HOST", "::1")
    monkeypatch.setenv("POIESIS_API__PORT", "9000")
    monkeypatch.setenv("POIESIS_LOG_LEVEL", "WARNING")
    settings, _ = embedded_settings(given, port=given.port)
    assert (settings.api.host, settings.api.port, settings.log_level) == ("::1", 9000, "WARNING")
    given = make_parser().parse_args(["up", "--host", "127.0.0.2", "--port", "0", "--verbose"])
    settings, _ = embedded_settings(given, port=given.port)
    assert (settings.api.host, settings.api.port, settings.log_level) == ("127.0.0.2", 0, "INFO")


def test_whole_logs_are_kept_beside_the_database_unless_a_store_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = make_parser().parse_args(["up", "--dir", str(tmp_path / "a b%20")])
    settings, _ = embedded_settings(given, port=0)
    assert settings.logs.url is not None
    assert unquote(urlsplit(settings.logs.url).path) == str(tmp_path / "a b%20" / "logs")
    assert settings.logs.max_bytes == 100_000_000
    for size in (5000, 2 * 10**9):
        monkeypatch.setenv("POIESIS_LOGS__MAX_BYTES", str(size))
        assert embedded_settings(given, port=0)[0].logs.max_bytes == size
    (tmp_path / "url").write_text("file:///srv/named\n")
    with monkeypatch.context() as named:
        named.setenv("POIESIS_LOGS__URL_FILE", str(tmp_path / "url"))
        assert embedded_settings(given, port=0)[0].logs.url == "file:///srv/named"
    for value, url in (("file:///srv/logs", "file:///srv/logs"), ("", None)):
        monkeypatch.setenv("POIESIS_LOGS__URL", value)
        assert embedded_settings(given, port=0)[0].logs.url == url


def test_an_address_for_metrics_in_use_is_reported_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("POIESIS_METRICS_LISTEN", address)
        given = make_parser().parse_args(["up", "--dir", str(tmp_path / "own"), "--runtime", "process"])
        settings, filer = embedded_settings(given, port=0)
        with pytest.raises(ConfigurationError, match=address):
            Embedded(settings, filer)
    _lock(tmp_path / "own").close()  # the directory is free again


def test_allowed_directories_are_not_inside_the_services_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for directory in (tmp_path, tmp_path / "data"):
        given = make_parser().parse_args(["up", "--dir", str(directory), "--allow-dir", str(tmp_path / "data")])
        with pytest.raises(ConfigurationError, match="inside the service's directory"):
            embedded_settings(given, port=0)


def test_info_shows_changed_settings_and_no_secret(poiesis: Poiesis, server: TesServer) -> None:
    info = {
        "name": "N",
        "version": "1",
        "type": {"group": "g", "artifact": "tes", "version": "1.1.0"},
        "storage": ["s3://"],
    }
    server.serve({"GET /service-info": (200, info)})
    secret = {"POIESIS_MONGO_URI": "mongodb://u:secret@h", "POIESIS_REDIS_URI": "redis://:secret@h"}
    done = poiesis("info", "--url", server.url, POIESIS_POLICY__MAX_ATTEMPTS="5", **secret)
    assert done.code == 0 and "g:tes:1.1.0" in done.out and "POIESIS_POLICY__MAX_ATTEMPTS=5" in done.out
    assert "secret" not in done.out + done.err
    done = poiesis("info", "--json", "--url", server.url, **secret)
    printed = json.loads(done.out)
    assert printed["service"] == info and printed["settings"]["POIESIS_POLICY__MAX_ATTEMPTS"] == 3
    assert "secret" not in done.out


def test_info_shows_the_settings_even_without_a_server(poiesis: Poiesis) -> None:
    done = poiesis("info", "--url", "http://ada:secret@127.0.0.1:1", POIESIS_ROLE_THREADS="9")
    assert done.code == 1 and "POIESIS_ROLE_THREADS=9" in done.out and "no response from" in done.err
    assert "secret" not in done.out + done.err


@pytest.mark.parametrize("service", [{}, {"type": ["tes"], "storage": "s3://", "name": None, "description": None}])
def test_info_leaves_out_what_another_server_does_not_say(
    poiesis: Poiesis, server: TesServer, service: dict[str, object]
) -> None:
    server.serve({"GET /service-info": (200, service)})
    done = poiesis("info", "--url", server.url)
    assert done.code == 0 and done.out.startswith(f"a TES server at {server.url}\nsettings ") and "None" not in done.out


def test_a_secret_is_hashed_and_an_empty_one_refused(poiesis: Poiesis) -> None:
    for kind in ("basic", "bearer", "api_key"):
        done = poiesis("hash-secret", kind, stdin="secret\n")
        assert done.code == 0 and len(done.out) > 40 and "secret" not in done.out
        assert poiesis("hash-secret", kind, stdin="\n").code == 2


def test_a_health_port_in_use_is_reported_in_a_sentence(poiesis: Poiesis, tmp_path: Path) -> None:
    from poiesis.roles.health import HealthServer

    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigurationError, match="cannot listen on"),
    ):
        HealthServer(f"127.0.0.1:{taken.getsockname()[1]}", lambda: None)
    for address in ("nonsense", "127.0.0.1:99999", "127.0.0.1:"):
        with pytest.raises(ConfigurationError, match="HOST:PORT"):
            HealthServer(address, lambda: None)


@pytest.mark.parametrize(("mode", "owner"), [(0o777, 0), (0o700, 12345)])
def test_a_directory_that_another_user_can_write_is_refused(tmp_path: Path, mode: int, owner: int) -> None:
    """Its database could hold tasks of theirs, which the service would run."""
    directory = tmp_path / "planted"
    directory.mkdir()
    directory.chmod(mode)
    if owner and os.geteuid() != 0:
        pytest.skip("needs root")
    if owner:
        os.chown(directory, owner, owner)

    with pytest.raises(ConfigurationError, match="another user"):
        _lock(directory)


def test_up_with_a_provider_begins_with_a_login() -> None:
    commands = example("http://127.0.0.1:8000", ApiSettings(auth=("oidc", "basic"))).splitlines()
    assert commands[0].strip() == "poiesis login --url http://127.0.0.1:8000" and "curl" not in "".join(commands)
    assert "login" not in example("http://127.0.0.1:8000", ApiSettings())
