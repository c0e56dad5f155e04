from poiesis.cluster.kubernetes.quantities import quantity


def test_quantities() -> None:
    assert [quantity(text) for text in ("10", "250m", "1Ki", "2M", "1e3", "x")] == [10, 0.25, 1024, 2e6, 1000, 0]
