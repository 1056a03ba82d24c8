"""Frames of a replay buffer in, padded rows to train on out."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_learned_lr.learning.episodes import FIRST, LAST


class Rows(NamedTuple):
    """Pieces of episodes, one a row, padded to one length.

    Attributes:
        experience: `Trajectory` of arrays `[rows, time, ...]`.
        weights: float32 `[rows, time]`, 1 where a frame is to be learned from.
    """

    experience: Any
    weights: np.ndarray


def bucket(length: int) -> int:
    """Returns the padded length for `length`: at most a quarter more, few values."""
    octave = 1 << max(length - 1, 0).bit_length()
    grain = max(octave // 8, 1)
    return -(-length // grain) * grain


def join(frames: list[Any]) -> Any:
    """Stacks frames (nests of arrays) along a new leading time axis."""
    return tf.nest.map_structure(lambda *leaves: np.stack(leaves), *frames)


def split(row: Any) -> list[Any]:
    """Cuts one trainee's frames `[time, ...]` into pieces of one episode each.

    Boundary frames, which only lead from one episode to the next, are left out.
    """
    steps = row.step_type != LAST
    row = tf.nest.map_structure(lambda leaf: leaf[steps], row)
    ends = row.next_step_type[:-1] == LAST
    cuts = np.flatnonzero(ends | (row.step_type[1:] == FIRST)) + 1
    edges = [0, *cuts.tolist(), len(row.step_type)]
    return [
        tf.nest.map_structure(lambda leaf, a=a, b=b: leaf[a:b], row)
        for a, b in zip(edges[:-1], edges[1:], strict=True)
        if b > a
    ]


def is_complete(piece: Any) -> bool:
    """Returns whether the episode ended within the piece."""
    return bool(piece.next_step_type[-1] == LAST)


def weigh(piece: Any, seen: int) -> tuple[Any, np.ndarray]:
    """Returns a piece ready to train on, and the weights `[time]` of its frames.

    Args:
        piece: Frames of one episode. Where it is cut off, the last frame only lends
            its value prediction to the one before.
        seen: How many of its first frames were learned from before.
    """
    weights = np.ones(len(piece.reward), np.float32)
    weights[:seen] = 0.0
    if not is_complete(piece):
        # Its reward stands for everything after the cut: the return is bootstrapped,
        # its own advantage is 0, and padding behind it changes nothing.
        reward, discount = piece.reward.copy(), piece.discount.copy()
        reward[-1] = piece.policy_info["value_prediction"][-1]
        discount[-1] = weights[-1] = 0.0
        piece = piece.replace(reward=reward, discount=discount)
    return piece, weights


def pad(
    pieces: list[tuple[Any, np.ndarray]], shortest: int = 0, multiple: int = 1
) -> Rows:
    """Pads weighed pieces to rows of one length.

    There is at least one frame of padding in each row, since PPO learns nothing from
    the last frame of a sequence. Padding says that it leads from one episode to the
    next, has a discount of 0 and a weight of 0.

    Args:
        pieces: What `weigh` returned, at least one.
        shortest: Frames that rows have at least.
        multiple: The number of rows is a multiple of this.
    """
    longest = max(len(weights) for _, weights in pieces)
    time = bucket(max(longest + 1, shortest))
    rows = -(-bucket(len(pieces)) // multiple) * multiple

    def stack(*leaves: np.ndarray) -> np.ndarray:
        whole = np.zeros((rows, time, *leaves[0].shape[1:]), leaves[0].dtype)
        for index, leaf in enumerate(leaves):
            whole[index, : len(leaf)] = leaf
        return whole

    experience = tf.nest.map_structure(stack, *(piece for piece, _ in pieces))
    weights = stack(*(weights for _, weights in pieces))
    real = stack(*(np.ones(len(weights), bool) for _, weights in pieces))
    info = experience.policy_info
    if info:
        # A deviation of 0 would make the log-probability of padding infinite, and
        # 0 · inf is not 0.
        scale = np.where(real, info["dist_params"]["scale"], 1).astype(np.float32)
        info = {**info, "dist_params": {**info["dist_params"], "scale": scale}}
    step_type = np.where(real, experience.step_type, LAST).astype(np.int32)
    next_type = np.where(real, experience.next_step_type, FIRST).astype(np.int32)
    # A row of padding alone would have no last step at all.
    experience = experience.replace(
        step_type=step_type, next_step_type=next_type, policy_info=info
    )
    return Rows(experience, weights)
