"""Which path a sweep takes, and what a subclass keeps of the capabilities of its parent."""

from ocp.adjoint.paths import capability_applies


def test_a_capability_applies_to_the_value_and_derivative_it_was_declared_for():
    class Plain:
        def __call__(self):
            """The value."""

        def vjp(self):
            """Its derivative."""

    class Fast(Plain):
        def over(self):
            """For the derivative of its parent."""

    class Other(Fast):
        def vjp(self):
            """Another derivative."""

    class Both(Other):
        def over(self):
            """For the other derivative."""

    class Called(Both):
        def __call__(self):
            """Another value."""

    kinds = (Plain, Fast, Other, Both, Called)
    assert [capability_applies(kind(), "over", "__call__", "vjp") for kind in kinds] == [
        False,
        True,
        False,
        True,
        False,
    ]
