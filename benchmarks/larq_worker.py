"""Larq's worker; runs in Larq's environment: python -m benchmarks.larq_worker (see protocol.py).

The networks are those of bop_optax.models, with the same order of layers, paddings and BatchNorms.
Options: `experiment` is that of `training.config.to_json`; `jit` compiles with XLA.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportAttributeAccessIssue=false
import os

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import larq as lq
import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers

from benchmarks.protocol import Job, finite, serve


def make_model(experiment, image_shape, num_classes, jit, steps_per_epoch=1000):
    """The compiled Keras model of an experiment, and the kernels that Bop trains."""
    tf_keras.utils.set_random_seed(experiment["seed"])
    build = {"BinaryNet": binarynet, "BiRealNet": birealnet}[experiment["model"]["type"]]
    model = build(experiment["model"], tuple(image_shape), num_classes)
    binary = []
    rate, steps = (
        float(experiment["real"]["learning_rate"]),
        (experiment["epochs"], steps_per_epoch),
    )
    optimizer = tf_keras.optimizers.legacy.Adam(rate)
    if experiment["optimizer"]["type"] == "Bop":
        gamma = schedule(experiment["optimizer"]["gamma"], *steps)
        threshold = float(experiment["optimizer"]["threshold"])
        bop = lq.optimizers.Bop(threshold=threshold, gamma=gamma)
        optimizer = lq.optimizers.CaseOptimizer(
            (lq.optimizers.Bop.is_binary_variable, bop), default_optimizer=optimizer
        )
        binary = [w for w in model.trainable_weights if lq.optimizers.Bop.is_binary_variable(w)]
        assert binary, "no binary kernels"
        for kernel in binary:  # ±1 from the start, as ours and as in PyTorch
            kernel.assign(lq.math.sign(kernel))
    model.compile(
        optimizer,
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=jit or None,
    )
    return model, binary


def binarynet(options, image_shape, num_classes):
    binary = {"kernel_quantizer": lq.quantizers.NoOp(precision=1), "use_bias": False}
    width, stages = options["width"], options["stages"]
    units = options["units"] or 8 * width
    stack = [layers.Input(image_shape)]
    for i in range(2 * stages):
        padding = "same" if i else options["first_padding"].lower()
        quantizer = "ste_sign" if i else None
        out = width * 2 ** (i // 2)
        stack.append(
            lq.layers.QuantConv2D(out, 3, padding=padding, input_quantizer=quantizer, **binary)
        )
        if i % 2:
            stack.append(layers.MaxPool2D(2))
        stack.append(layers.BatchNormalization(momentum=0.99, scale=False))
    stack.append(layers.Flatten())
    for out in (units, units, num_classes):
        stack.append(lq.layers.QuantDense(out, input_quantizer="ste_sign", **binary))
        stack.append(layers.BatchNormalization(momentum=0.99, scale=False))
    return tf_keras.Sequential([*stack, layers.Activation("softmax")])


def birealnet(options, image_shape, num_classes):
    """Larq Zoo's network with the kernels that Bop flips, in place of latent weights."""
    from larq_zoo.literature.birealnet import BiRealNetFactory

    class BopBiRealNet(BiRealNetFactory):
        kernel_quantizer = lq.quantizers.NoOp(precision=1)
        kernel_constraint = None

    width = options["width"]
    network = {"input_shape": image_shape, "num_classes": num_classes, "filters": width}
    return BopBiRealNet(**network, include_top=True, weights=None).build()


def schedule(text, epochs, steps_per_epoch):
    """A number, or the Keras schedule, that training/config/schedule.py spells like this."""
    schedules = tf_keras.optimizers.schedules
    if ":" in text:
        first, last = map(float, text.split(":"))
        return schedules.PolynomialDecay(first, epochs * steps_per_epoch, last)
    first, _, staircase = text.partition("*")
    if not staircase:
        return float(first)
    factor, every = staircase.split("/")
    steps = int(every) * steps_per_epoch
    return schedules.ExponentialDecay(float(first), steps, float(factor), staircase=True)


def check_binary(kernels):
    """AssertionError unless all kernels are ±1."""
    for kernel in kernels:
        assert np.all(np.abs(kernel.numpy()) == 1), f"{kernel.name} is not ±1"


def random_batch(experiment, image_shape, num_classes):
    rng, number = np.random.default_rng(0), experiment["batch_size"]
    images = rng.integers(0, 256, (number, *image_shape)).astype(np.float32) / 127.5 - 1
    return images, rng.integers(0, num_classes, number)


def step(experiment, image_shape, num_classes, jit=False):
    """Training steps on one batch of random images, by Keras's own training function."""
    model, kernels = make_model(experiment, image_shape, num_classes, jit)
    batch = random_batch(experiment, image_shape, num_classes)
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
    train = model.make_train_function()

    def run(steps):
        model.reset_metrics()  # else the loss is the mean of all steps
        for _ in range(steps):
            logs = train(batches)
        return {"loss": finite(float(logs["loss"]))}

    return Job(run, lambda: check_binary(kernels))


def evaluate(experiment, image_shape, num_classes, jit=False):
    """Evaluations of one batch of random images."""
    model, kernels = make_model(experiment, image_shape, num_classes, jit)
    images, labels = map(tf.constant, random_batch(experiment, image_shape, num_classes))

    @tf.function(jit_compile=jit)
    def count():
        best = tf.argmax(model(images, training=False), -1)
        return tf.reduce_sum(tf.cast(best == labels, tf.int32))

    def run(steps):
        for _ in range(steps):
            correct = count()
        return {"correct": int(correct)}

    return Job(run, lambda: check_binary(kernels))


def whole_run(experiment, data, num_classes, unit="epoch", jit=False):
    """Steps, or epochs with an evaluation after each, on the arrays in the file `data`."""
    with np.load(data) as arrays:
        train_images, train_labels = arrays["train_images"], arrays["train_labels"]
        test_images, test_labels = arrays["test_images"], arrays["test_labels"]
    batch_size = experiment["batch_size"]
    steps_per_epoch = len(train_images) // batch_size
    shape = train_images.shape[1:]
    model, kernels = make_model(experiment, shape, num_classes, jit, steps_per_epoch)
    images, labels = tf.constant(train_images), tf.constant(train_labels)

    def training_batch(positions):
        batch = augment(tf.gather(images, positions), experiment["pad"], experiment["flip"])
        return scale(batch), tf.gather(labels, positions)

    order = tf.data.Dataset.range(len(train_images)).shuffle(len(train_images))
    batches = order.batch(batch_size, drop_remainder=True).map(training_batch).prefetch(2)
    test = tf.data.Dataset.from_tensor_slices((test_images, test_labels)).batch(batch_size)
    test = test.map(lambda images, labels: (scale(images), labels)).prefetch(2)

    def run(number):
        if unit == "step":
            fitted = model.fit(batches.take(number), verbose=0)
            return {"loss": finite(float(fitted.history["loss"][-1]))}
        fitted = model.fit(batches, epochs=number, verbose=0)
        _, accuracy = model.evaluate(test, verbose=0)
        return {"loss": finite(float(fitted.history["loss"][-1])), "accuracy": accuracy}

    return Job(run, lambda: check_binary(kernels))


def augment(images, pad, flip):
    """Shifts each image by up to `pad` pixels and mirrors half of them, all images at once."""
    number, height, width, _ = images.shape
    if pad:
        images = tf.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        for axis, side in ((1, height), (2, width)):
            corner = tf.random.uniform((number, 1), maxval=2 * pad + 1, dtype=tf.int32)
            images = tf.gather(images, corner + tf.range(side), axis=axis, batch_dims=1)
    if flip:
        mirrored = tf.random.uniform((number, 1, 1, 1)) < 0.5
        images = tf.where(mirrored, images[:, :, ::-1], images)
    return images


def scale(images):
    return tf.cast(images, tf.float32) / 127.5 - 1


def optimizer(weights, leaves, jit=False):
    """Updates of weights in a number of variables by Larq's Bop, in one tf.function."""
    shape = (weights // leaves,)
    variables = [tf.Variable(tf.sign(tf.random.normal(shape))) for _ in range(leaves)]
    grads = [tf.random.normal(shape) for _ in range(leaves)]
    bop = lq.optimizers.Bop(threshold=1e-8, gamma=1e-4)
    bop._create_all_weights(variables)

    @tf.function(jit_compile=jit)
    def update():
        bop.apply_gradients(zip(grads, variables, strict=True))

    def run(steps):
        for _ in range(steps):
            update()
        variables[-1].numpy()[0]
        return {}

    return Job(run, lambda: check_binary(variables))


if __name__ == "__main__":
    jobs = (step, evaluate, whole_run, optimizer)
    serve({job.__name__: job for job in jobs})
