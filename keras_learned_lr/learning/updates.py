"""One update of an agent from padded rows, as one graph."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_learned_lr.learning.agents import AgentParts
from keras_learned_lr.learning.config import LearnerConfig


def build_update(
    config: LearnerConfig, parts: AgentParts, generator: tf.random.Generator
) -> Callable[[Any, tf.Tensor], dict[str, tf.Tensor]]:
    """Builds the `tf.function` that makes one update; it traces once a shape.

    Args:
        config: Passes and minibatches.
        parts: The agent.
        generator: Cuts the minibatches.

    Returns:
        A function of `Rows.experience` and `Rows.weights` that trains the agent and
        returns its losses, averaged over the gradient steps.
    """
    agent = parts.agent

    # TF-Agents needs no AutoGraph, and converting its sources takes many seconds.
    @tf.autograph.experimental.do_not_convert
    def step(experience: Any, weights: tf.Tensor) -> tf.Tensor:
        info = agent.train(experience, weights=weights)
        extra = info.extra
        return tf.stack(
            [info.loss, extra.policy_gradient_loss, extra.value_estimation_loss]
        )

    preprocess = tf.autograph.experimental.do_not_convert(agent.preprocess_sequence)

    def ppo(experience: Any, weights: tf.Tensor) -> tf.Tensor:
        experience = preprocess(experience)
        rows, size = weights.shape[0], weights.shape[0] // config.minibatches
        losses = tf.zeros(3)
        for _ in tf.range(config.passes):
            if config.minibatches == 1:
                losses += step(experience, weights)
            else:
                order = tf.argsort(generator.uniform([rows]))
                for part in tf.range(config.minibatches):
                    chosen = tf.ensure_shape(
                        order[part * size : (part + 1) * size], size
                    )
                    batch = tf.nest.map_structure(
                        lambda leaf, chosen=chosen: tf.gather(leaf, chosen), experience
                    )
                    losses += step(batch, tf.gather(weights, chosen))
        return losses / (config.passes * config.minibatches)

    @tf.function
    def update(experience: Any, weights: tf.Tensor) -> dict[str, tf.Tensor]:
        losses = (ppo if config.algorithm == "ppo" else step)(experience, weights)
        total, policy, value = tf.unstack(losses)
        return {"loss": total, "policy_loss": policy, "value_loss": value}

    return update
