"""What would another last layer earn? Slopes of the return by a controller's head.

    python benchmarks/slopes.py meta_training/default/checkpoint-150 --rounds 20

Pairs of trainees, alike in everything but the sign of a small change of the head's
weights, are steered through training tasks to the end (antithetic evolution strategies,
Salimans et al. 2017). Changes are drawn along the principal components of what the head
sees, so that each moves actions by as much. A controller whose head is at an optimum
has no slope along any of them. Prints one JSON object: slopes in log loss with standard
errors, their squared length without noise, and what a shift of every action by one unit
is worth, by family. For an MLP.
"""

import argparse
import dataclasses
import json
from collections import defaultdict

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.actions import changed
from keras_learned_lr.learning import ControllerLearner
from keras_learned_lr.learning.environment import scores
from keras_learned_lr.learning.evaluation import run_controller
from keras_learned_lr.learning.meta_config import read_config
from keras_learned_lr.learning.task_stream import TaskStream, make_sampler

# A unit of change moves an action by so much, before its tanh, in root mean square.
UNIT = 0.12
DIRECTIONS = 16
# A pair counts no more than this, or runs that are lost would outweigh all others.
MOST = 0.3
# Share of the loss before step 1 that is added to every loss: ratios of losses near 0
# are noise.
RESOLUTION = 0.002
LIFT = 0.02
SHORTEST, LONGEST = 100, 1600


class Head:
    """The actor of a learner, whose last layer differs from trainee to trainee."""

    def __init__(self, checkpoint):
        learner = ControllerLearner.load(checkpoint)
        *layers, kernel, bias = [
            variable.numpy() for variable in learner.parts.actor.trainable_variables
        ]
        self.layers = list(zip(layers[::2], layers[1::2], strict=True))
        self.weights = np.concatenate([kernel[:, 0], bias])

    def inputs(self, observation):
        """Returns what the last layer sees, and a one for its bias."""
        for kernel, bias in self.layers:
            observation = np.tanh(observation @ kernel + bias)
        return np.pad(observation, [(0, 0), (0, 1)], constant_values=1.0)

    def run(self, batch, changes):
        """Steers trainees to the end, each with its change of the weights.

        Returns:
            What each earned, minus its final log loss, and the observations of each
            decision.
        """
        weights = self.weights + changes

        def act(observation, state):
            action = np.tanh((self.inputs(observation.numpy()) * weights).sum(1))
            return tf.constant(action, tf.float32), state

        first = scores(batch, batch.trainees.begin(batch.members)[0])
        losses, observed = run_controller(batch, act, [])
        loss = losses + RESOLUTION * first
        return -np.log(np.where(np.isfinite(loss), loss, np.inf)), observed


def pairs_of(batch):
    """Returns a batch whose trainees come in pairs with the same learning rate."""
    rate = tf.repeat(batch.members.learning_rate[::2], 2)
    members = batch.members._replace(learning_rate=rate, default_learning_rate=rate)
    return batch._replace(members=members)


def directions(seen):
    """Returns changes of the weights `[DIRECTIONS, weights]` that move actions alike.

    And how far each has to be followed to move all actions by one unit.
    """
    _, sizes, axes = np.linalg.svd(seen / np.sqrt(len(seen)), full_matrices=False)
    axes, sizes = axes[:DIRECTIONS], sizes[:DIRECTIONS, np.newaxis]
    shift = (axes * sizes)[:, -1]
    return UNIT * axes / sizes, shift / np.linalg.norm(shift)


def slopes(differences, drawn):
    """Returns the mean slope along each direction, and its standard error."""
    each = np.clip(differences, -MOST, MOST)[:, np.newaxis] * drawn / 2.0
    return each.mean(0), each.std(0) / np.sqrt(len(each))


def main(checkpoint, rounds, seed):
    """Draws the pairs and returns what they tell."""
    head = Head(checkpoint)
    config = dataclasses.replace(
        read_config("default"), shortest_horizon=SHORTEST, longest_horizon=LONGEST
    )
    sampler = make_sampler(config)
    form = changed(config.learner.action_form, LIFT)
    draw = TaskStream(config, sampler.watching(sampler.spec, form))
    draw.seed([seed])
    rng = np.random.default_rng(seed)
    trainees = config.tasks * config.group
    none = np.zeros([trainees, len(head.weights)])
    runs = [head.run(draw(), none)[1] for _ in range(config.templates_per_round)]
    inputs = [np.concatenate([head.inputs(one) for one in run]) for run in runs]
    seen = np.concatenate([rng.permutation(rows)[:2000] for rows in inputs])
    changes, shift = directions(seen)
    found, drawn, families = [], [], []
    for _ in range(rounds * config.templates_per_round):
        batch = pairs_of(draw())
        one = rng.standard_normal([trainees // 2, DIRECTIONS])
        both = np.stack([one, -one], axis=1).reshape(trainees, DIRECTIONS)
        plus, minus = head.run(batch, both @ changes)[0].reshape(-1, 2).T
        with np.errstate(invalid="ignore"):
            found.append(np.nan_to_num(plus - minus, nan=0.0))
        drawn.append(one)
        families += [batch.template.family] * len(one)
    found, drawn = np.concatenate(found), np.concatenate(drawn)
    slope, error = slopes(found, drawn)
    rows = defaultdict(list)
    for index, family in enumerate(families):
        rows[family].append(index)
    return {
        "pairs": len(found),
        "median_difference": float(np.median(np.abs(found))),
        "slope": slope.round(4).tolist(),
        "error": error.round(4).tolist(),
        "squared_length": float((slope**2 - error**2).sum()),
        "shift": _shift(found, drawn, shift),
        "shift_by_family": {
            family: _shift(found[chosen], drawn[chosen], shift)
            for family, chosen in sorted(rows.items())
        },
    }


def _shift(differences, drawn, shift):
    slope, error = slopes(differences, (drawn @ shift)[:, np.newaxis])
    return [round(float(slope[0]), 4), round(float(error[0]), 4)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(main(given.checkpoint, given.rounds, given.seed)))
