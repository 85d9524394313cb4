"""A bundle of a network small enough to be made in a test; its weights are random."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from leuko.learning.batches import DEVIATION, MEAN
from leuko.learning.bundle import Bundle, write_bundle
from leuko.learning.card import write_card
from leuko.learning.export import export_network, find_head
from leuko.learning.facts import Decision, Facts, Preprocessing
from leuko.learning.fit import round_to_half

CLASSES = ("EOSINOPHIL", "LYMPHOCYTE", "NEUTROPHIL")
SIZE = 32


def make_network(seed: int = 0, *, half: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 24, 5, stride=2), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(24, len(CLASSES)),
    )  # fmt: skip
    network.train()(torch.randn(64, 3, SIZE, SIZE))
    with torch.no_grad():
        network[-1].weight.mul_(8)  # answers that are sure of something
    if half:
        round_to_half(network)
    return network.eval()


def make_facts(network: nn.Module, architecture: str = "resnet18", **changed: Any) -> Facts:
    classes = changed.pop("classes", CLASSES)
    head = find_head(network, len(classes))
    values = {
        "architecture": architecture,
        "head": head.name,
        "features": head.features,
        "classes": classes,
        "preprocessing": Preprocessing("cell", 20.0, SIZE, MEAN, DEVIATION, 8, light="matched"),
        "decision": Decision(
            1.3, 0.5, 0.9, dict.fromkeys(classes, 0.3), dict.fromkeys(classes, 40)
        ),
        "training": make_training(classes),
        "leuko": "0.1.0",
        "created": "2026-01-31",
    }
    return Facts(**{**values, **changed})


def make_training(classes: tuple[str, ...]) -> dict[str, Any]:
    limits = {"value": 0.9, "low": 0.8, "high": 0.95}
    row = {"precision": 0.9, "recall": 0.9, "f1": 0.9, "n": 40}
    return {
        "data": {
            "name": "cells", "layout": "class-folders", "images": 120, "groups": 100, "rows": 130,
            "counts": dict.fromkeys(classes, 40), "licence": "CC BY 4.0", "credits": "a laboratory",
            "sha256": "0" * 64, "notes": [],
        },
        "protocol": {
            "recipe": "classic", "init": "random", "seed": 0, "fit": {"epochs": 1},
            "judged": "5 folds, split by groups",
        },
        "metrics": {
            **dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece"), limits),
            "n": 120, "per_class": dict.fromkeys(classes, row), "ece_before": 0.1,
            "coverage": {"target": 0.9, "observed": 0.91}, "unidentified": 0.1, "rejected": 0.2,
            "accuracy_of_the_rest": 0.97,
        },
        "parity": {"cells": 120, "largest_difference": 1e-7, "same_classes": True},
    }  # fmt: skip


def state(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@cache
def export_small(size: int, half: bool = False) -> bytes:
    """Made once in each process: it takes seconds."""
    return export_network(make_network(half=half), size=size)


def make_bundle(
    path: Path, model: bytes | None = None, *, half: bool = False, **changed: Any
) -> Bundle:
    """A bundle; `model` is the exported network where it is at hand already.

    With `half` its weights are rounded to half precision first.
    """
    network = make_network(half=half)
    facts = make_facts(network, **changed)
    if model is None:
        model = export_small(facts.preprocessing.size, half)
    return write_bundle(path, facts, weights=state(network), model=model, card=write_card(facts))
