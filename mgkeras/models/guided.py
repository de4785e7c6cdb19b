"""MaskGuided: a Keras model whose train_step adds the Dice between a class activation map and the mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import keras
import tensorflow as tf

from mgkeras.data.phases import input_shape
from mgkeras.errors import InputError
from mgkeras.models import cam, keras_compat, replicas
from mgkeras.models.backbone import vgg3d
from mgkeras.models.class_metrics import for_class_1
from mgkeras.models.head import Head, completed, features_of, is_linear
from mgkeras.settings import GuidanceSettings, Settings, check_guidance

TERMS = {  # what MaskGuided calls the fields of GuidanceSettings that its loss is made of
    "dice_weight": "lambda_dice",
    "guided_map": "guided_map",
    "cam_map": "cam_map",
    "dice_term": "dice_term",
    "sigmoid_slope": "sigmoid_slope",
    "sigmoid_offset": "sigmoid_offset",
}


@keras.saving.register_keras_serializable("mgkeras")
class MaskGuided(keras.Model):
    """A classifier that is trained to minimise cross-entropy - dice_weight x Dice(class activation map, mask).

    Train it on ``({"volume": v, "mask": m}, y)`` or ``(..., y, sample_weight)``: volumes (b, x, y, z, channels),
    masks (b, x, y, z) or (b, x, y, z, 1) of 0 and 1, labels (b,) int or (b, K) one-hot. A volume whose mask is empty
    has no Dice term; without ``mask``, or with plain volumes instead of the dict, no volume has one. Calling the model
    and ``predict`` give the probabilities (b, K); ``model.net`` gives logits and features too.

    ``fit`` and ``evaluate`` report ``loss``, ``ce`` (cross-entropy), ``dice`` (mean over the volumes with a mask) and
    the compiled metrics, which get the probabilities. Those of two classes, as keras.metrics.AUC or Precision, get the
    probability of class 1. Where a loss scale is used (mixed_float16) a step whose loss overflowed counts in none.

    Made and compiled in the scope of a tf.distribute strategy, it trains on several devices as on one: cross-entropy,
    Dice and the metrics are those of the global batch. So are the moments of vgg3d's batch normalisation; one of your
    own network has them where it is made with ``synchronized=True``.

    Args:
        net: functional, with the outputs ``features`` (b, x, y, z, k) and ``logits`` or ``probabilities``, whose
            layers after the pooling are linear; from ``mgkeras.vgg3d``, or see ``MaskGuided.of``.
        dice_weight: lambda of the paper.
        guided_map: 'class', 'evidence' or 'strength', see models.cam.guided_map.
        cam_map: 'sigmoid', 'cut-sigmoid', 'minmax' or 'relu', see models.cam.attention_map.
        dice_term: 'plain' for Dice, 'log' for its logarithm.
        sigmoid_slope: of the two sigmoids.
        sigmoid_offset: of the two sigmoids.
        kwargs: of keras.Model, as ``name``.

    Raises:
        HeadError: class activation maps cannot be made from the network; the message names the layer.
        ValueError: an unknown map or term.

    Examples:
        >>> model = mgkeras.MaskGuided(mgkeras.vgg3d((16, 16, 16, 1)), dice_weight=10)
        >>> model.compile("adam", metrics=["accuracy", keras.metrics.AUC()])
        >>> volumes, masks = np.random.rand(4, 16, 16, 16, 1), np.zeros((4, 16, 16, 16))
        >>> masks[:, 4:8, 4:8, 4:8] = 1
        >>> history = model.fit({"volume": volumes, "mask": masks}, np.array([0, 1, 0, 1]), verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'auc', 'ce', 'dice', 'loss']
        >>> model.predict(volumes, verbose=0).shape
        (4, 2)

    Reference: Liu et al. 2021.
    """

    def __init__(
        self,
        net: keras.Model,
        *,
        dice_weight: float = GuidanceSettings.lambda_dice,
        guided_map: str = GuidanceSettings.guided_map,
        cam_map: str = GuidanceSettings.cam_map,
        dice_term: str = GuidanceSettings.dice_term,
        sigmoid_slope: float = GuidanceSettings.sigmoid_slope,
        sigmoid_offset: float = GuidanceSettings.sigmoid_offset,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        asked = {name: value for name, value in locals().items() if name in TERMS}
        self.guidance = check_guidance(replace(GuidanceSettings(), **{TERMS[name]: asked[name] for name in asked}))
        self.net = net
        self.head = Head(net)
        self.head.check()
        self.loss_mean, self.ce_mean = keras.metrics.Mean("loss"), keras.metrics.Mean("ce")
        self.dice_mean = keras.metrics.Mean("dice")
        self.cross_entropy, self.own_cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True), True
        self.built = True

    @classmethod
    def of(cls, model: keras.Model, features: str | None = None, **kwargs: Any) -> MaskGuided:
        """A network of your own, guided: its weights are shared with the model that is given.

        Args:
            model: functional or Sequential, from volumes (b, x, y, z, channels) to probabilities or logits (b, K), or
                to one sigmoid's probability (b, 1). Between its features and its output stand pooling
                (GlobalAveragePooling3D) and linear layers alone.
            features: the name of the layer whose output the maps are made of; what is pooled last where None.
            kwargs: of MaskGuided.

        Raises:
            HeadError: there is no such layer, or class activation maps cannot be made; the message names the layer.

        Examples:
            >>> own = keras.Sequential([
            ...     keras.Input((16, 16, 16, 1)),
            ...     keras.layers.Conv3D(8, 3, activation="relu", name="conv"),
            ...     keras.layers.GlobalAveragePooling3D(),
            ...     keras.layers.Dense(3, activation="softmax"),
            ... ])
            >>> mgkeras.MaskGuided.of(own, features="conv").predict(np.zeros((1, 16, 16, 16, 1)), verbose=0).shape
            (1, 3)
        """
        sequential = isinstance(model, keras.Sequential)  # whose input and output Keras 3 knows by their plurals alone
        source, target = (model.inputs, model.outputs) if sequential else (model.input, model.output)
        source, target = (
            found[0] if isinstance(found, (list, tuple)) and len(found) == 1 else found for found in (source, target)
        )
        if isinstance(target, Mapping):
            outputs = dict(target)
        else:
            outputs = {"logits" if is_linear(model.layers[-1]) else "probabilities": target}
        if features is not None or "features" not in outputs:
            outputs["features"] = features_of(outputs.get("logits", outputs.get("probabilities")), features)
        return cls(keras.Model(source, outputs, name=model.name), **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        """Probabilities (b, K) float32 of volumes, or of a dict with ``volume``."""
        return self.outputs_of(_parts(inputs)[0], training=training)["probabilities"]

    def outputs_of(self, volumes: tf.Tensor, *, training: bool | None = False) -> dict[str, tf.Tensor]:
        """``probabilities`` (b, K), ``logits`` (b, K) float32 and ``features`` (b, x, y, z, k) of volumes."""
        return completed(self.net(tf.cast(volumes, tf.float32), training=training))

    @tf.function(reduce_retracing=True)
    def pooled_features(self, volumes: tf.Tensor) -> tf.Tensor:
        """The features (b, k) float32 of volumes as the layers after the pooling get them."""
        return self.head.pooled(self.outputs_of(volumes)["features"])

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """keras.Model.compile.

        Args:
            loss: in place of cross-entropy. One with ``from_logits`` gets logits, any other the probabilities, of one
                unit (b, 1) those of class 1; the categorical cross-entropy of the logits where None.
            metrics: as keras.Model takes them, in a list.
            weighted_metrics: as metrics.
            optimizer: of keras.Model.compile.
            kwargs: of keras.Model.compile.
            loss_weights: None, for there is one loss.
        """
        if loss_weights is not None:
            raise InputError(f"MaskGuided has one loss, whose weight is 1. Received: loss_weights={loss_weights!r}")
        metrics, weighted_metrics = (for_class_1(some, self.head.units <= 2) for some in (metrics, weighted_metrics))
        super().compile(optimizer, loss=loss, metrics=metrics, weighted_metrics=weighted_metrics, **kwargs)
        self.own_cross_entropy = loss is None
        self.cross_entropy = (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True) if loss is None else keras.losses.get(loss)
        )
        if self.head.units > 1 and "binary" in _loss_name(self.cross_entropy):
            raise InputError(
                f"a network of {self.head.units} units wants a categorical loss, or none for cross-entropy. Received: "
                f"{_loss_name(self.cross_entropy)}"
            )

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Keras' own, with the first replica's batch: Keras adds up the replicas' batches, which may differ in size."""
        strategy = self.distribute_strategy
        if iterator is not None and strategy.num_replicas_in_sync > 1:
            _, _, batches = next(iter(iterator))
            local = strategy.experimental_local_results
            iterator, data_batch = None, tf.nest.map_structure(lambda batch: local(batch)[0], next(batches))
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """The inverse of get_compile_config, when a model is loaded; the optimizer's state is loaded after it."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        keras_compat.build_optimizer(self.optimizer, self.trainable_variables)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step: the forward pass, the maps by the head's weights (no gradient is needed for them), CE - Dice."""
        inputs, labels, weight = keras.utils.unpack_x_y_sample_weight(data)
        volumes, mask = _parts(inputs)
        with tf.GradientTape() as tape:
            outputs = self.outputs_of(volumes, training=True)
            loss, *terms = self.loss_of(outputs, mask, labels, weight, training=True)
            scaled = keras_compat.scaled_loss(self.optimizer, loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        gradients = keras_compat.unscaled_gradients(self.optimizer, gradients)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self._counted(inputs, labels, weight, outputs["probabilities"], loss, *terms)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """The same loss and metrics as in train_step, of the network as it predicts."""
        inputs, labels, weight = keras.utils.unpack_x_y_sample_weight(data)
        volumes, mask = _parts(inputs)
        outputs = self.outputs_of(volumes, training=False)
        loss, *terms = self.loss_of(outputs, mask, labels, weight, training=False)
        return self._counted(inputs, labels, weight, outputs["probabilities"], loss, *terms)

    def loss_of(
        self, outputs: Mapping[str, tf.Tensor], mask: Any, labels: tf.Tensor, weight: Any = None, *, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """What is minimised, and its parts.

        Args:
            outputs: of outputs_of.
            mask: (b, x, y, z) or (b, x, y, z, 1), or None.
            labels: (b,) int or (b, K) one-hot.
            weight: (b,) of each volume in cross-entropy, or None.
            training: whether the outputs are those of training, where batch normalisation uses the batch's moments.

        Returns:
            The loss (scalar), its cross-entropy (scalar), each volume's Dice (b,), and 1 where it has a mask (b,). On
            several replicas the scalars are this replica's shares, whose sums are those of the global batch.
        """
        config = self.cross_entropy.get_config() if isinstance(self.cross_entropy, keras.losses.Loss) else {}
        predicted = outputs["logits" if config.get("from_logits") else "probabilities"]
        if self.own_cross_entropy:
            labels = _classes(labels, predicted.shape[-1])
        elif self.head.units == 1:  # a loss of the user's gets what the network itself gives
            first = predicted[:, :1] if config.get("from_logits") else 0.0
            predicted, labels = predicted[:, 1:] - first, tf.reshape(labels, [-1, 1])
        ce = self._reduced(labels, predicted, weight)
        dice, has_mask = self.dice_of(outputs["features"], mask, labels, training=training)
        loss = ce + tf.add_n(self.losses) / replicas.count() if self.losses else ce
        if self.guidance.lambda_dice:  # with 0 the Dice is only shown
            term = tf.math.log(dice + cam.EPSILON) if self.guidance.dice_term == "log" else dice
            loss -= self.guidance.lambda_dice * cam.masked_mean(term, has_mask)
        return loss, ce, dice, has_mask

    def _reduced(self, labels: tf.Tensor, predicted: tf.Tensor, weight: Any) -> tf.Tensor:
        """The loss over the global batch, of which this is the replica's share; as Keras reduces it on one."""
        if isinstance(self.cross_entropy, keras.losses.Loss):
            values = self.cross_entropy.call(tf.cast(labels, predicted.dtype), predicted)
        else:  # a function of labels and probabilities
            values = self.cross_entropy(labels, predicted)
        divisor = tf.cast(tf.size(values), values.dtype)
        reduction = getattr(self.cross_entropy, "reduction", "")
        if weight is not None:
            weight = tf.reshape(tf.cast(weight, values.dtype), [-1, *[1] * (len(values.shape) - 1)])
            divisor = tf.reduce_sum(weight) if reduction == "mean_with_sample_weight" else divisor
            values *= weight
        share = tf.reduce_sum(values)
        return share if reduction == "sum" else tf.math.divide_no_nan(share, replicas.total(divisor))

    def dice_of(self, features: tf.Tensor, mask: Any, labels: tf.Tensor, *, training: bool) -> tuple[Any, Any]:
        """The Dice (b,) of each volume's map and mask, and (b,) 1 where it has a mask; arguments as for loss_of."""
        if mask is None:
            none = tf.zeros(tf.shape(features)[0])
            return none, none
        weights, _ = self.head.weights(features if training else None)
        maps = cam.class_maps(features, weights)
        chosen = cam.guided_map(maps, _classes(labels, maps.shape[-1]), self.guidance.guided_map)
        return cam.soft_dice(cam.attention_map(chosen, self.guidance), cam.mask_cells(mask, features.shape[1:4]))

    def _counted(
        self,
        inputs: Any,
        labels: tf.Tensor,
        weight: tf.Tensor | None,
        probabilities: tf.Tensor,
        loss: tf.Tensor,
        ce: tf.Tensor,
        dice: tf.Tensor,
        has_mask: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Updates all metrics by a batch and returns their values."""
        size, masked = tf.cast(tf.shape(probabilities)[0], tf.float32), tf.reduce_sum(has_mask)
        loss, shown, dice = map(replicas.total, (loss, tf.cast(ce, tf.float32), cam.masked_mean(dice, has_mask)))
        if getattr(self.cross_entropy, "reduction", "") == "sum":
            shown /= replicas.total(size)
        if keras_compat.has_loss_scale(self.optimizer):
            number = tf.math.is_finite(loss)
            loss, shown, dice, probabilities, size, masked = (
                tf.where(number, value, tf.zeros_like(value))
                for value in (loss, shown, dice, probabilities, size, masked)
            )
            weight = tf.ones_like(probabilities[:, 0]) if weight is None else weight
            weight = tf.where(number, weight, tf.zeros_like(weight))
        self.loss_mean.update_state(loss, size)
        self.ce_mean.update_state(shown, size)
        self.dice_mean.update_state(dice, masked)
        found = self.compute_metrics(inputs, labels, probabilities, weight)
        return tf.nest.map_structure(replicas.for_reduction, found)

    @property
    def metrics(self) -> list:
        """The running means of loss, ce and dice, and the compiled metrics; Keras resets them at each epoch's start."""
        own = [self.loss_mean, self.ce_mean, self.dice_mean]
        return own + [
            metric for metric in super().metrics if metric.name != "loss" and not any(metric is mine for mine in own)
        ]

    def get_config(self) -> dict[str, Any]:
        """The network and the arguments of MaskGuided."""
        guidance = asdict(self.guidance)
        return {
            "name": self.name,
            "net": keras.saving.serialize_keras_object(self.net),
            **{name: guidance[field] for name, field in TERMS.items()},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MaskGuided:
        """A model of a config of get_config, with fresh weights."""
        net = keras.saving.deserialize_keras_object(config["net"], custom_objects=custom_objects)
        return cls(**config | {"net": net})


def class_activation_map(model: MaskGuided, volumes: Any, *, kind: str = "decision") -> Any:
    """Class activation maps of volumes, on the network's own grid of cells.

    Args:
        model: trained.
        volumes: (b, x, y, z, channels), as in training; b is one batch.
        kind: 'decision' for maps centred over the classes, whose mean plus a constant is the centred logit and which
            are the same however softmax' weights are written; 'class' for the maps literally. See models.cam.

    Returns:
        (b, x, y, z, K) float32 numpy array; above 0 speaks for the class, below 0 against it.

    Examples:
        >>> model = mgkeras.MaskGuided(mgkeras.vgg3d((16, 16, 16, 1)))
        >>> mgkeras.class_activation_map(model, np.zeros((3, 16, 16, 16, 1))).shape
        (3, 2, 2, 2, 2)
    """
    if kind not in ("decision", "class"):
        raise InputError(f"kind must be 'decision' or 'class'. Received: {kind!r}")
    features = model.outputs_of(tf.convert_to_tensor(volumes))["features"]
    maps = cam.class_maps(features, model.head.weights()[0])
    return (cam.centred(maps) if kind == "decision" else maps).numpy()


def build_model(settings: Settings, *, seed: int = 0, dtype: str = "float32", s2d_blocks: int = 0) -> MaskGuided:
    """A model of these settings with fresh weights, and with ``settings`` as an attribute.

    Args:
        settings: volume, backbone and guidance are used; a guided run and a no-mask run start from the same weights.
        seed: of the weights and of dropout.
        dtype: Keras dtype policy of the blocks.
        s2d_blocks: how many of the first blocks are computed after space-to-depth: the same function and weights, for
            a GPU.
    """
    keras.utils.set_random_seed(seed)
    how: dict[str, Any] = {"seed": seed, "dtype": dtype, "s2d_blocks": s2d_blocks}
    net = vgg3d(input_shape(settings.volume), **asdict(settings.backbone), **how, name="mgkeras")
    guidance = asdict(settings.guidance)
    model = MaskGuided(net, **{name: guidance[field] for name, field in TERMS.items()})
    model.settings = settings
    return model


def _loss_name(loss: Any) -> str:
    return str(getattr(loss, "name", "") or getattr(loss, "__name__", ""))


def _parts(inputs: Any) -> tuple[tf.Tensor, Any]:
    """Volumes and masks (None where there are none) of a model's inputs."""
    mapping = isinstance(inputs, Mapping)
    if isinstance(inputs, tuple | list) or (mapping and "volume" not in inputs):
        received = f"the keys {', '.join(map(str, inputs))}" if mapping else f"{len(inputs)} arrays without keys"
        raise InputError(f'expected volumes, or {{"volume": volumes, "mask": masks}}. Received: {received}')
    volumes, mask = (inputs["volume"], inputs.get("mask")) if mapping else (inputs, None)
    if mask is not None and not mask.shape[1:4].is_compatible_with(volumes.shape[1:4]):
        raise InputError(
            f"expected masks (b, x, y, z) of the volumes' sides {tuple(volumes.shape[1:4])}. Received: "
            f"{tuple(mask.shape)}"
        )
    return volumes, mask


def _classes(labels: tf.Tensor, classes: int) -> tf.Tensor:
    """Labels (b,), (b, 1) or one-hot (b, K) as (b,) int32."""
    if len(labels.shape) == 2 and labels.shape[-1] == classes:
        return tf.argmax(labels, -1, tf.int32)
    return tf.cast(tf.reshape(labels, [-1]), tf.int32)
