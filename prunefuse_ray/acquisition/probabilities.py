"""Predicted probabilities from logits, and what follows from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Class probabilities over the last axis of logits (..., C), in float64."""
    z = logits.astype(np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    e = np.exp(z)
    return e / e.sum(axis=-1, keepdims=True)


def entropy_of(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Entropy in nats over the last axis."""
    return -np.sum(p * np.log(np.maximum(p, np.finfo(np.float64).tiny)), axis=-1)


def gradient_factor(p_NC: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """p - y (N, C), y the one-hot predicted class: the gradient of the cross-entropy, at the label that the network
    would give itself, with respect to the logits. Times the features it is BADGE's gradient embedding.

    The entry of that class is the one with a minus sign, which it keeps as a zero, too: what is rounded later on still
    says which class it was."""
    a_NC, rows, classes = p_NC.copy(), np.arange(len(p_NC)), p_NC.argmax(axis=1)
    a_NC[rows, classes] = -(1.0 - a_NC[rows, classes])
    return a_NC.astype(np.float32)
