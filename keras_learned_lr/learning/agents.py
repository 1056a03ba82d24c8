"""PPO and REINFORCE agents of TF-Agents, set right and made blind to padding."""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.learning.config import LearnerConfig
from keras_learned_lr.learning.networks import build_networks

ACTION_SPEC = tfa.tensor_spec.BoundedTensorSpec((), tf.float32, -1.0, 1.0, "action")


class AgentParts(NamedTuple):
    """An agent and what a learner schedules or saves of it.

    Attributes:
        agent: The `TFAgent`.
        actor: Its policy network.
        critic: Its value network.
        optimizer: Its Adam, built.
        deviation: Variable with the standard deviation of sampled actions.
        train_step: int64 variable with the gradient steps taken.
    """

    agent: Any
    actor: Any
    critic: Any
    optimizer: Any
    deviation: tf.Variable
    train_step: tf.Variable


def make_adam(learning_rate: float, variables: list[Any], decay: float = 0.0) -> Any:
    """Returns the Adam of TF-Agents' Keras for these variables.

    Args:
        learning_rate: The first; may be assigned to.
        variables: What it trains.
        decay: Share of weights, not of biases, that a step takes away, over the
            learning rate (Loshchilov & Hutter 2019, "Decoupled weight decay
            regularization").
    """
    optimizer = tfa.tf_keras.optimizers.Adam(
        learning_rate, epsilon=1e-5, weight_decay=decay or None
    )
    if decay:
        biases = [variable for variable in variables if variable.shape.rank < 2]
        optimizer.exclude_from_weight_decay(biases)
    # Its slots must be there before a step is traced into a graph.
    optimizer.build(variables)
    return optimizer


def build_agent(config: LearnerConfig) -> AgentParts:
    """Builds the agent that `config` describes.

    Observations are float32 `[features + privileged]`, actions float32 `()` in
    [-1, 1].
    """
    observation = tfa.tensor_spec.TensorSpec(
        (len(config.observation_spec.names) + config.privileged,),
        tf.float32,
        "observation",
    )
    actor, critic, deviation = build_networks(config, observation, ACTION_SPEC)
    variables = [*actor.trainable_variables, *critic.trainable_variables]
    optimizer = make_adam(config.learning_rate, variables)
    train_step = tf.Variable(0, dtype=tf.int64, trainable=False, name="train_step")
    common = {
        "time_step_spec": tfa.time_step.time_step_spec(observation),
        "action_spec": ACTION_SPEC,
        "optimizer": optimizer,
        "gradient_clipping": config.gradient_clipping,
        "train_step_counter": train_step,
    }
    if config.algorithm == "ppo":
        agent = PaddedPPOAgent(
            actor_net=actor,
            value_net=critic,
            # Its defaults: no clipping, no GAE, 25 passes unrolled into the graph, and
            # normalizers that one NaN poisons and that scale by 31 before the first
            # update. Observations come scaled and clipped.
            importance_ratio_clipping=config.clip,
            use_gae=True,
            use_td_lambda_return=True,
            lambda_value=config.gae_lambda,
            discount_factor=config.discount,
            num_epochs=1,
            normalize_rewards=False,
            normalize_observations=False,
            update_normalizers_in_train=False,
            compute_value_and_advantage_in_train=False,
            **common,
        )
    else:
        agent = PaddedReinforceAgent(
            actor_network=actor,
            value_network=critic,
            gamma=config.discount,
            normalize_returns=False,  # over padding too; done below
            **common,
        )
    agent.initialize()
    return AgentParts(agent, actor, critic, optimizer, deviation, train_step)


def _normalized(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Returns values with mean 0 and deviation 1 over frames of positive weight."""
    mask = tf.cast(weights > 0, tf.float32)
    count = tf.maximum(tf.reduce_sum(mask), 1.0)
    mean = tf.reduce_sum(values * mask) / count
    variance = tf.reduce_sum(tf.square(values - mean) * mask) / count
    return mask * (values - mean) / tf.sqrt(variance + 1e-8)


class PaddedPPOAgent(tfa.ppo_clip_agent.PPOClipAgent):
    """PPO for rows that are padded and sequences that may be cut off."""

    def compute_advantages(
        self,
        rewards: tf.Tensor,
        returns: tf.Tensor,
        discounts: tf.Tensor,
        value_preds: tf.Tensor,
    ) -> tf.Tensor:
        """Returns advantages `[rows, time]`; `value_preds` are `[rows, time + 1]`."""
        # The original drops the last prediction first and then takes the one before it
        # as the value after the last frame: tensorflow/agents#953.
        return tfa.value_ops.generalized_advantage_estimation(
            values=value_preds[:, :-1],
            final_value=value_preds[:, -1],
            rewards=rewards,
            discounts=discounts,
            td_lambda=self._lambda,
            time_major=False,
        )

    def get_loss(
        self,
        time_steps: Any,
        actions: tf.Tensor,
        act_log_probs: tf.Tensor,
        returns: tf.Tensor,
        normalized_advantages: tf.Tensor,
        action_distribution_parameters: Any,
        weights: tf.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Computes the loss as if frames of weight 0 were not there.

        The original divides by the number of all frames, and has normalized the
        advantages over all of them. Normalizing once more over those that count undoes
        that, as the first time was linear.
        """
        total = tf.maximum(tf.reduce_sum(weights), 1e-8)
        size = tf.cast(tf.size(weights), tf.float32)
        return super().get_loss(
            time_steps,
            actions,
            act_log_probs,
            returns,
            _normalized(normalized_advantages, weights),
            action_distribution_parameters,
            weights * size / total,
            *args,
            **kwargs,
        )


class PaddedReinforceAgent(tfa.reinforce_agent.ReinforceAgent):
    """REINFORCE whose advantages are normalized over the frames that count."""

    def policy_gradient_loss(
        self,
        actions_distribution: Any,
        actions: tf.Tensor,
        is_boundary: tf.Tensor,
        returns: tf.Tensor,
        num_episodes: tf.Tensor,
        weights: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Computes the loss from `returns` that already have the baseline taken off."""
        counts = tf.cast(~is_boundary, tf.float32)
        if weights is not None:
            counts *= weights
        # The original lets the gradient of this loss through to the baseline as well.
        advantages = tf.stop_gradient(_normalized(returns, counts))
        return super().policy_gradient_loss(
            actions_distribution,
            actions,
            is_boundary,
            advantages,
            num_episodes,
            weights,
        )
