"""mgkeras: mask-guided 3D convolutional networks for breast DCE-MRI, after Liu et al. 2021.

    import keras, mgkeras
    model = mgkeras.MaskGuided(mgkeras.vgg3d((64, 64, 64, 1)), dice_weight=10)
    model.compile("adam", metrics=["accuracy", keras.metrics.AUC()])
    model.fit({"volume": volumes, "mask": masks}, labels)

Names are imported when they are first used, so that ``import mgkeras`` takes no time and needs no TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from mgkeras.models.backbone import CountedDropout, vgg3d
    from mgkeras.models.callbacks import RecomputeMoments, SaveState, SkippedSteps
    from mgkeras.models.class_metrics import OfClass1
    from mgkeras.models.guided import MaskGuided, class_activation_map
    from mgkeras.models.head import HeadError
    from mgkeras.training.api import Prediction, Run, fit, load_cohort, load_run

_NAMES = {
    "CountedDropout": "mgkeras.models.backbone",
    "HeadError": "mgkeras.models.head",
    "MaskGuided": "mgkeras.models.guided",
    "Prediction": "mgkeras.training.api",
    "OfClass1": "mgkeras.models.class_metrics",
    "RecomputeMoments": "mgkeras.models.callbacks",
    "Run": "mgkeras.training.api",
    "SaveState": "mgkeras.models.callbacks",
    "SkippedSteps": "mgkeras.models.callbacks",
    "class_activation_map": "mgkeras.models.guided",
    "fit": "mgkeras.training.api",
    "load_cohort": "mgkeras.training.api",
    "load_run": "mgkeras.training.api",
    "vgg3d": "mgkeras.models.backbone",
}
__all__ = [
    "CountedDropout",
    "HeadError",
    "MaskGuided",
    "OfClass1",
    "Prediction",
    "RecomputeMoments",
    "Run",
    "SaveState",
    "SkippedSteps",
    "class_activation_map",
    "fit",
    "load_cohort",
    "load_run",
    "vgg3d",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'mgkeras' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])


class _WithKeras(importlib.abc.MetaPathFinder):
    """Imports the classes that Keras must know to load a saved model once Keras itself is imported."""

    looking = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "keras" or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                sys.meta_path.remove(self)
                run(module)
                importlib.import_module("mgkeras.models.guided")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "keras" in sys.modules:
    importlib.import_module("mgkeras.models.guided")
else:
    sys.meta_path.insert(0, _WithKeras())
