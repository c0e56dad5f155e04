"""From claims to a user: names, groups and rights by the issuer's settings."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poiesis.api.oidc.claims import check_claims, user_of, values_at
from poiesis.api.oidc.jwt import TokenRefused, parse
from poiesis.api.oidc.settings import Issuer

URN = "urn:geant:lifescience-ri.eu:group:"
CLAIMS: dict[str, Any] = {
    "sub": "42",
    "groups": ["a", "b", "a", 1, None, "", " padded", "x" * 256],
    "role": "one",
    "realm_access": {"roles": ["tes-admin", "offline_access"]},
    "https://example.org/claims": {"groups.all": ["c"]},
    "https://example.org/groups": ["d"],
    "eduperson_entitlement": [f"{URN}tes:users#aai.example.org", f"{URN}other#aai.example.org", "urn:unrelated"],
    "email": "ada@example.org",
}


def _issuer(**changes: Any) -> Issuer:
    return Issuer(**{"name": "lab", "url": "https://login.example.org", "audiences": ("tes",), **changes})


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("sub", ["42"]),
        ("role", ["one"]),
        ("groups", ["a", "b", "a", "", " padded", "x" * 256]),
        ("realm_access.roles", ["tes-admin", "offline_access"]),
        ("https://example.org/groups", ["d"]),
        ("https://example.org/claims.groups.all", ["c"]),
        ("realm_access", []),
        ("realm_access.none.deeper", []),
        ("sub.deeper", []),
        ("missing", []),
        ("", []),
        (".", []),
    ],
)
def test_a_path_is_a_name_or_levels_with_dots(path: str, values: list[str]) -> None:
    assert list(values_at(CLAIMS, path)) == values


def test_names_and_groups_have_the_issuer_in_front() -> None:
    user = user_of(CLAIMS, _issuer(group_claims=("groups", "https://example.org/groups")))
    assert (user.name, user.groups, user.admin) == ("lab:42", ("lab:a", "lab:b", "lab:d"), False)


def test_a_pattern_selects_groups_and_cuts_their_name_out() -> None:
    issuer = _issuer(group_claims=("eduperson_entitlement",), group_pattern=f"{URN}tes:([^#]+)#.*")
    assert user_of(CLAIMS, issuer).groups == ("lab:users",)
    whole = _issuer(group_claims=("eduperson_entitlement",), group_pattern=f"{URN}.*", prefix_names=False)
    assert user_of(CLAIMS, whole).groups == tuple(CLAIMS["eduperson_entitlement"][:2])


def test_admins_have_one_of_the_values() -> None:
    for values, admin in ((("tes-admin",), True), (("tes",), False), (("TES-ADMIN",), False)):
        assert user_of(CLAIMS, _issuer(admin_claims=("realm_access.roles",), admin_values=values)).admin is admin
    assert not user_of(CLAIMS, _issuer(group_claims=("realm_access.roles",))).admin


def test_groups_of_another_issuer_are_not_taken_over() -> None:
    claims = {"sub": "42", "groups": ["other:a", "a"]}
    issuer = _issuer(group_claims=("groups",), prefix_names=False)
    assert user_of(claims, issuer, ["other"]).groups == ("a",)
    with pytest.raises(TokenRefused):
        user_of({"sub": "other:42"}, issuer, ["other"])


def test_an_email_address_has_to_be_verified() -> None:
    issuer = _issuer(user_claim="email")
    for verified in (None, False, "true", 1):
        with pytest.raises(TokenRefused, match="verified"):
            user_of({**CLAIMS, "email_verified": verified}, issuer)
    assert user_of({**CLAIMS, "email_verified": True}, issuer).name == "lab:ada@example.org"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
_NAMES = st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat", "scope", "azp", "groups", "client_id", "scp"])


@given(st.dictionaries(_NAMES, _JSON))
def test_any_claims_are_refused_or_accepted(claims: dict[str, Any]) -> None:
    issuer = _issuer(scopes=("tes",), clients=("cli",), group_claims=("groups", "groups.a"), admin_values=("x",))
    try:
        check_claims(claims, issuer, 1e9, must_expire=True)
        user = user_of(claims, issuer)
    except TokenRefused:
        return
    assert user.name is not None and user.name.startswith("lab:")


_PART = st.binary(max_size=60).map(lambda part: base64.urlsafe_b64encode(part).rstrip(b"="))


@given(_PART, _PART)
def test_any_token_is_refused_or_taken_apart(header: bytes, claims: bytes) -> None:
    try:
        parsed = parse(header + b"." + claims + b".c2ln")
    except TokenRefused:
        return
    assert isinstance(parsed.claims, dict)
