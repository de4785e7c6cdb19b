"""PyTorch engines of speed.py: this project's network and loss written over, and MONAI's DenseNet121."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from speed_measure import Row, Task, labels_of, random_volumes, row_of, step_times
from torch import nn
from torch.nn import functional

from mgkeras.settings import BackboneSettings, GuidanceSettings, Settings

EPSILON = 1e-6  # of models.cam
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Twin(nn.Module):
    """The network of models.backbone: volumes (b, 1, s, s, s) -> logits (b, 2) and features (b, 64, g, g, g)."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        layers, channels = [], 1
        for block, (filters, count) in enumerate(zip(settings.filters, settings.convolutions, strict=True)):
            for _ in range(count):
                layers += [nn.Conv3d(channels, filters, 3, padding=1), nn.ReLU(inplace=True)]
                nn.init.kaiming_normal_(layers[-2].weight)
                nn.init.zeros_(layers[-2].bias)
                channels = filters
            if block < len(settings.filters) - 1:
                layers.append(nn.MaxPool3d(2))
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm1d(channels, eps=1e-3, momentum=1 - settings.batch_norm_momentum)
        self.dropout, self.logits = nn.Dropout(settings.dropout), nn.Linear(channels, 2)

    def forward(self, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.blocks(volumes)
        with torch.autocast(volumes.device.type, enabled=False):  # the head is float32, as in this project
            features = features.float()
            pooled = features.mean((2, 3, 4))  # (b, 64)
            return self.logits(self.dropout(self.norm(pooled))), features, pooled


def guided_terms(model: Twin, volumes, masks, labels, settings: GuidanceSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and Dice of MaskGuided.loss_of: volumes (b, 1, s, s, s), masks the same shape, bool."""
    logits, features, pooled = model(volumes)
    with torch.autocast(volumes.device.type, enabled=False):
        scale = model.norm.weight * torch.rsqrt(pooled.var(0, unbiased=False) + model.norm.eps)  # (64,)
        maps = torch.einsum("bkxyz,bk->bxyz", features, (scale * model.logits.weight)[labels])  # the label's map
        mean = maps.mean((1, 2, 3), keepdim=True)
        deviation = torch.sqrt(torch.square(maps - mean).mean((1, 2, 3), keepdim=True) + EPSILON**2)
        attention = torch.sigmoid(
            settings.sigmoid_slope * (maps - mean) / (deviation + EPSILON) + settings.sigmoid_offset
        )
        cells = functional.avg_pool3d(masks.float(), masks.shape[-1] // maps.shape[-1])[:, 0]  # (b, g, g, g)
        cells = cells / cells.amax((1, 2, 3), keepdim=True).clamp(min=EPSILON)
        has_mask = (cells.amax((1, 2, 3)) > 0).float()
        dice = 2 * (attention * cells).sum((1, 2, 3)) / ((attention + cells).sum((1, 2, 3)) + EPSILON)
        dice = (dice * has_mask).sum() / has_mask.sum().clamp(min=1)
        return functional.cross_entropy(logits, labels), dice


def step(key: str, task: Task) -> list[Row]:
    """A step of the engine that the key spells: torch or monai, precision, cl (channels last), compiled."""
    family, precision, *options = key.split("-")
    device = torch.device("cuda" if task.gpu else "cpu")
    if task.gpu and not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # the best counts
    torch.manual_seed(0)
    layout = torch.channels_last_3d if "cl" in options else torch.contiguous_format
    settings = Settings()
    model = (Twin(settings.backbone) if family == "torch" else densenet()).to(device, memory_format=layout).train()
    volumes, masks = (torch.from_numpy(a[:, None]).to(device) for a in random_volumes(task.batch, task.side))
    labels = torch.from_numpy(labels_of(task.batch)).long().to(device)
    half = torch.autocast(device.type, DTYPES[precision]) if precision != "float32" else nullcontext()

    def loss_of(volumes, masks, labels):
        with half:
            inputs = volumes.float().contiguous(memory_format=layout)
            if family == "monai":
                return functional.cross_entropy(model(inputs).float(), labels)
            ce, dice = guided_terms(model, inputs, masks, labels, settings.guidance)
        return ce - settings.guidance.lambda_dice * dice

    run = stepper(
        torch.compile(loss_of) if "compiled" in options else loss_of,
        model,
        settings,
        device,
        (volumes, masks, labels),
        scaled=precision == "float16",
    )
    values, first = step_times(task, run)
    memory = torch.cuda.max_memory_allocated() / 1e9 if task.gpu else None
    note = f"first step {first:.0f} s" if "compiled" in options else ""
    return [
        row_of(
            "step",
            key,
            described(family, precision, options, task),
            task,
            "ms a step",
            values,
            memory_gb=memory,
            note=note,
        )
    ]


def stepper(loss_of, model, settings: Settings, device, batch, *, scaled: bool):
    """run(n) that does n steps of Adam on the batch and waits for the device."""
    optimizer = torch.optim.Adam(model.parameters(), settings.training.learning_rate, eps=1e-7, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss_of(*batch)).backward()
            scaler.step(optimizer)
            scaler.update()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def densenet() -> nn.Module:
    from monai.networks.nets import DenseNet121

    return DenseNet121(spatial_dims=3, in_channels=1, out_channels=2)


def described(family: str, precision: str, options: list[str], task: Task) -> str:
    name = "PyTorch, same network and loss" if family == "torch" else "MONAI DenseNet121, cross-entropy alone"
    parts = [precision + (" (TF32)" if task.gpu and precision == "float32" else "")]
    parts += ["channels last"] * ("cl" in options) + ["compiled"] * ("compiled" in options)
    return f"{name}: {', '.join(parts)}"


def check(path: Path) -> dict[str, float]:
    """How far the twin is from this project on the batch and weights of speed_mgkeras.reference, in float32.

    Returns:
        Absolute differences of ``ce``, ``dice`` and ``loss``, and ``gradient``, the largest over the weights of
        |difference| / |gradient| (Euclidean norms).
    """
    theirs = np.load(path)
    settings = Settings()
    model = Twin(settings.backbone).train()
    model.dropout.p = 0.0
    convolutions = [layer for layer in model.blocks if isinstance(layer, nn.Conv3d)]
    ours = [part for layer in (*convolutions, model.norm, model.logits) for part in (layer.weight, layer.bias)]
    with torch.no_grad():
        for place, weight in enumerate(ours):
            weight.copy_(_as_torch(theirs[f"weight{place}"]))
    volumes, masks = (torch.from_numpy(theirs[name])[:, None] for name in ("volumes", "masks"))
    ce, dice = guided_terms(model, volumes.float(), masks, torch.from_numpy(theirs["labels"]).long(), settings.guidance)
    loss = ce - settings.guidance.lambda_dice * dice
    loss.backward()
    apart = {
        name: abs(value.item() - float(theirs[name])) for name, value in (("ce", ce), ("dice", dice), ("loss", loss))
    }
    gradients = [(weight.grad, _as_torch(theirs[f"gradient{place}"])) for place, weight in enumerate(ours)]
    floor = 1e-3 * max(float(theirs_.norm()) for _, theirs_ in gradients)  # a gradient of 0 has no relative error
    apart["gradient"] = max(float((a - b).norm()) / max(float(b.norm()), floor) for a, b in gradients)
    return apart


def _as_torch(array: np.ndarray) -> torch.Tensor:
    """A Keras weight in PyTorch's axis order: (3, 3, 3, ci, co) -> (co, ci, 3, 3, 3), (k, c) -> (c, k)."""
    return torch.from_numpy(array.transpose(4, 3, 0, 1, 2) if array.ndim == 5 else array.T).contiguous()
