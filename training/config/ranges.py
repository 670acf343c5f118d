"""The check that every configuration makes of its options."""


def require(holds: bool, name: str, requirement: str, value: object) -> None:
    """Raises ValueError for an option out of its range; the message names the command's flag."""
    if not holds:
        flag = "--" + name.replace("_", "-")
        raise ValueError(f"{flag} must be {requirement}, got {value}")
