"""Settings from variables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poiesis.config import MIN_RETENTION, PREFIX, ApiSettings, Settings, read
from poiesis.domain.errors import ConfigurationError
from poiesis.ports.idempotency import KEPT


@dataclass(frozen=True)
class Inner:
    number: int = 1
    deep: ApiSettings = field(default_factory=ApiSettings)


@dataclass(frozen=True)
class Everything:
    text: str = "x"
    number: int = 1
    ratio: float | None = 0.5
    flag: bool = False
    time: timedelta = timedelta(seconds=1)
    optional_time: timedelta | None = None
    words: tuple[str, ...] = ()
    numbers: frozenset[int] = frozenset()
    table: Mapping[str, str] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    secret: str = field(default="", repr=False)


def read_one(**values: str) -> Everything:
    return read(Everything, {PREFIX + name: value for name, value in values.items()})


def test_nothing_set_is_the_default():
    assert read(Settings, {}) == Settings()
    assert read(Settings, {"PATH": "/bin"}) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("TEXT", " literally ", " literally "),
        ("NUMBER", "7", 7),
        ("RATIO", "0.25", 0.25),
        ("RATIO", "none", None),
        ("RATIO", "", None),
        ("FLAG", "TRUE", True),
        ("FLAG", "no", False),
        ("TIME", "15m", timedelta(minutes=15)),
        ("TIME", "0", timedelta(0)),
        ("OPTIONAL_TIME", "1d", timedelta(days=1)),
        ("OPTIONAL_TIME", "none", None),
        ("WORDS", "a, b,,c", ("a", "b", "c")),
        ("WORDS", '["a,b", "c"]', ("a,b", "c")),
        ("WORDS", "", ()),
        ("NUMBERS", "1,2", frozenset({1, 2})),
        ("NUMBERS", "[1, 2]", frozenset({1, 2})),
        ("TABLE", '{"a": "b"}', {"a": "b"}),
    ],
)
def test_text_is_converted_to_the_type_of_the_field(name, text, value):
    assert getattr(read_one(**{name: text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NUMBER", "many"), ("NUMBER", "1.5"), ("RATIO", "half"), ("FLAG", "maybe"), ("TIME", "soon"),
        ("TIME", "9" * 17 + "d"), ("NUMBERS", "1,x"), ("WORDS", "[1"), ("TABLE", "[]"), ("TABLE", "x"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_reported_with_its_name(name, text):
    with pytest.raises(ConfigurationError, match=PREFIX + name):
        read_one(**{name: text})


@given(st.sampled_from(["NUMBER", "RATIO", "FLAG", "TIME", "OPTIONAL_TIME", "WORDS", "NUMBERS", "TABLE"]), st.text())
def test_any_text_is_read_or_refused_by_name(name, text):
    try:
        read_one(**{name: text})
    except ConfigurationError as error:
        assert PREFIX + name in str(error)


@pytest.mark.parametrize("name", ["POIESIS_POLICY__STAGE_IN_DEADLINE", "POIESIS_POLICY__STAGE_OUT_DEADLINE"])
def test_staging_has_a_deadline(name):
    with pytest.raises(ConfigurationError, match=f"{name}: must be longer than 0"):
        read(Settings, {name: "0"})


def test_a_task_stays_as_long_as_its_idempotency_key_finds_it():
    assert KEPT <= MIN_RETENTION
    assert read(Settings, {"POIESIS_RETENTION": "1d"}).retention == MIN_RETENTION
    for text in ("23h", "0"):
        with pytest.raises(ConfigurationError, match="invalid POIESIS_RETENTION: must be at least 1d"):
            read(Settings, {"POIESIS_RETENTION": text})


def test_two_underscores_separate_levels():
    settings = read(Everything, {"POIESIS_INNER__NUMBER": "2", "POIESIS_INNER__DEEP__PORT": "3"})
    assert (settings.number, settings.inner.number, settings.inner.deep.port) == (1, 2, 3)
    assert read(Settings, {"POIESIS_POLICY__LIMITS__MAX_INPUTS": "5"}).policy.limits.max_inputs == 5


def test_an_unknown_name_is_refused_with_the_closest():
    with pytest.raises(
        ConfigurationError,
        match=r"MAX_ATTEMPT; did you mean POIESIS_POLICY__MAX_ATTEMPTS\?",
    ):
        read(Settings, {"POIESIS_POLICY__MAX_ATTEMPT": "5"})
    with pytest.raises(ConfigurationError, match=r"^unknown setting POIESIS_ZZZZZZZZZZZZ$"):
        read(Settings, {"POIESIS_ZZZZZZZZZZZZ": "5"})


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("POIESIS_FOO", None),  # as near to POIESIS_MONGO_URI as the prefix makes it
        ("POIESIS_POLICY__FOO", None),
        ("POIESIS_POLICY_MAX_ATTEMPTS", "POIESIS_POLICY__MAX_ATTEMPTS"),
        ("POIESIS_POLCY__MAX_ATTEMPTS", "POIESIS_POLICY__MAX_ATTEMPTS"),
        ("POIESIS_MONGODB_URI", "POIESIS_MONGO_URI"),
    ],
)
def test_only_a_name_that_may_be_meant_is_suggested(name: str, suggested: str | None):
    with pytest.raises(ConfigurationError) as caught:
        read(Settings, {name: "5"})
    assert str(caught.value) == f"unknown setting {name}" + (f"; did you mean {suggested}?" if suggested else "")


def test_names_of_other_readers_are_left_to_them():
    assert read(Settings, {"POIESIS_KUBERNETES__X": "5"}, others=("POIESIS_KUBERNETES__",)) == Settings()


def test_a_secret_is_read_from_a_file_and_never_shown(tmp_path):
    (tmp_path / "uri").write_text("mongodb://user:hush@host\n")
    settings = read(Settings, {"POIESIS_MONGO_URI_FILE": str(tmp_path / "uri"), "POIESIS_REDIS_URI": "redis://:hush@h"})
    assert settings.mongo_uri == "mongodb://user:hush@host"
    assert "hush" not in repr(settings)
    assert "hush" not in repr(read_one(SECRET="hush"))


def test_a_variable_wins_over_its_file(tmp_path):
    (tmp_path / "mode").write_text("server")
    assert read(Everything, {"POIESIS_TEXT": "a", "POIESIS_TEXT_FILE": str(tmp_path / "mode")}).text == "a"


def test_an_unreadable_file_is_reported_without_its_content(tmp_path):
    (tmp_path / "binary").write_bytes(b"hush\xff")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        with pytest.raises(ConfigurationError, match="cannot read POIESIS_TEXT_FILE") as caught:
            read(Everything, {"POIESIS_TEXT_FILE": str(path)})
        assert "hush" not in str(caught.value)


@pytest.mark.parametrize(("after", "attempts"), [("3", None), ("4", "4"), ("1", "1"), ("0", None)])
def test_a_fallback_that_no_attempt_is_left_for_is_refused(after, attempts):
    names = {"ON_DEMAND_AFTER": after, "MAX_ATTEMPTS": attempts}
    variables = {f"POIESIS_POLICY__{name}": value for name, value in names.items() if value is not None}
    message = rf"invalid POIESIS_POLICY__ON_DEMAND_AFTER {after}: .* less than POIESIS_POLICY__MAX_ATTEMPTS"
    with pytest.raises(ConfigurationError, match=message):
        read(Settings, variables)
    usable = {"POIESIS_POLICY__MAX_ATTEMPTS": "9", "POIESIS_POLICY__ON_DEMAND_AFTER": "8"}
    assert read(Settings, usable).policy.on_demand_after == 8


def test_a_setting_whose_name_ends_in_file_is_not_read_from_a_file():
    assert read(Settings, {"POIESIS_API__CREDENTIALS_FILE": "/x"}).api.credentials_file == "/x"


@pytest.mark.parametrize("name", ["URL_SCHEMES_IN", "URL_SCHEMES_OUT", "FILE_ROOTS", "BACKEND_PARAMETERS"])
def test_fields_that_the_adapters_fill_are_not_settings(name):
    with pytest.raises(ConfigurationError, match=f"unknown setting POIESIS_POLICY__{name}"):
        read(Settings, {f"POIESIS_POLICY__{name}": "s3"})
