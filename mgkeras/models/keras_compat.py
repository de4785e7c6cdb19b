"""What differs between the two generations of Keras that the package runs on. All else is written for both.

Glossary:
    main lane    TensorFlow 2.16 or newer, with Keras 3.
    addons lane  TensorFlow 2.15 with Keras 2.15, the last that tensorflow-addons can be imported beside, on Python 3.10
                 or 3.11: the extra ``addons``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mgkeras.errors import MgkerasError
from mgkeras.settings import ADDONS_OPTIMIZERS

GENERATION = int(keras.__version__.split(".")[0])  # of Keras: 3 in the main lane, 2 in the addons lane
ADDONS = GENERATION == 2
LAMB_EPSILON = 1e-6  # that of You et al. 2020 and tensorflow-addons; Keras 3 has another default
AVERAGED_FROM = 0.75  # ours, because Izmailov et al. 2018 average from three quarters of the training on


class NeedsAddons(MgkerasError, RuntimeError):
    """An optimizer was asked for that the main lane has not."""


def check_optimizer(name: str) -> None:
    """Makes sure that this lane has an optimizer of settings.OPTIMIZERS.

    Raises:
        NeedsAddons: only tensorflow-addons has it, and this is the main lane.
    """
    if name in ADDONS_OPTIMIZERS and not ADDONS:
        raise NeedsAddons(
            f"the optimizer {name} is one of tensorflow-addons', which is not for TensorFlow "
            f"{tf.__version__}: to train with it, pip install 'mgkeras[addons]' in a virtual environment "
            "of its own with Python 3.10 or 3.11. What it trained runs here too."
        )


def cosine(learning_rate: float, steps: int, warmup: float) -> Any:
    """A rate that rises from 0 in the first ``warmup`` share of so many steps, then falls to 0 along half a cosine.

    Args:
        learning_rate: the highest.
        steps: of the whole training.
        warmup: from 0 to below 1.
    """
    rising = round(warmup * steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0 if rising else learning_rate,
        steps - rising,
        warmup_target=learning_rate if rising else None,
        warmup_steps=rising,
    )


def optimizer_of(name: str, learning_rate: Any, steps: int, epochs: int, weight_decay: float | None = None) -> Any:
    """An optimizer by its name in settings.OPTIMIZERS.

    Lookahead and SWA are wrapped around Adam, the paper's optimizer.

    Args:
        name: which.
        learning_rate: of it, or of the Adam inside; a number or a schedule of Keras.
        steps: of an epoch. SWA averages the weights as they are at the end of an epoch.
        epochs: of the training. SWA averages its last quarter.
        weight_decay: of adamw, which alone has one; None for Keras' own.

    Raises:
        NeedsAddons: only tensorflow-addons has it, and this is the main lane.
    """
    check_optimizer(name)
    if name in ADDONS_OPTIMIZERS or (ADDONS and name == "lamb"):
        return _addons_optimizer(name, learning_rate, steps, epochs)
    if name == "lamb":
        return keras.optimizers.Lamb(learning_rate, epsilon=LAMB_EPSILON)
    if name == "nadam" and ADDONS:
        # Keras 2.15's other Nadam multiplies its bias correction once a variable, not once a step; this one, with the
        # schedule of Keras 3, does what Keras 3's does
        return keras.optimizers.legacy.Nadam(learning_rate, schedule_decay=1.0)
    own = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop", "nadam": "Nadam"}
    decay = {"weight_decay": weight_decay} if name == "adamw" and weight_decay is not None else {}
    return getattr(keras.optimizers, own[name])(learning_rate, **decay)


def _addons_optimizer(name: str, learning_rate: float, steps: int, epochs: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is no longer developed, which the README says
        import tensorflow_addons as tfa
    if name == "lamb":
        return tfa.optimizers.LAMB(learning_rate, epsilon=LAMB_EPSILON)
    if name == "rectifiedadam":
        return tfa.optimizers.RectifiedAdam(learning_rate)
    adam = keras.optimizers.legacy.Adam(learning_rate)  # they take no other generation of optimizers
    if name == "lookahead":
        return tfa.optimizers.Lookahead(adam)
    first = math.ceil(AVERAGED_FROM * epochs) * steps - 1  # counted from 0: the last step of that epoch
    return tfa.optimizers.SWA(adam, start_averaging=first, average_period=steps)


def build_optimizer(optimizer: Any, variables: Sequence[Any]) -> None:
    """Makes the variables of an optimizer's state, which else appear with the first step."""
    if hasattr(optimizer, "inner_optimizer"):  # first, or Keras 3 would lose sight of Nadam's bias correction
        build_optimizer(optimizer.inner_optimizer, variables)
    if hasattr(optimizer, "build"):
        optimizer.build(variables)
    else:  # of Keras 2's legacy generation, which has no public name for it
        optimizer._create_all_weights(variables)


def optimizer_state(optimizer: Any) -> list[Any]:
    """The variables of an optimizer that is built, loss scale included, always in the same order."""
    return list(optimizer.weights if _is_legacy(optimizer) else optimizer.variables)


def assign_averages(optimizer: Any, variables: Sequence[Any]) -> None:
    """Sets a model's trained variables to their averages, where SWA has averaged them; else leaves them."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not hasattr(optimizer, "assign_average_vars"):
        return
    if int(optimizer.iterations) > optimizer.get_config()["start_averaging"]:  # else float16 skipped too many steps
        optimizer.assign_average_vars(variables)


def _is_legacy(optimizer: Any) -> bool:
    return ADDONS and isinstance(optimizer, keras.optimizers.legacy.Optimizer)


if ADDONS:

    class LossScaleOptimizer(keras.optimizers.Optimizer):
        """Keras 3's LossScaleOptimizer for the optimizers of Keras 2, the legacy ones included.

        Keras 2's own counts a skipped step as one that was done, by which SWA would average weights never seen.

        Args:
            inner_optimizer: gets the gradients, unscaled, where they are finite.
            initial_scale: by which the loss is multiplied; halved by each overflow.
            dynamic_growth_steps: after so many steps without one it is doubled.
        """

        def __init__(
            self, inner_optimizer: Any, initial_scale: float = 2.0**15, dynamic_growth_steps: int = 2000
        ) -> None:
            super().__init__("LossScaleOptimizer", jit_compile=False)
            self.inner_optimizer, self.dynamic_growth_steps = inner_optimizer, dynamic_growth_steps
            self.dynamic_scale = tf.Variable(initial_scale, trainable=False, dtype=tf.float32, name="dynamic_scale")
            self.step_counter = tf.Variable(0, trainable=False, dtype=tf.int64, name="step_counter")

        def build(self, var_list: Sequence[Any]) -> None:
            build_optimizer(self.inner_optimizer, var_list)

        @property
        def variables(self) -> list[Any]:
            return [self.step_counter, self.dynamic_scale, *optimizer_state(self.inner_optimizer)]

        @property
        def iterations(self) -> tf.Variable:
            return self.inner_optimizer.iterations

        def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
            return loss * self.dynamic_scale

        def apply_gradients(self, grads_and_vars: Any, **kwargs: Any) -> None:
            gradients, variables = zip(*grads_and_vars, strict=True)
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
            tf.cond(finite, lambda: self._apply(gradients, variables), self._skip)

        def _apply(self, gradients: Sequence[tf.Tensor], variables: Sequence[tf.Variable]) -> tf.Tensor:
            unscaled = [gradient / self.dynamic_scale for gradient in gradients]
            self.inner_optimizer.apply_gradients(list(zip(unscaled, variables, strict=True)))
            grows = self.step_counter + 1 >= self.dynamic_growth_steps
            self.step_counter.assign(tf.where(grows, tf.zeros_like(self.step_counter), self.step_counter + 1))
            self.dynamic_scale.assign(tf.where(grows, 2 * self.dynamic_scale, self.dynamic_scale))
            return tf.constant(True)

        def _skip(self) -> tf.Tensor:
            self.step_counter.assign(0)
            self.dynamic_scale.assign(self.dynamic_scale / 2)
            return tf.constant(False)

        def get_config(self) -> dict[str, Any]:
            return {"initial_scale": float(self.dynamic_scale), "dynamic_growth_steps": self.dynamic_growth_steps}

else:
    LossScaleOptimizer = keras.optimizers.LossScaleOptimizer  # type: ignore[misc]  # the other lane's class has its name


def made_by(tensor: Any) -> tuple[Any, list[Any]]:
    """The layer that made a symbolic tensor, and the tensors that it was made from; none for a network's input."""
    history = tensor._keras_history
    layer = history[0]
    node = layer._inbound_nodes[history[1]]
    inputs = node.input_tensors
    inputs = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    return layer, [other for other in inputs if other is not tensor]


def has_loss_scale(optimizer: Any) -> bool:
    """Whether an optimizer multiplies the loss, for gradients in float16: this package's, or Keras' own."""
    return any(hasattr(optimizer, name) for name in ("dynamic_scale", "get_scaled_loss"))


def scaled_loss(optimizer: Any, loss: tf.Tensor) -> tf.Tensor:
    """The loss as the gradients are to be taken of it."""
    for name in ("get_scaled_loss", "scale_loss"):  # Keras 2's own loss scale, and all others
        if hasattr(optimizer, name):
            return getattr(optimizer, name)(loss)
    return loss


def unscaled_gradients(optimizer: Any, gradients: Sequence[Any]) -> Sequence[Any]:
    """The gradients of scaled_loss as apply_gradients wants them."""
    return optimizer.get_unscaled_gradients(gradients) if hasattr(optimizer, "get_unscaled_gradients") else gradients


# of Layer.add_weight: the weight comes as it is stored, whatever the layer's precision
NO_AUTOCAST = {"experimental_autocast": False} if ADDONS else {"autocast": False}


# of Layer.add_weight: a weight that each replica of a strategy changes in the same way
ONE_FOR_ALL = {"aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA if ADDONS else "only_first_replica"}


def as_number(value: Any) -> Any:
    """A scalar variable of Keras as a numpy number."""
    return value.numpy() if hasattr(value, "numpy") else value


def tf_variable(weight: Any) -> tf.Variable:
    """A weight as TensorFlow has it, which Keras 3 wraps and Keras 2 does not."""
    return weight if isinstance(weight, tf.Variable) else weight.value
