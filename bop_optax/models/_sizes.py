"""The sizes that a network is built for."""

from collections.abc import Sequence


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
    if len(image_shape) != 3:
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
    height, width, channels = image_shape
    if min(height, width) < least:
        given = "".join(f" with {name}={value}" for name, value in options.items())
        raise ValueError(f"images must be {least}×{least} or larger{given}, got {height}×{width}")
    if channels < 1 or num_classes < 1:
        raise ValueError(f"channels and num_classes must be ≥ 1, got {channels} and {num_classes}")
    return height, width, channels
