"""What a network costs: its parameters and multiply-accumulates by precision, a row a layer."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bop_optax._binary_layer import BinaryLayer, BinaryParam, LatentParam, PackedParam
from bop_optax._executed import executed, kernel_precision
from bop_optax.quantizers import precision


class Row(NamedTuple):
    """One layer of a `Summary`.

    Attributes:
        path: its place in the model, as in "convs/0"; "." is the model itself.
        type: the name of its class.
        input_precision: bits of each number from its `input_quantizer`; None: without one.
        output_shape: None if it was not called, or if it returns several shapes.
        parameters: {bits: number of parameters of so many bits}.
        macs: {bits: number of multiply-accumulates of so many bits}, of all its calls.

    Example:
        >>> row = Row("first", "BinaryLinear", None, (1, 64), {1: 8192}, {32: 8192})
        >>> row.size // 8
        1024
    """

    path: str
    type: str
    input_precision: int | None
    output_shape: tuple[int, ...] | None
    parameters: Mapping[int, int]
    macs: Mapping[int, int]

    @property
    def size(self) -> int:
        """Bits of its parameters."""
        return _size(self.parameters)


class Totals(NamedTuple):
    """The sums over a `Summary`.

    Attributes:
        parameters: {bits: number of parameters of so many bits}.
        macs: {bits: number of multiply-accumulates of so many bits}.

    Example:
        >>> print(Totals({1: 10_352_000, 32: 7_700}, {1: 510_961_664, 32: 3_110_400}))
        1.26 MiB (39.52 MiB in float32), 514 M MACs (99.4% of them 1-bit)
    """

    parameters: Mapping[int, int]
    macs: Mapping[int, int]

    @property
    def size(self) -> int:
        """Bits of the parameters."""
        return _size(self.parameters)

    @property
    def float32_size(self) -> int:
        """Bits of as many float32 parameters."""
        return 32 * sum(self.parameters.values())

    @property
    def compression(self) -> float:
        """Size in float32 ÷ size. Larq prints the inverse."""
        return self.float32_size / max(1, self.size)

    @property
    def binary_share(self) -> float:
        """Share of the multiply-accumulates that multiply one bit by one bit, from 0 to 1."""
        return self.macs.get(1, 0) / max(1, sum(self.macs.values()))

    def __str__(self) -> str:
        size, float32_size = _readable_size(self.size), _readable_size(self.float32_size)
        macs = f"{_readable(sum(self.macs.values()))} MACs ({self.binary_share:.1%} of them 1-bit)"
        return f"{size} ({float32_size} in float32), {macs}"


class Summary(NamedTuple):
    """What `summary` returns; `print` shows it as a table.

    Attributes:
        rows: the layers in the order of their calls, then those that are not called.
        totals: the sums over them.

    Example:
        >>> rows = (Row("first", "BinaryLinear", None, (1, 64), {1: 8192}, {32: 8192}),)
        >>> print(Summary(rows, Totals({1: 8192}, {32: 8192})))
                             input          1-bit         32-bit
        layer  type          bits   output  params   KiB    MACs
        ────────────────────────────────────────────────────────
        first  BinaryLinear      -  1×64     8,192  1.00  8.19 k
        ────────────────────────────────────────────────────────
        total                                8,192  1.00  8.19 k
        1.00 KiB (32.00 KiB in float32), 8.19 k MACs (0.0% of them 1-bit)
    """

    rows: tuple[Row, ...]
    totals: Totals

    def __str__(self) -> str:
        parameters, macs = sorted(self.totals.parameters), sorted(self.totals.macs)

        def cells(layer: Row | Totals) -> list[str]:
            return [
                *(f"{layer.parameters[b]:,}" if b in layer.parameters else "-" for b in parameters),
                f"{layer.size / 8192:,.2f}",
                *(_readable(layer.macs[b]) if b in layer.macs else "-" for b in macs),
            ]

        heads = [["", "", "input", ""], ["layer", "type", "bits", "output"]]
        heads[0] += [f"{b}-bit" for b in parameters] + [""] + [f"{b}-bit" for b in macs]
        heads[1] += ["params"] * len(parameters) + ["KiB"] + ["MACs"] * len(macs)
        body = [
            [
                *(row.path, row.type, str(row.input_precision or "-")),
                "×".join(map(str, row.output_shape or "-")),
                *cells(row),
            ]
            for row in self.rows
        ]
        table = [*heads, *body, ["total", "", "", "", *cells(self.totals)]]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [_line(row, widths) for row in table]
        rule = "─" * max(map(len, lines))
        return "\n".join([*lines[:2], rule, *lines[2:-1], rule, lines[-1], str(self.totals)])


def summary(model: nnx.Module, *inputs: Any) -> Summary:
    """Counts the parameters and the multiply-accumulates (MACs) of a network by their bits.

    Nothing is computed: a forward pass in evaluation mode is traced with shapes. For the networks
    of `bop_optax.models` the totals are those that Larq's summary prints. The rules are Larq's:

    - A binary kernel has one bit a weight, also if it is packed, or latent with a one-bit
      `kernel_quantizer`. The attribute `precision` of another `kernel_quantizer` is the bits of a
      latent weight. Any other variable or array has the bits of its dtype.
    - BatchNorm has two parameters a channel: in inference it is a factor and a summand.
    - The bits of a MAC are those of its wider operand. The operands of a binary layer have the bits
      of `input_quantizer` and of the kernel; all others have the bits of their dtype.
    - MACs are those of matrix products and of convolutions, padded zeros included.

    Where Larq counts each layer once, every execution counts here: the second call of a layer, each
    step of a scan, each network under `nnx.vmap`, each image of the batch. Larq does not count
    transposed convolutions (here, with strides: pixels of the input × weights of the kernel) and
    products outside of layers, and it gives every dtype 32 bits. The α of a packed layer are
    parameters; the state of random numbers is none.

    Args:
        model: an NNX module; latent, binary, packed or folded; also of shapes alone, as
            `nnx.eval_shape` makes it. A forward pass must not depend on the type of its modules.
        inputs: arguments of its call, each an array, a `jax.ShapeDtypeStruct`, or the shape of a
            float32 array, a tuple or list of integers. The batch is part of a shape; 1 gives the
            MACs of one image.

    Returns:
        A row for each layer that has parameters or multiplies, and the totals. `print` shows them.

    Raises:
        TypeError: for a model that is no NNX module.
        ValueError: for a negative size.

    Warns:
        UserWarning: if a `jax.lax.cond`, a `while_loop`, or the like multiplies: how often is
            unknown. These MACs are not counted.

    Example:
        >>> from bop_optax import ste_sign
        >>> from bop_optax.layers import BinaryConv
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(
        ...     BinaryConv(3, 64, (3, 3), rngs=rngs),
        ...     nnx.BatchNorm(64, rngs=rngs),
        ...     BinaryConv(64, 64, (3, 3), input_quantizer=ste_sign, rngs=rngs),
        ... )
        >>> print(summary(model, (1, 32, 32, 3)))
                              input               1-bit  32-bit         1-bit  32-bit
        layer     type         bits      output  params  params   KiB    MACs    MACs
        ─────────────────────────────────────────────────────────────────────────────
        layers/0  BinaryConv      -  1×32×32×64   1,728       -  0.21       -  1.77 M
        layers/1  BatchNorm       -  1×32×32×64       -     128  0.50       -       -
        layers/2  BinaryConv      1  1×32×32×64  36,864       -  4.50  37.7 M       -
        ─────────────────────────────────────────────────────────────────────────────
        total                                    38,592     128  5.21  37.7 M  1.77 M
        5.21 KiB (151.25 KiB in float32), 39.5 M MACs (95.5% of them 1-bit)

    References:
        Geiger and Plumerai Team. Larq: An Open-Source Library for Training Binarized Neural
        Networks. Journal of Open Source Software 2020, doi:10.21105/joss.01746.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"summary takes an NNX module, got {type(model).__name__}")
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, jax.eval_shape(lambda state: state, state))
    model.eval()
    paths, layers = zip(*nnx.iter_modules(model), strict=True)
    types = [type(layer).__name__ for layer in layers]
    parameters = _parameters(model, dict(zip(paths, layers, strict=True)))
    done = executed(model, layers, [_abstract(x) for x in inputs])
    rows = []
    for i in dict.fromkeys([*done, *range(len(layers))]):
        outputs, macs = done[i]
        if parameters[paths[i]] or macs:
            path = "/".join(map(str, paths[i])) or "."
            bits = precision(getattr(layers[i], "input_quantizer", None))
            shape = outputs.pop() if len(outputs) == 1 else None
            rows.append(Row(path, types[i], bits, shape, dict(parameters[paths[i]]), dict(macs)))
    totals = Totals(_sum(row.parameters for row in rows), _sum(row.macs for row in rows))
    return Summary(tuple(rows), totals)


def _abstract(x: Any) -> Any:
    """A shape as that of a float32 array."""
    if isinstance(x, tuple | list) and all(isinstance(size, Integral) for size in x):
        if min(x, default=0) < 0:
            raise ValueError(f"a shape has no negative size, got {x}: give the batch as 1")
        return jax.ShapeDtypeStruct(tuple(map(int, x)), jnp.float32)
    return x


def _parameters(model: nnx.Module, layers: Mapping[Any, Any]) -> dict[Any, Counter[int]]:
    """The parameters of each layer by bits."""
    counts: dict[Any, Counter[int]] = defaultdict(Counter)
    for (*path, name), variable in nnx.to_flat_state(nnx.state(model)):
        while tuple(path) not in layers:  # the variable is in a dictionary of the layer
            path.pop()
        layer = layers[tuple(path)]
        fused = isinstance(layer, nnx.BatchNorm) and name in ("scale", "bias")
        if not fused and not isinstance(variable, nnx.RngState):
            for array in jax.tree.leaves(variable):
                bits, number = _weights(layer, variable, array)
                counts[tuple(path)][bits] += number
    return counts


def _weights(layer: Any, variable: Any, array: Any) -> tuple[int, int]:
    """The bits of each number of a variable, and how many numbers there are."""
    bits, number = jax.dtypes.itemsize_bits(array.dtype), array.size
    if isinstance(variable, PackedParam):
        number = number // array.shape[-2] * layer.kernel_shape[-2]
    if isinstance(variable, BinaryParam | PackedParam):
        bits = 1
    elif isinstance(variable, LatentParam) and isinstance(layer, BinaryLayer):
        bits = kernel_precision(layer) or bits
    return bits, number


def _sum(counts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    total = sum(map(Counter, counts), Counter())
    return dict(sorted(total.items()))


def _size(parameters: Mapping[int, int]) -> int:
    return sum(bits * number for bits, number in parameters.items())


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A line of a table; the first two columns are left-aligned."""
    padded = [
        cell.ljust(width) if i < 2 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _readable(number: float) -> str:
    """Three significant digits, as in "1.68 G"."""
    for unit in ("", " k", " M", " G"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g} T"


def _readable_size(bits: int) -> str:
    kib = bits / 8192
    return f"{kib:.2f} KiB" if kib < 1024 else f"{kib / 1024:,.2f} MiB"
