"""A row of a table of wrong inputs: `(what is wrong, call, message)`."""

import re
from collections.abc import Callable
from typing import Any

import pytest


def rows(table: list[tuple[str, Any, str]]) -> pytest.MarkDecorator:
    """Runs a test for each row; its first entry is the test's id."""
    return pytest.mark.parametrize(
        ("call", "message"), [pytest.param(call, text, id=what) for what, call, text in table]
    )


def refuse(call: Callable[[], Any], message: str) -> None:
    """Checks that a call raises "Kind: text", where ... stands for any text."""
    with pytest.raises(Exception) as error:  # noqa: PT011
        call()
    found = f"{type(error.value).__name__}: {error.value}"
    assert matches(message, found), found


def matches(message: str, found: str) -> bool:
    """Whether a text is a message in which ... stands for any text."""
    return bool(re.fullmatch(".*".join(map(re.escape, message.split("..."))), found, re.DOTALL))
