"""PyTorch's worker; runs in its environment: python -m benchmarks.torch_worker (see protocol.py).

Bop and the sign with the straight-through estimator are written here as a PyTorch user would write
them. The network is that of bop_optax/models/binarynet.py. `compiled` uses torch.compile.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportAttributeAccessIssue=false
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.protocol import Job, finite, serve


class STESign(torch.autograd.Function):
    """Sign forward; the gradient passes where |x| ≤ 1."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() <= 1, grad, 0.0)


def rademacher(parameter):
    with torch.no_grad():
        parameter.bernoulli_(0.5).mul_(2).sub_(1)
    parameter.is_binary = True
    return parameter


class BinaryNet(nn.Module):
    """bop_optax/models/binarynet.py in PyTorch."""

    def __init__(self, options, image_shape, num_classes):
        super().__init__()
        width, self.stages = options["width"], options["stages"]
        units = options["units"] or 8 * width
        first = 0 if options["first_padding"] == "VALID" else 1
        height, breadth, features = image_shape
        convs, denses, norms = [], [], []
        for i in range(2 * self.stages):
            out = width * 2 ** (i // 2)
            convs.append(nn.Conv2d(features, out, 3, padding=1 if i else first, bias=False))
            norms.append(nn.BatchNorm2d(out, eps=1e-3, momentum=0.01))
            features = out
        lost = 2 * (1 - first)
        features *= ((height - lost) // 2**self.stages) * ((breadth - lost) // 2**self.stages)
        for out in (units, units, num_classes):
            denses.append(nn.Linear(features, out, bias=False))
            norms.append(nn.BatchNorm1d(out, eps=1e-3, momentum=0.01))
            features = out
        for norm in norms:
            norm.weight.requires_grad_(False)  # no scale
        for layer in (*convs, *denses):
            rademacher(layer.weight)
        self.convs, self.denses, self.norms = map(nn.ModuleList, (convs, denses, norms))

    def forward(self, x):
        for i, conv in enumerate(self.convs):
            x = conv(STESign.apply(x) if i else x)
            x = self.norms[i](functional.max_pool2d(x, 2) if i % 2 else x)
        x = x.flatten(1)
        for i, dense in enumerate(self.denses, len(self.convs)):
            x = self.norms[i](dense(STESign.apply(x)))
        return x


class Bop(torch.optim.Optimizer):
    """Algorithm 2: flips ±1 weights whose moving average of the gradient agrees and is strong."""

    def __init__(self, params, gamma, threshold):
        super().__init__(params, {"gamma": gamma, "threshold": threshold})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            for w in weights:
                if not self.state[w]:
                    self.state[w]["m"] = torch.zeros_like(w)
            averages = [self.state[w]["m"] for w in weights]
            torch._foreach_lerp_(averages, [w.grad for w in weights], group["gamma"])
            for w, m in zip(weights, averages, strict=True):
                w.copy_(torch.where(m * w > group["threshold"], -w, w))


class Training:
    """A network with its optimizers and one batch of random images."""

    def __init__(self, experiment, image_shape, num_classes, compiled, channels_last):
        torch.manual_seed(0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = BinaryNet(experiment["model"], image_shape, num_classes)
        self.model = model.to(memory_format=layout)
        params = [p for p in self.model.parameters() if p.requires_grad]
        self.binary = [p for p in params if hasattr(p, "is_binary")]
        options = experiment["optimizer"]
        real = [p for p in params if not hasattr(p, "is_binary")]
        self.optimizers = [
            Bop(self.binary, float(options["gamma"]), float(options["threshold"])),
            torch.optim.Adam(real, float(experiment["real"]["learning_rate"])),
        ]
        rng, number = np.random.default_rng(0), experiment["batch_size"]
        images = rng.integers(0, 256, (number, *image_shape)).astype(np.float32) / 127.5 - 1
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.images = images.contiguous(memory_format=layout)
        self.labels = torch.from_numpy(rng.integers(0, num_classes, number))
        self.update, self.count = self._update, self._count
        self.loss = self._loss
        if compiled:
            self.loss = torch.compile(self._loss)
            self.update, self.count = torch.compile(self._update), torch.compile(self._count)

    def _loss(self):
        return functional.cross_entropy(self.model(self.images), self.labels)

    def _update(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def _count(self):
        return (self.model(self.images).argmax(-1) == self.labels).sum()

    def step(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.update()
        return loss

    def check(self):
        """AssertionError unless all binary weights are ±1."""
        assert self.binary
        for w in self.binary:
            assert bool((w.abs() == 1).all()), "a weight is not ±1"


def step(experiment, image_shape, num_classes, compiled=False, channels_last=True):
    """Training steps on one batch of random images."""
    training = Training(experiment, image_shape, num_classes, compiled, channels_last)
    training.model.train()

    def run(steps):
        for _ in range(steps):
            loss = training.step()
        return {"loss": finite(float(loss.detach()))}

    return Job(run, training.check)


def evaluate(experiment, image_shape, num_classes, compiled=False, channels_last=True):
    """Evaluations of one batch of random images."""
    training = Training(experiment, image_shape, num_classes, compiled, channels_last)
    training.model.eval()

    def run(steps):
        with torch.inference_mode():
            for _ in range(steps):
                correct = training.count()
        return {"correct": int(correct)}

    return Job(run, training.check)


if __name__ == "__main__":
    serve({"step": step, "evaluate": evaluate})
