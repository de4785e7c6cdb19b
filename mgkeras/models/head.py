"""What stands between a network's last features and its logits: pooling, then linear layers, from which CAMs are made.

A class activation map needs no gradient where everything after the pooling is linear: the layers there are one matrix
``weights`` (k, K) and one vector ``bias`` (K,), and the logits are ``pooled features @ weights + bias``. So the map
``features @ weights`` has a spatial mean which, plus the bias, is the logit. Batch normalisation is linear too once its
moments are known: in training those of the batch, else those that it stores.

Reference: Zhou et al. 2016, Learning Deep Features for Discriminative Localization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mgkeras.errors import MgkerasError
from mgkeras.models import cam, keras_compat, replicas
from mgkeras.models.backbone import CountedDropout

DROPOUTS = ("Dropout", "SpatialDropout3D", "GaussianDropout", "GaussianNoise", "AlphaDropout", "Identity")
FLATTENERS = ("Flatten", "Reshape")
TOLERANCE = 1e-4  # ours: of the identity of map and logits, relative to the largest logit, in float32
HALF_TOLERANCE = 2e-2  # ours: the same where features are of 16 bits


class HeadError(MgkerasError, ValueError):
    """A network has no head that class activation maps can be made from; the message names the layer."""


class Head:
    """The layers from the features of a functional network to its logits, read as one linear map.

    Args:
        net: functional, with the outputs ``features`` (b, x, y, z, k) and ``logits`` or ``probabilities``; (b, K), or
            (b, 1) for one logit of class 1.

    Raises:
        HeadError: a layer between them is not linear, or nothing pools the features; the message names the layer.
    """

    def __init__(self, net: keras.Model) -> None:
        outputs = net.output
        if (
            not isinstance(outputs, Mapping)
            or "features" not in outputs
            or not set(outputs) & {"logits", "probabilities"}
        ):
            raise HeadError(
                "expected a functional network with the outputs features and logits or probabilities, as vgg3d makes "
                f"it. Received: {sorted(outputs) if isinstance(outputs, Mapping) else 'one output'}; for a network of "
                "your own use MaskGuided.of(network, features='name of a layer')"
            )
        self.net = net
        last = outputs["logits" if "logits" in outputs else "probabilities"]
        self.units = int(last.shape[-1])
        self.layers = _walk(outputs["features"], last)
        names = [type(layer).__name__ for layer in self.layers]
        if "GlobalAveragePooling3D" not in names:
            raise HeadError(
                "expected a GlobalAveragePooling3D layer between the features and the logits. Received: "
                f"{', '.join(layer.name for layer in self.layers) or 'no layer'}"
            )
        at = names.index("GlobalAveragePooling3D")
        self.pools, self.linear = self.layers[: at + 1], self.layers[at + 1 :]
        for layer in self.pools[:-1]:
            if type(layer).__name__ not in ("MaxPooling3D", "AveragePooling3D", *DROPOUTS):
                raise HeadError(
                    f"only pooling may follow the features before the global average. Received: the layer "
                    f"{layer.name!r} ({type(layer).__name__}); name the last layer before the pooling as the features"
                )
        for place, layer in enumerate(self.linear):
            _check_linear(layer, last=place == len(self.linear) - 1, before=self.linear[place + 1 :])

    @property
    def norms(self) -> list[keras.layers.Layer]:
        """The batch normalisations after the pooling, in order."""
        return [layer for layer in self.linear if isinstance(layer, keras.layers.BatchNormalization)]

    @property
    def exact(self) -> bool:
        """Whether a map's spatial mean plus the bias is the logit: no max-pool stands before the global average."""
        return not any(isinstance(layer, keras.layers.MaxPooling3D) for layer in self.pools)

    def pooled(self, features: tf.Tensor) -> tf.Tensor:
        """The features as the linear layers get them: (b, x, y, z, k) -> (b, k) float32."""
        x = tf.cast(features, tf.float32)
        for layer in self.pools[:-1]:
            if isinstance(layer, (keras.layers.MaxPooling3D, keras.layers.AveragePooling3D)):
                x = layer(x)
        return tf.reduce_mean(x, [1, 2, 3])

    def weights(self, features: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """The linear layers as a matrix (k, K) and a vector (K,), float32; one logit z becomes the two 0 and z.

        Args:
            features: (b, x, y, z, k) of a batch in training, whose moments batch normalisation uses; None to use the
                moments that it stores.
        """
        values = self.pooled(features) if features is not None and self.norms else None  # (b, k)
        matrix, shift = self._composed(self.linear, values)
        if matrix.shape[-1] == 1:
            matrix, shift = tf.pad(matrix, [[0, 0], [1, 0]]), tf.pad(shift, [[1, 0]])
        return matrix, shift

    def before(self, norm: keras.layers.Layer, values: np.ndarray) -> np.ndarray:
        """What one of the norms gets: pooled features (m, k) after the layers before it, by their stored moments."""
        earlier = self.linear[: self.linear.index(norm)]
        matrix, shift = self._composed(earlier, None)
        return values @ np.asarray(matrix) + np.asarray(shift)

    def _composed(self, layers: Sequence[Any], values: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Linear layers as one matrix and one vector; values (b, k) give normalisation its moments, None the stored."""
        features = self.net.output["features"].shape[-1]
        matrix, shift = tf.eye(features), tf.zeros(features)
        for layer in layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                frozen = values is None or not layer.trainable  # as Keras: then it uses what it stores in training too
                scale, add = _normalisation(layer, None if frozen else values @ matrix + shift)
                matrix, shift = matrix * scale, shift * scale + add
            elif isinstance(layer, keras.layers.Dense):
                kernel = tf.cast(tf.convert_to_tensor(layer.kernel), tf.float32)
                matrix, shift = matrix @ kernel, tf.linalg.matvec(kernel, shift, transpose_a=True)
                if layer.use_bias:
                    shift += tf.cast(tf.convert_to_tensor(layer.bias), tf.float32)
        return matrix, shift

    def check(self) -> None:
        """Makes sure, on random features, that the maps and the layers themselves give the same logits.

        Raises:
            HeadError: they do not.
        """
        output = self.net.output["features"]
        shape = [2, *(size or 4 for size in output.shape[1:])]
        features = tf.constant(np.abs(np.random.default_rng(0).normal(size=shape)), tf.float32)
        x = tf.cast(features, output.dtype)
        for layer in self.layers:
            x = layer(x)
        matrix, shift = self.weights()
        own = self.pooled(features) @ matrix + shift
        half = tf.as_dtype(output.dtype).size < 4
        if is_linear(self.layers[-1]):
            known = cam.centred(own)
            gap = known - cam.centred(completed({"logits": x}, features)["logits"])
            largest = max(1.0, float(tf.reduce_max(tf.abs(known))))
        else:  # of probabilities near 0 and 1 the logits are not known
            gap, largest = tf.nn.softmax(own) - completed({"probabilities": x}, features)["probabilities"], 1.0
        gap = tf.reduce_max(tf.abs(gap))
        if not float(gap) <= (HALF_TOLERANCE if half else TOLERANCE) * largest:
            raise HeadError(
                "the mean of a class activation map plus a constant must be the logit. Received: a network where they "
                f"differ by {float(gap):.3g}, from the layers {', '.join(layer.name for layer in self.layers)}"
            )


def completed(outputs: Mapping[str, tf.Tensor], features: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
    """Outputs of a network with ``probabilities`` (b, K), ``logits`` (b, K) and ``features``, whichever it lacks.

    Where only probabilities are known the logits are their logarithms, of which softmax makes the same probabilities.
    One unit (b, 1), a sigmoid's, becomes two classes.
    """
    features = outputs.get("features", features)
    p, z = (tf.cast(outputs[name], tf.float32) if name in outputs else None for name in ("probabilities", "logits"))
    if z is not None and z.shape[-1] == 1:
        z = tf.concat([tf.zeros_like(z), z], -1)
    if p is not None and p.shape[-1] == 1:
        p = tf.concat([1 - p, p], -1)
    if z is None:
        z = tf.math.log(tf.maximum(p, 1e-30))
    return {"probabilities": tf.nn.softmax(z) if p is None else p, "logits": z, "features": features}


def features_of(last: Any, name: str | None) -> Any:
    """The tensor that a layer makes on the way to a network's output.

    Args:
        last: the output's tensor.
        name: of the layer; None for what the last global average pools.

    Raises:
        HeadError: no such layer stands on the one way to the output.
    """
    tensor = last
    passed: list[str] = []
    while True:
        layer, inputs = keras_compat.made_by(tensor)
        if layer.name == name:
            return tensor
        if name is None and type(layer).__name__ == "GlobalAveragePooling3D":
            return inputs[0]
        passed.insert(0, layer.name)
        if len(inputs) != 1:
            wanted = f"a layer {name!r}" if name else "a GlobalAveragePooling3D layer, whose input the maps are made of"
            raise HeadError(
                f"expected {wanted} on one way to the output. Received: the layers {', '.join(passed[:8])}, where it "
                f"is not before {layer.name!r}, which {'begins the network' if not inputs else 'has several inputs'}"
            )
        tensor = inputs[0]


def _walk(features: Any, last: Any) -> list[keras.layers.Layer]:
    """The layers from the features' tensor to the last one, in order, found from the end."""
    found: list[keras.layers.Layer] = []
    tensor = last
    while tensor is not features:
        layer, inputs = keras_compat.made_by(tensor)
        if len(inputs) != 1:
            raise HeadError(
                "expected one chain of layers from the features to the logits. Received: the layer "
                f"{layer.name!r} ({type(layer).__name__}), beyond which the features are not found"
            )
        found.insert(0, layer)
        tensor = inputs[0]
    return found


def is_linear(layer: keras.layers.Layer) -> bool:
    """Whether a layer's activation is the identity; a Softmax layer's is not."""
    if isinstance(layer, keras.layers.Softmax):
        return False
    activation = getattr(layer, "activation", None)
    return activation is None or getattr(activation, "__name__", "") == "linear"


def _check_linear(layer: keras.layers.Layer, *, last: bool, before: list[keras.layers.Layer]) -> None:
    """Raises HeadError for a layer after the pooling that is not linear; the last may be a softmax or a sigmoid."""
    kind = type(layer).__name__
    ends = getattr(getattr(layer, "activation", None), "__name__", "softmax" if kind == "Softmax" else "")
    known = kind in (*DROPOUTS, *FLATTENERS, "BatchNormalization", "Dense", "Activation", "Softmax")
    if isinstance(layer, CountedDropout) or (known and (is_linear(layer) or (last and ends in ("softmax", "sigmoid")))):
        return
    what = f"activation {ends}" if ends not in ("", "linear") else kind
    raise HeadError(
        f"every layer after the pooling must be linear, or the class activation map is not the decision's. Received: "
        f"the layer {layer.name!r} ({what}){f', followed by {before[0].name!r}' if before else ''}; take it out"
    )


def _normalisation(layer: keras.layers.BatchNormalization, values: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """A batch normalisation as scale (k,) and shift (k,): by the moments of values (b, k), or by the stored ones."""
    if values is None:
        mean, variance = tf.convert_to_tensor(layer.moving_mean), tf.convert_to_tensor(layer.moving_variance)
    else:
        own = not getattr(layer, "synchronized", False)  # then each replica uses the moments of its own rows
        mean, variance = tf.nn.moments(values, [0]) if own else replicas.moments(values)
    scale = tf.math.rsqrt(variance + layer.epsilon)
    scale = scale * tf.convert_to_tensor(layer.gamma) if layer.scale else scale
    shift = -mean * scale
    return scale, shift + tf.convert_to_tensor(layer.beta) if layer.center else shift
