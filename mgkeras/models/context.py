"""Blurring what lies outside, or inside, the dilated tumour mask: to train with, and to ask what a decision rests on.

Blurring and dilating are separable, so each is one (side, side) matrix applied along the three axes.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from mgkeras.settings import GuidanceSettings


def blur_matrix(side: int, sigma: float) -> np.ndarray:
    """(side, side) float32: a Gaussian of ``sigma`` voxels along an axis; rows sum to 1, also at the edges."""
    distance = np.arange(side)[:, None] - np.arange(side)[None, :]
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def dilation_matrix(side: int, radius: int) -> np.ndarray:
    """(side, side) float32 of 0 and 1: which voxels along an axis lie within ``radius``."""
    return (np.abs(np.arange(side)[:, None] - np.arange(side)[None, :]) <= radius).astype(np.float32)


def along_axes(volumes: tf.Tensor, matrix: np.ndarray) -> tf.Tensor:
    """Applies a (side, side) matrix to each of the three axes of (b, side, side, side, 1) volumes."""
    for equation in ("ix,bxyzc->biyzc", "iy,bxyzc->bxizc", "iz,bxyzc->bxyic"):
        volumes = tf.einsum(equation, matrix, volumes)
    return volumes


def dilated(masks: tf.Tensor, settings: GuidanceSettings) -> tf.Tensor:
    """Masks (b, side, side, side, 1) bool, widened by a cube of dilation_share of the side (rounded) each way."""
    side = masks.shape[1]
    radius = round(side * settings.dilation_share)
    return along_axes(tf.cast(masks, tf.float32), dilation_matrix(side, radius)) > 0.5


def blurred_outside(volumes: tf.Tensor, masks: tf.Tensor, settings: GuidanceSettings) -> tf.Tensor:
    """Volumes whose tissue outside the dilated mask is blurred; a volume with an empty mask stays as it is.

    Args:
        volumes: (b, side, side, side, 1) float32.
        masks: the same shape, bool.
        settings: dilation_share and blur_share, in shares of the side.
    """
    keep = dilated(masks, settings) | ~tf.reduce_any(masks, [1, 2, 3, 4], keepdims=True)
    return tf.where(keep, volumes, blurred(volumes, settings))


def blurred_inside(volumes: tf.Tensor, masks: tf.Tensor, settings: GuidanceSettings) -> tf.Tensor:
    """Volumes whose tissue inside the dilated mask is blurred; see blurred_outside."""
    return tf.where(dilated(masks, settings), blurred(volumes, settings), volumes)


def blurred(volumes: tf.Tensor, settings: GuidanceSettings) -> tf.Tensor:
    """Volumes (b, side, side, side, 1) blurred everywhere, by blur_share of the side."""
    side = volumes.shape[1]
    return along_axes(volumes, blur_matrix(side, side * settings.blur_share))
