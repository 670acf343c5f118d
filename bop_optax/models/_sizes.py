"""The sizes that a network is built for."""

from collections.abc import Sequence

import numpy as np


def check_sizes(
    image_shape: Sequence[int], num_classes: int, least: int = 1, **options: object
) -> tuple[int, int, int]:
    """Returns the height, width and channels of an image.

    Args:
        image_shape: (height, width, channels).
        num_classes: number of classes.
        least: the smallest height and width.
        options: arguments of the network that `least` depends on.

    Raises:
        ValueError: for another form, too small an image, and no channel or class.
    """
    sizes = image_shape if isinstance(image_shape, Sequence) else (image_shape,)
    if len(sizes) != 3 or not all(isinstance(size, int | np.integer) for size in sizes):
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
    check_integers(num_classes=num_classes)
    height, width, channels = image_shape
    if min(height, width) < least:
        given = "".join(f" with {name}={value}" for name, value in options.items())
        raise ValueError(f"images must be {least}×{least} or larger{given}, got {height}×{width}")
    if channels < 1 or num_classes < 1:
        raise ValueError(f"channels and num_classes must be ≥ 1, got {channels} and {num_classes}")
    return height, width, channels


def check_widths(**sizes: int) -> None:
    """Raises an error for sizes of layers that are no integers, or below 1."""
    check_integers(**sizes)
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {name}={size}")


def check_integers(**sizes: int) -> None:
    """Raises TypeError for sizes that are no integers."""
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer):
            raise TypeError(f"{name} must be an integer, got {name}={size!r}")


def check_sections(sections: Sequence[Sequence[int]], fields: str) -> None:
    """Raises an error unless sections are tuples of integers of at least 1, one of each field."""
    number = fields.count(",") + 1
    is_table = isinstance(sections, Sequence) and all(
        isinstance(s, Sequence) and len(s) == number and all(isinstance(n, int) for n in s)
        for s in sections
    )
    if not is_table or not sections or min(map(min, sections)) < 1:
        raise ValueError(f"sections must be tuples ({fields}) of integers ≥ 1, got {sections!r}")
