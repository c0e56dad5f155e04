"""Image references as registries and container runtimes accept them."""

import pytest

from poiesis.domain.images import image_problem


@pytest.mark.parametrize(
    "image",
    [
        "alpine",
        "alpine:3.20",
        "docker:24-dind",
        "localhost/busybox:1",
        "localhost:5000/busybox",
        "library/ubuntu:22.04",
        "quay.io/biocontainers/samtools:1.9--h91753b0_8",
        "quay.io/x/y:tag--0",
        "docker.io/library/alpine:3.20",
        "docker.io/library/alpine@sha256:" + "a" * 64,
        "registry.example.org:5000/a/b/c-d__e.f:V1.2_x@sha256:" + "0" * 64,
        "my-registry.local/team/tool---x:1",
        "10.0.0.1:80/x",
        "[fd00::1]:5000/x:1",
        "LOCALHOST/x",
        "a" * 255,
        "a:" + "t" * 128,
    ],
)
def test_a_valid_reference_is_accepted(image):
    assert image_problem(image) is None


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("", "missing image"),
        ("../../etc", "registry must be"),
        ("a/../etc", "lower-case"),
        ("$(id)", "lower-case"),
        ("LOCALHOST/X", "lower-case"),
        ("Alpine", "lower-case"),
        ("two words", "lower-case"),
        ("a\n", "lower-case"),
        ("é", "lower-case"),
        ("a//b", "lower-case"),
        ("/a", "lower-case"),
        ("a/", "lower-case"),
        ("-a", "lower-case"),
        ("a___b", "lower-case"),
        ("a..b/c", "registry must be"),
        ("host:port/x", "registry must be"),
        ("https://quay.io/x", "registry must be"),
        ("docker://alpine", "remove docker://"),
        ("a:", "tag must be"),
        ("a:-x", "tag must be"),
        ("a:" + "t" * 129, "tag must be"),
        ("a:b c", "tag must be"),
        ("a@sha256:xyz", "digest must be"),
        ("a@", "digest must be"),
        ("f" * 64, "lower-case"),
        ("a" * 256, "longer than 255"),
        ("a" * 100_000, "too long"),
        ("a-" * 5_000, "too long"),
    ],
)
def test_an_invalid_reference_is_refused_with_the_reason(image, reason):
    problem = image_problem(image)
    assert problem is not None and reason in problem
    assert len(problem) < 500
