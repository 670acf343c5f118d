"""Inference in one bit: a trained network whose binary kernels are bits, in 1/32 of the memory."""

from typing import TypeVar

from flax import nnx

from bop_optax.layers import BinaryConv, BinaryLinear

_Model = TypeVar("_Model", bound=nnx.Module)
LAYER_CALLS = (BinaryConv.__call__, BinaryLinear.__call__)  # which read packed kernels, too


def pack(model: _Model) -> _Model:
    """Packs the binary kernels of a trained model into 32-bit words, for inference.

    Every `BinaryLinear` and `BinaryConv` with a kernel of ±α keeps its bits, as a `PackedParam`,
    and α of each output. Everything else in the model is kept. Outputs are those of `model`, to the
    bit. A product by population count uses the words; any other product unpacks the kernel.

    Works inside `jit` and `vmap`. A subclass of these layers with a `__call__` of its own stays as
    it is. Two layers that share one kernel get a copy of its bits each.

    Args:
        model: an NNX module. Latent weights are quantized; a kernel whose quantizer does not say
            that it is one bit stays as it is, see `bop_optax.quantizers.is_scaled_sign`.

    Returns:
        A copy. The derivative of a packed product raises an error.

    Raises:
        ValueError: for a kernel whose values are not ±α with one α for each output, and for kernels
            of several networks that `nnx.vmap` stacked: call this function inside `nnx.vmap`.
        TypeError: for a model that is no NNX module.

    Example:
        >>> from bop_optax.layers import BinaryLinear
        >>> layer = BinaryLinear(64, 8, rngs=nnx.Rngs(0))
        >>> packed = pack(layer)
        >>> packed.kernel.shape, packed.kernel.dtype, layer.kernel.nbytes // packed.kernel.nbytes
        ((2, 8), dtype('uint32'), 32)

    References:
        Rastegari, Ordonez, Redmon, Farhadi. XNOR-Net: ImageNet Classification Using Binary
        Convolutional Neural Networks. ECCV 2016, arXiv:1603.05279, section 3.2.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"pack takes an NNX module, got {type(model).__name__}")
    packed = nnx.clone(model)
    for _, module in nnx.iter_modules(packed):
        if not isinstance(module, BinaryConv | BinaryLinear):
            continue
        if type(module).__call__ in LAYER_CALLS and module.has_binary_kernel():
            module.pack_kernel()
    return packed
