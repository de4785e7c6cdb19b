"""Keras' metrics of two classes, as AUC, for a model that gives the probabilities of both classes."""

from __future__ import annotations

import re
from typing import Any

import keras
import tensorflow as tf

OF_TWO_CLASSES = tuple(
    getattr(keras.metrics, name)
    for name in (
        "AUC",
        "BinaryAccuracy",
        "BinaryCrossentropy",
        "FalseNegatives",
        "FalsePositives",
        "Precision",
        "PrecisionAtRecall",
        "Recall",
        "RecallAtPrecision",
        "SensitivityAtSpecificity",
        "SpecificityAtSensitivity",
        "TrueNegatives",
        "TruePositives",
    )
)


@keras.saving.register_keras_serializable("mgkeras")
class OfClass1(keras.metrics.Metric):
    """A metric of two classes that gets the probability of class 1 out of probabilities (b, 2).

    Args:
        metric: of Keras, as keras.metrics.AUC().
        kwargs: of keras.metrics.Metric; the name is the metric's.

    Examples:
        >>> metric = mgkeras.OfClass1(keras.metrics.AUC())
        >>> metric.update_state(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]))
        >>> float(metric.result())
        1.0
    """

    def __init__(self, metric: keras.metrics.Metric, **kwargs: Any) -> None:
        super().__init__(**kwargs | {"name": metric.name})
        self.metric = metric

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Labels (b,) int or (b, 2) one-hot, probabilities (b, 2), weights (b,) or None."""
        y_true, y_pred = tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred)
        one_hot = len(y_true.shape) == 2 and y_true.shape[-1] == 2
        labels = y_true[:, 1] if one_hot else tf.reshape(y_true, [-1])
        return self.metric.update_state(labels, y_pred[:, 1], sample_weight=sample_weight)

    def result(self) -> Any:
        return self.metric.result()

    def reset_state(self) -> None:
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        return {"metric": keras.saving.serialize_keras_object(self.metric)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OfClass1:
        return cls(keras.saving.deserialize_keras_object(config["metric"]))


def for_class_1(metrics: Any, two: bool) -> Any:
    """What compile takes as metrics, those of two classes wrapped in OfClass1 where the model has two.

    Args:
        metrics: a metric, its name, a function, or a list or dict of them; None for none.
        two: whether the model has two classes.
    """
    if not two or metrics is None:
        return metrics
    if isinstance(metrics, (list, tuple)):
        return [for_class_1(metric, two) for metric in metrics]
    if isinstance(metrics, dict):
        return {name: for_class_1(metric, two) for name, metric in metrics.items()}
    if isinstance(metrics, str):
        kind = next((kind for kind in OF_TWO_CLASSES if metrics in (kind.__name__, _snake(kind.__name__))), None)
        return OfClass1(kind()) if kind else metrics
    wanted = isinstance(metrics, OF_TWO_CLASSES) and not getattr(metrics, "multi_label", False)
    return OfClass1(metrics) if wanted else metrics


def _snake(name: str) -> str:
    """'true_positives' of 'TruePositives', 'auc' of 'AUC'."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
