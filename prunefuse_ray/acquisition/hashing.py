"""Chance that depends on a sample's id alone: the same draw in every process, order and shard."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd


def hash_ids(ids_N: npt.NDArray) -> npt.NDArray[np.uint64]:
    """64-bit hashes of ids (strings or integers), the same in every process and on every machine."""
    return pd.util.hash_array(ids_N, categorize=False)


def random_scores(ids_N: npt.NDArray, seed: int, round_: int) -> npt.NDArray[np.float32]:
    """Uniform scores in [0, 1) that depend on (id, seed, round) alone, so neither order nor sharding matters."""
    return scores_of(mix(hash_ids(ids_N), seed, round_))


def scores_of(bits_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Scores in [0, 1) in the order of random bits, of which float32 tells the upper 24."""
    return (bits_N >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def mix(hashes_N: npt.NDArray[np.uint64], seed: int, round_: int) -> npt.NDArray[np.uint64]:
    """64 random bits of each (hash, seed, round)."""
    x_N = hashes_N ^ np.uint64((seed * 0x9E3779B97F4A7C15 + round_ * 0xD1B54A32D192ED03) % 2**64)
    # The finalizer of splitmix64 (Steele, Lea, Flood 2014): every bit of the input reaches every bit of the output.
    with np.errstate(over="ignore"):
        x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))
