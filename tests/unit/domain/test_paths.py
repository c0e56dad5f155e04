"""Which paths contain which, compared with a naive implementation."""

from hypothesis import given
from hypothesis import strategies as st

from poiesis.domain.paths import PathSet, is_within

PATHS = st.lists(st.sampled_from(["a", "b", "a-", "a b", "!"]), min_size=1, max_size=4).map(lambda p: "/" + "/".join(p))


@given(st.lists(PATHS, max_size=8), PATHS)
def test_a_path_set_keeps_the_outermost_and_finds_the_holder(some, path):
    found = PathSet(some)
    outermost = {p for p in some if not any(p != other and is_within(p, other) for other in some)}
    assert set(found) == outermost
    assert len(list(found)) == len(outermost)
    assert (path in found) == any(is_within(path, p) for p in some)
    holder = found.holder(path)
    assert holder is None or is_within(path, holder)


def test_the_root_contains_everything():
    assert is_within("/a", "/")
    assert list(PathSet(["/a", "/"])) == ["/"]
    assert "/b" in PathSet(["/"])
