"""Checks of the settings: every problem at once, and no secret in any text."""

from __future__ import annotations

from pathlib import Path

from poiesis.config import Settings, read_all
from poiesis.doctor.plan import checks_for
from poiesis.doctor.result import Status
from poiesis.doctor.settings import check_authentication, check_files, check_settings
from poiesis.doctor.site import HIDDEN, host_of, read_site

BROKEN = {
    "POIESIS_LOG_LEVL": "INFO",
    "POIESIS_API__PORT": "70000",
    "POIESIS_POLICY__GRACE": "soon",
    "POIESIS_KUBERNETES__NAMESPCE": "x",
    "POIESIS_FILER__S3": '{"main": {"colour": "red"}}',
    "POIESIS_MONGO_URI_FILE": "/nowhere/uri",
}


def test_every_problem_is_found_at_once() -> None:
    found = [f.what for f in check_settings(read_site(BROKEN))]
    assert len(found) == len(BROKEN)
    for words in (
        "unknown setting POIESIS_LOG_LEVL; did you mean POIESIS_LOG_LEVEL?",
        "invalid port 70000: must be between 0 and 65535",
        "POIESIS_POLICY__GRACE",
        "did you mean POIESIS_KUBERNETES__NAMESPACE?",
        "unknown fields: colour",
        "cannot read POIESIS_MONGO_URI_FILE",
    ):
        assert any(words in what for what in found), (words, found)


def test_what_is_valid_is_read_although_something_else_is_not() -> None:
    settings, problems = read_all(Settings, {"POIESIS_API__PORT": "x", "POIESIS_API__WORKERS": "3"})
    assert settings.api.workers == 3 and settings.api.port == 8000
    assert [name for name, _ in problems] == ["POIESIS_API__PORT"]
    settings, problems = read_all(Settings, {"POIESIS_API__PORT": "-1", "POIESIS_RETENTION": "1d"})
    assert settings.retention is not None and [name for name, _ in problems] == ["POIESIS_API__"]


def test_checks_of_what_has_invalid_settings_are_skipped() -> None:
    site = read_site(BROKEN)
    assert site.mode == "kubernetes"
    store = next(c for c in checks_for(site) if c.name == "store")
    assert [f.status for f in store.run()] == [Status.SKIPPED]


def test_valid_settings_are_fine() -> None:
    assert [f.status for f in check_settings(read_site({"POIESIS_LOG_LEVEL": "DEBUG"}))] == [Status.OK]


def test_a_role_gets_only_its_own_checks() -> None:
    names = {c.name for c in checks_for(read_site({}, role="notifier", trial=False))}
    assert "redis" not in names and "store" in names
    assert "authentication" in {c.name for c in checks_for(read_site({}, role="api", trial=False))}


def test_secrets_are_removed_from_every_text() -> None:
    site = read_site(
        {
            "POIESIS_MONGO_URI": "mongodb://ada:s3cr%40t@db:27017/x",
            "POIESIS_REDIS_URI": "redis://:hunter22@r:6379/0",
            "POIESIS_LOGS__ACCESS_KEY": "test",
            "POIESIS_LOGS__SECRET_KEY": "wJalrXUtnFEMI",
            "AWS_SECRET_ACCESS_KEY": "anotherKey",
        }
    )
    text = site.clean("a s3cr%40t b s3cr@t c hunter22 d wJalrXUtnFEMI e anotherKey f test g redis://u:p@h/0")
    assert text == f"a {HIDDEN} b {HIDDEN} c {HIDDEN} d {HIDDEN} e {HIDDEN} f test g redis://h/0"
    assert "hunter22" not in repr(site)


def test_the_place_of_a_server_has_no_credentials() -> None:
    assert host_of("mongodb://u:p%40x@a:1,b:2/db?x=y") == ("a", 1)
    assert host_of("mongodb+srv://u:p@cluster.example.org/db") == ("cluster.example.org", None)
    assert host_of("redis://:p@[::1]:6379/0") == ("::1", 6379)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "credentials.json"
    broken.write_text('[{"name": "ada", "password": "hunter22"}]')
    environ = {"POIESIS_API__CREDENTIALS_FILE": str(broken), "POIESIS_WEBHOOKS__CA_FILE": str(tmp_path / "no.crt")}
    first, second = check_files(read_site(environ))  # and not that the settings name none
    assert first.status is Status.ERROR and str(broken) in first.what and "hunter22" not in first.what
    assert second.status is Status.ERROR and "no.crt: No such file" in second.what


def test_an_open_api_is_a_warning_and_one_without_any_setting_an_error() -> None:
    open_api = read_site({"POIESIS_API__ALLOW_ANONYMOUS": "true", "POIESIS_API__HOST": "0.0.0.0"}, mode="kubernetes")
    assert [f.status for f in check_settings(open_api)] == [Status.OK, Status.WARNING]
    assert [f.status for f in check_authentication(open_api)] == [Status.OK]
    closed = read_site({"POIESIS_API__HOST": "0.0.0.0"}, mode="kubernetes")
    assert [f.status for f in check_authentication(closed)] == [Status.ERROR]
    bearer = read_site({"POIESIS_API__AUTH": "bearer"}, mode="kubernetes")
    assert "POIESIS_API__CREDENTIALS_FILE" in next(check_authentication(bearer)).what
