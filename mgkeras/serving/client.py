"""Exams scored by a served model: the client of `mgkeras export` for TensorFlow Serving and what speaks as it does.

Two signatures can score an exam:

predict_exam    takes the raw early volume and needs nothing else, but of a run of several phases the others too, and
the
                settings of preprocessing.json to know which. Over gRPC it is the default: 4 bytes a voxel, and the
                numbers are those of a local `mgkeras predict`. As JSON a voxel is 5 (whole numbers) to 20 bytes, 22 to
                80 MB for 256 x 256 x 64, and the map comes back as long.
predict_bytes   takes the network's cube, made here as the run made it, in float16 and compressed: about 3 MB for a side
                of 128, whatever the exam. So it is the default over REST. It needs the settings of preprocessing.json,
                and for a mask-only run, which has no other signature, a mask or the pre phase too. Rounding to float16
                moves a probability by a few 1e-4.

Either way the network's cells come back (the decision map or, of an export of before, the class map brought to [0, 1])
and are put on the patient's grid here, as for a local run. Where the server numbers its versions, the one that is found
first scores every exam, even if a newer one comes up meanwhile.
"""

from __future__ import annotations

import importlib.util
import json
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.data.cohort import Subject
from mgkeras.data.phases import load_others
from mgkeras.data.volume import CubeFrame, frame_of, load_volume
from mgkeras.errors import InputError
from mgkeras.inference.score import KINDS, MAP, Score, cube_of
from mgkeras.runs.store import RunError
from mgkeras.serving.transport import (
    Address,
    AnswerError,
    Busy,
    Patience,
    Server,
    ServerError,
    VersionState,
    address_of,
    insist,
)
from mgkeras.settings import Settings, from_dict

OUTPUTS = ("probabilities", "fold_probabilities", "cells")
TIMEOUT_S = 120.0  # ours, because five folds on a cube of 128 take seconds on a few cores, and others may be before us
ROUNDING = 1e-4  # what an answer may be off by: a server may compute in half precision


@dataclass(frozen=True)
class Preprocessing:
    """What preprocessing.json says: settings of the run, the folds that are served, the kind of map (score.KINDS), and
    the smallest and largest field of view, mm, of the exams it was trained on.

    An export of before names no kind: its cells are the class map brought to [0, 1]. None where it tells no field.
    """

    settings: Settings
    folds: tuple[int, ...]
    kind: str = "attention"
    trained_on: tuple[float, float] | None = None


@dataclass(frozen=True)
class Served:
    """A served model that can score exams.

    Attributes:
        score: see inference.score.Score.
        source: address with the version.
        signature: the one that is asked.
        kind: of its maps, one of score.KINDS.
    """

    score: Score
    source: str
    signature: str
    kind: str


def read_preprocessing(path: Path) -> Preprocessing:
    """Reads preprocessing.json of `mgkeras export`.

    Raises:
        RunError: it is missing or says something else.
    """
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        kind = about.get("map", {}).get("kind", "attention")
        if kind not in KINDS:
            raise InputError(f"maps of a kind that is not known here: {kind}")
        if (edges := about.get("cube", {}).get("trained_on_mm")) is not None:
            low, high = edges
            edges = float(low), float(high)
            if not 0 < low <= high < math.inf:
                raise InputError(f"a field of view of {low} to {high} mm")
        return Preprocessing(from_dict(about["settings"]), tuple(int(fold) for fold in about["folds"]), kind, edges)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"expected preprocessing.json of `mgkeras export`. Received: {path}, with {error!r}") from None


def connect(
    url: str,
    *,
    preprocessing: Preprocessing | None = None,
    signature: str | None = None,
    timeout_s: float = TIMEOUT_S,
    proxy: bool = False,
    tell: Callable[[str], None],
) -> Served:
    """Asks a server for a model's state and signatures, and chooses how to send exams.

    Args:
        url: see transport.address_of.
        preprocessing: of the served version; without it only whole exams can be sent.
        signature: predict_exam or predict_bytes; None chooses, see the module's text.
        timeout_s: for each whole answer, sending included.
        proxy: whether exams may go through a proxy that the environment names.
        tell: gets a line when the server is asked again, and where such a proxy is not used.

    Raises:
        ServerError: no such model, no version of it is available, none of its signatures can be used, or preprocessing
            is of another version.
        AnswerError: the server has no usable answer to the first questions.
    """
    address = address_of(url)
    server = open_server(address, Patience(timeout_s, tell), proxy)
    version = insist(lambda: available(server.states(), address), tell)
    served = insist(lambda: server.signatures(version), tell)
    chosen = signature or choose(address, served, preprocessing is not None)
    if served is not None and chosen not in served:
        hint = " (a mask-only model has none for whole exams)" if chosen == "predict_exam" else ""
        raise ServerError(f"expected the signature {chosen} at {address}. Received: {', '.join(sorted(served))}{hint}")
    if chosen == "predict_bytes" and preprocessing is None:
        raise ServerError(
            f"expected preprocessing.json of the export beside the signature {chosen}, to make the "
            "network's cubes as the run made them. Received: none; name it with --preprocessing"
        )

    kind = told = kind_of(served, chosen)
    if preprocessing:
        kind = preprocessing.kind
        if told not in (kind, "untold"):
            raise ServerError(
                f"expected preprocessing.json of the version that {address} serves. Received: one with "
                f"another kind of map; there it is a {KINDS[told]}"
            )

    def score(subject: Subject) -> tuple[np.ndarray, np.ndarray, CubeFrame]:
        inputs: dict[str, Any]
        if chosen == "predict_bytes" and preprocessing is not None:
            image, frame = cube_of(subject, preprocessing.settings)
            inputs = {"cube_bytes": zlib.compress(image.astype("<f2").tobytes())}
        else:
            early = load_volume(subject.early_file)
            others = load_others(subject, early, preprocessing.settings.volume) if preprocessing else {}
            inputs = {
                "volume": early.data,
                "zooms": early.zooms,
                **{name: volume.data for name, volume in others.items()},
            }
        answer = insist(lambda: server.predict(version, chosen, inputs, OUTPUTS), tell)
        each, cells = checked(answer, address, preprocessing.folds if preprocessing else None, kind)
        if chosen == "predict_exam":
            frame = frame_of(
                early.data.shape, early.zooms, len(cells)
            )  # one voxel a cell: the same cube, whatever its side
        return each, cells, frame

    number = address.version is None and version is not None
    return Served(score, f"{address}/versions/{version}" if number else str(address), chosen, kind)


def open_server(address: Address, patience: Patience, proxy: bool = False) -> Server:
    """The served model by its address, asked directly unless ``proxy``; nothing is asked yet.

    Raises:
        ServerError: gRPC without tensorflow-serving-api.
    """
    if address.rest:
        from mgkeras.serving.rest import open_rest

        return open_rest(address, patience, proxy)
    if not importlib.util.find_spec("tensorflow_serving"):
        raise ServerError("gRPC needs tensorflow-serving-api: pip install 'mgkeras[serving]', or use REST")
    from mgkeras.serving.rpc import open_rpc

    return open_rpc(address, patience, proxy)


def available(states: Sequence[VersionState], address: Address) -> int | None:
    """The highest version that is available, None where the server has no numbers.

    Raises:
        Busy: none is, but one is on its way.
        ServerError: none is.
    """
    ready = [state for state in states if state.state == "AVAILABLE"]
    if ready:
        return max((state.version for state in ready if state.version is not None), default=None)
    told = ", ".join(
        f"{'' if state.version is None else f'version {state.version} '}{state.state}"
        f"{f' ({state.message})' if state.message else ''}"
        for state in states
    )
    if any(state.state in ("START", "LOADING") for state in states):
        raise Busy(f"expected {address} to be available. Received: {told}")
    raise ServerError(f"expected a version of {address} to be available. Received: {told or 'none'}")


def choose(address: Address, served: Collection[str] | None, with_preprocessing: bool) -> str:
    """The signature to ask, see the module's text; ``served`` is None where the server does not tell."""
    exam, small = "predict_exam", "predict_bytes"
    if with_preprocessing and (address.rest or (served is not None and exam not in served)):
        return small
    return small if served is not None and exam not in served and small in served else exam


def kind_of(served: Mapping[str, tuple[str, ...]] | None, signature: str) -> str:
    """The kind of a served model's maps by what its signature gives, one of score.KINDS."""
    outputs = (served or {}).get(signature)
    if not outputs:
        return "untold"
    return MAP if "log_odds" in outputs else "attention"


def checked(
    answer: Mapping[str, Any], address: Address, folds: tuple[int, ...] | None = None, kind: str = MAP
) -> tuple[np.ndarray, np.ndarray]:
    """(folds,) probabilities of class 1 and (g, g, g) cells of a whole and sane answer.

    Raises:
        AnswerError: half an answer, NaN, probabilities outside [0, 1], or cells where they are to be in it, other
            shapes, or not the folds of preprocessing.json.
    """
    if missing := [name for name in OUTPUTS if name not in answer]:
        raise AnswerError(
            f"expected {', '.join(OUTPUTS)} from {address}. Received: an answer without {', '.join(missing)}"
        )
    both, each, cells = (np.asarray(answer[name], np.float32) for name in OUTPUTS)
    shapes = f"{both.shape}, {each.shape}, {cells.shape}"
    if both.shape != (2,) or each.ndim != 1 or not each.size or cells.ndim != 3 or len({*cells.shape, 0}) != 2:
        raise AnswerError(
            f"expected {', '.join(OUTPUTS)} of shapes (2,), (folds,), (g, g, g) from {address}. Received: {shapes}"
        )
    for name, values in zip(OUTPUTS, (both, each, cells), strict=True):
        free = name == "cells" and kind != "attention"
        if not np.isfinite(values).all() or not (free or -ROUNDING <= values.min() <= values.max() <= 1 + ROUNDING):
            raise AnswerError(
                f"expected {'finite ' * free}{name}{' from 0 to 1' * (not free)} from {address}. "
                f"Received: {values.min()} to {values.max()}"
            )
    if abs(both[1] - each.mean()) > 10 * ROUNDING:
        raise AnswerError(
            f"expected a probability that is the mean of the folds' from {address}. Received: "
            f"{both[1]:.4f} and {each.mean():.4f}"
        )
    if folds and len(folds) != len(each):
        raise AnswerError(
            f"expected preprocessing.json of the served version. Received: one of {len(folds)} folds, "
            f"{address} serves {len(each)}"
        )
    return each, cells
