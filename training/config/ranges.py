"""The checks that configurations make of their options."""

from collections.abc import Collection


def require(holds: bool, name: str, requirement: str, value: object) -> None:
    """Raises ValueError for an option out of its range; the message names the command's flag."""
    if not holds:
        flag = "--" + name.replace("_", "-")
        raise ValueError(f"{flag} must be {requirement}, got {value}")


def require_different(name: str, values: Collection[object]) -> None:
    """Raises ValueError unless the option `name` has one value or more, and none of them twice."""
    different = len({*values}) == len(values) > 0
    require(different, name, "different, at least one", values)
