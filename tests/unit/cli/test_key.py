"""`poiesis key`, over the API and directly in the store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from poiesis.api.credentials import hash_secret
from poiesis.api.server import BackgroundServer
from poiesis.cli import main as cli
from poiesis.config import ApiSettings
from tests.unit.api.service import Site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    file = tmp_path / "users.json"
    file.write_text(json.dumps([{"name": "ada", "token_hash": hash_secret("ada-token", "bearer")}]))
    site = Site(api=ApiSettings(auth=("bearer", "api_key"), credentials_file=str(file), port=0))
    with BackgroundServer(site.app, site.api) as server:
        monkeypatch.setenv("POIESIS_URL", server.url)
        monkeypatch.setenv("POIESIS_TOKEN", "ada-token")
        yield site


def test_a_key_is_created_used_listed_and_revoked(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["key", "create", "nightly", "--scope", "read", "--days", "7"]) == 0
    printed = capsys.readouterr()
    secret, key_id = printed.out.strip(), printed.err.split()[1].rstrip(",")
    assert re.fullmatch(r"poiesis_[\w-]{43}", secret)
    assert secret not in printed.err

    monkeypatch.setenv("POIESIS_TOKEN", secret)
    assert cli.main(["task", "list"]) == 0
    assert cli.main(["key", "list"]) == 77
    assert "cannot manage API keys" in capsys.readouterr().err
    monkeypatch.setenv("POIESIS_TOKEN", "ada-token")
    assert cli.main(["key", "list"]) == 0
    listed = capsys.readouterr().out
    assert key_id in listed and "nightly" in listed and "LAST USED" in listed and secret not in listed
    assert cli.main(["key", "list", "-o", "name"]) == 0
    assert capsys.readouterr().out == f"{key_id}\n"
    assert cli.main(["key", "revoke", key_id]) == 0
    assert capsys.readouterr().out == f"{key_id} is revoked\n"
    assert cli.main(["key", "revoke", key_id]) == 1

    monkeypatch.setenv("POIESIS_TOKEN", secret)
    assert cli.main(["task", "list"]) == 77


def test_the_first_key_of_an_administrator_is_created_on_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POIESIS_MONGO_URI", raising=False)
    local = ["--local", "--dir", str(tmp_path)]
    scopes = [word for scope in ("read", "write", "admin") for word in ("--scope", scope)]
    assert cli.main(["key", "create", "first", "--user", "root", "--group", "staff", *scopes, *local, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["user"], made["groups"], made["scopes"]) == ("root", ["staff"], ["admin", "read", "write"])
    assert (tmp_path / "tasks.sqlite").stat().st_mode & 0o077 == 0
    assert made["key"].encode() not in (tmp_path / "tasks.sqlite").read_bytes()
    assert cli.main(["key", "list", *local]) == 0
    assert made["id"] in capsys.readouterr().out
    assert cli.main(["key", "revoke", made["id"], *local]) == 0
    assert capsys.readouterr().out == f"{made['id']} is revoked\n"
    assert cli.main(["key", "list", "--json", *local]) == 0
    assert json.loads(capsys.readouterr().out) == {"keys": []}


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["key", "create", "x", "--local", "--dir", str(tmp_path)]) == 2
    assert "--user" in capsys.readouterr().err
    assert cli.main(["key", "list", "--local", "--dir", str(tmp_path / "none")]) == 2
    assert "--dir" in capsys.readouterr().err
