"""The model that is trained: the backbone with a train_step that adds the Dice between its CAM and the mask."""

from __future__ import annotations

import keras
import tensorflow as tf

from mgkeras.models import cam, lanes
from mgkeras.models.backbone import build_backbone
from mgkeras.settings import Settings


class MaskGuided(keras.Model):
    """A functional Keras model whose train_step minimises cross-entropy - lambda x Dice(map, mask).

    The map and the Dice term are those of settings.guidance. Every model kind is trained by this step; they differ in
    lambda and in the volumes they get.
    Build it with :func:`build_model`, which also sets ``settings`` and ``class_weights``.
    """

    settings: Settings
    class_weights: tuple[float, float] = (1.0, 1.0)

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step on a batch of stream.train_stream; returns the epoch's running ce, dice, auc and skipped.

        Under a loss scale (float16) a step whose gradients overflow changes no trained weight and is counted as
        skipped; where the loss itself overflowed it is left out of the running means too.
        """
        volume, mask, label = tf.cast(batch["volume"], tf.float32), batch["mask"], batch["label"]
        with tf.GradientTape() as tape:
            outputs = self(volume, training=True)
            ce, dice, has_mask = self.loss_terms(outputs, mask, label)
            loss = self.loss_of(ce, dice, has_mask)
            scaled = self.optimizer.scale_loss(loss) if hasattr(self.optimizer, "scale_loss") else loss
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        size, shown = tf.cast(tf.shape(label)[0], tf.float32), None
        dice, masked = cam.masked_mean(dice, has_mask), tf.reduce_sum(has_mask)
        probability = outputs["probabilities"][:, 1]
        if isinstance(self.optimizer, lanes.LossScaleOptimizer):
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
            self.skipped.update_state(1 - tf.cast(finite, tf.float32))
            number = tf.math.is_finite(loss)
            ce, dice, probability = (tf.where(number, value, 0) for value in (ce, dice, probability))
            size, masked = (tf.where(number, value, 0) for value in (size, masked))
            shown = tf.where(number, tf.ones_like(probability), 0)  # (b,)
        self.ce_mean.update_state(ce, size)
        self.dice_mean.update_state(dice, masked)
        self.auc.update_state(label, probability, shown)
        return {metric.name: metric.result() for metric in self.metrics}

    def loss_terms(self, outputs: dict[str, tf.Tensor], mask: tf.Tensor, label: tf.Tensor):
        """Cross-entropy (class-weighted mean, scalar), each volume's Dice (b,), and 1 where it has a mask (b,)."""
        weights = tf.gather(tf.constant(self.class_weights, tf.float32), label)
        ce = tf.nn.sparse_softmax_cross_entropy_with_logits(label, outputs["logits"])
        features, guidance = outputs["features"], self.settings.guidance
        moments = cam.batch_moments(features, self.settings.backbone.last_pool)
        weights_of_map, _ = cam.folded_weights(self, *moments)
        chosen = cam.guided_map(cam.class_maps(features, weights_of_map), label, guidance.guided_map)
        dice, has_mask = cam.soft_dice(cam.attention_map(chosen, guidance), cam.mask_cells(mask, features.shape[1]))
        return tf.reduce_sum(weights * ce) / tf.reduce_sum(weights), dice, has_mask

    def loss_of(self, ce: tf.Tensor, dice: tf.Tensor, has_mask: tf.Tensor) -> tf.Tensor:
        """CE - lambda Dice, or CE - lambda log Dice, of the values of loss_terms; scalar.

        With lambda 0 the Dice is only shown, and the gradients are those of cross-entropy alone.
        """
        guidance, size = self.settings.guidance, tf.cast(tf.shape(dice)[0], tf.float32)
        ce = ce * size if guidance.ce == "sum" else ce
        if not guidance.lambda_dice:
            return ce
        term = tf.math.log(dice + cam.EPSILON) if guidance.dice_term == "log" else dice
        return ce - guidance.lambda_dice * cam.masked_mean(term, has_mask)

    @property
    def metrics(self) -> list:
        """The running means and the count of skipped steps, which Keras resets at each epoch's start."""
        return [self.ce_mean, self.dice_mean, self.auc, self.skipped]


def build_model(settings: Settings, *, seed: int = 0, dtype: str = "float32", fold_blocks: int = 0) -> MaskGuided:
    """A model of these settings with fresh weights.

    Args:
        settings: side, backbone and guidance are used; a guided run and a no-mask run start from the same weights.
        seed: of the weights and of dropout.
        dtype: Keras dtype policy of the blocks.
        fold_blocks: how many of the first blocks are computed folded: the same function and weights, for a GPU.
    """
    keras.utils.set_random_seed(seed)
    model = build_backbone(
        settings.volume.side, settings.backbone, seed=seed, dtype=dtype, fold_blocks=fold_blocks, model_class=MaskGuided
    )
    model.settings = settings
    model.ce_mean, model.dice_mean = keras.metrics.Mean("ce"), keras.metrics.Mean("dice")
    model.auc, model.skipped = keras.metrics.AUC(name="auc"), keras.metrics.Sum("skipped")
    return model
