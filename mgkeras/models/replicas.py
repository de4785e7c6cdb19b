"""Sums over the replicas of a tf.distribute strategy, by which a step on several devices is the step on one.

Each replica gets some rows of the global batch. In a step, all of them call these functions in the same order. Outside
of a strategy, and on one replica, each function gives what it was given.
"""

from __future__ import annotations

import tensorflow as tf

from mgkeras.models import keras_compat


def count() -> int:
    """How many replicas take part in a step of the strategy in whose scope, or in whose step, this is called."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def total(value: tf.Tensor) -> tf.Tensor:
    """The sum of a tensor over the replicas, any shape; gradients flow back to every replica."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def moments(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance (k,) of the global batch's values, of which this replica has (b, k) float32."""
    rows = total(tf.cast(tf.shape(values)[0], values.dtype))
    mean = total(tf.reduce_sum(values, 0)) / rows
    return mean, total(tf.reduce_sum(tf.square(values - mean), 0)) / rows


def stateless_uniform(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """tf.random.stateless_uniform of the global batch, of which this replica gets its own rows.

    Args:
        shape: (d,) int32, that of this replica's part; its first number is how many rows it has.
        seed: (2,) int32, the same on every replica.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tf.random.stateless_uniform(shape, seed)
    rows, place = shape[0], context.replica_id_in_sync_group
    sizes = total(tf.one_hot(place, context.num_replicas_in_sync, dtype=tf.int32) * rows)
    start = tf.reduce_sum(sizes[:place])
    drawn = tf.random.stateless_uniform(tf.concat([tf.reduce_sum(sizes, keepdims=True), shape[1:]], 0), seed)
    return drawn[start : start + rows]


def for_reduction(value: tf.Tensor) -> tf.Tensor:
    """A scalar that a step gives, as Keras averages it over the replicas: (1,) where these are of several workers.

    There Keras 3 takes the mean along axis 0, which a scalar has not: https://github.com/keras-team/keras/issues/20585.
    """
    if count() == 1 or keras_compat.ADDONS:
        return value
    own = tf.distribute.get_strategy().extended.worker_devices  # of this process
    return tf.reshape(value, [1]) if count() > len(own) else value
