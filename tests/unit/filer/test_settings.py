"""The settings that TIF and TOF get in a file, possibly written by another version."""

import json
from datetime import timedelta

import pytest

from poiesis.domain.errors import ConfigurationError
from poiesis.filer.settings import FilerSettings, OtherVersion

SETTINGS = FilerSettings(
    file_roots=("/data",),
    stall_timeout=timedelta(seconds=7),
    s3={"main": {"url": "https://s3.example.org"}},
    max_file_bytes=5,
)


def test_settings_arrive_as_they_were_written():
    assert FilerSettings.from_json(SETTINGS.to_json()) == SETTINGS
    assert FilerSettings.from_json(FilerSettings().to_json()) == FilerSettings()


def test_defaults_are_not_written_so_that_an_older_filer_understands_the_rest():
    assert FilerSettings().to_json() == "{}"
    assert json.loads(SETTINGS.to_json()).keys() == {"file_roots", "stall_timeout", "s3", "max_file_bytes"}


def test_a_field_of_a_newer_version_is_an_error_that_another_attempt_may_solve():
    with pytest.raises(OtherVersion, match="unknown fields, of another version: brand_new") as caught:
        FilerSettings.from_json('{"brand_new": 1}')
    assert caught.value.retryable


@pytest.mark.parametrize("text", ["", "[]", '{"parallel": "many"}', '{"parallel": 0}'])
def test_other_faults_are_final(text: str):
    with pytest.raises(ConfigurationError) as caught:
        FilerSettings.from_json(text)
    assert not caught.value.retryable
