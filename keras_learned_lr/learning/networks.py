"""Actor and critic: TF-Agents networks with this package's head and initial weights."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.learning.config import LearnerConfig

# Small enough that an untrained controller keeps the level it finds.
ACTION_GAIN = 0.01
HIDDEN_GAIN = 2.0**0.5


class ScheduledNormal(tfa.network.DistributionNetwork):
    """The actor's head: a Normal whose mean is learned and deviation scheduled.

    The mean passes through tanh, so that it stays in [-1, 1] and a greedy action needs
    no clipping; a sample may lie outside, and is scored where it lies.

    Args:
        sample_spec: Spec of the action, a scalar in [-1, 1].
        deviation: Variable with the standard deviation; whoever schedules it owns it.
    """

    def __init__(self, sample_spec: Any, deviation: tf.Variable) -> None:
        parameters = {
            name: tfa.tensor_spec.TensorSpec((), tf.float32, name)
            for name in ("loc", "scale")
        }
        super().__init__(
            input_tensor_spec=None,
            state_spec=(),
            output_spec=tfa.distribution_spec.DistributionSpec(
                tfa.tfp.distributions.Normal, parameters, sample_spec=sample_spec
            ),
            name="ScheduledNormal",
        )
        self.mean = tfa.tf_keras.layers.Dense(1, activation="tanh", name="mean")
        self._deviation = deviation

    def call(
        self,
        inputs: tf.Tensor,
        outer_rank: int,
        training: bool = False,
        mask: tf.Tensor | None = None,
    ) -> tuple[Any, tuple[()]]:
        """Returns the distribution over actions for `[..., units]` inputs."""
        mean = tf.squeeze(self.mean(inputs, training=training), -1)
        scale = tf.ones_like(mean) * self._deviation
        return self.output_spec.build_distribution(loc=mean, scale=scale), ()


class Visible(tfa.tf_keras.layers.Layer):
    """Cuts off what only the critic may see.

    Args:
        features: Numbers of the observation that stay.
    """

    def __init__(self, features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features = features

    def call(self, observation: tf.Tensor) -> tf.Tensor:
        """Returns `[..., features]`."""
        return observation[..., : self.features]

    def get_config(self) -> dict[str, Any]:
        """Returns what the layer is copied from."""
        return {**super().get_config(), "features": self.features}


def build_networks(
    config: LearnerConfig, observation_spec: Any, action_spec: Any
) -> tuple[Any, Any, tf.Variable]:
    """Builds actor and critic.

    Args:
        config: Which networks, how large, and the seed of their weights.
        observation_spec: TensorSpec `[features + privileged]`, float32.
        action_spec: BoundedTensorSpec `()`, float32, [-1, 1].

    Returns:
        Actor, critic, and the variable with the standard deviation of actions.

    Raises:
        RuntimeError: If the networks came out without the variables they should train.
    """
    deviation = tf.Variable(config.initial_deviation, trainable=False, name="deviation")
    tanh = tfa.tf_keras.activations.tanh
    heads = []

    def head(spec: Any) -> ScheduledNormal:
        heads.append(ScheduledNormal(spec, deviation))
        return heads[-1]

    visible = None
    if config.privileged:
        visible = Visible(len(config.observation_spec.names), name="visible")
    with _undisturbed_randomness():
        if config.network == "mlp":
            actor = tfa.actor_distribution_network.ActorDistributionNetwork(
                observation_spec,
                action_spec,
                preprocessing_layers=visible,
                fc_layer_params=config.hidden,
                activation_fn=tanh,
                continuous_projection_net=head,
            )
            critic = tfa.value_network.ValueNetwork(
                observation_spec, fc_layer_params=config.hidden, activation_fn=tanh
            )
        else:
            recurrent = {
                "input_fc_layer_params": config.hidden,
                "lstm_size": (config.lstm_size,),
                "output_fc_layer_params": None,
                "activation_fn": tanh,
            }
            actor = tfa.actor_distribution_rnn_network.ActorDistributionRnnNetwork(
                observation_spec,
                action_spec,
                preprocessing_layers=visible,
                continuous_projection_net=head,
                **recurrent,
            )
            critic = tfa.value_rnn_network.ValueRnnNetwork(
                observation_spec, **recurrent
            )
        actor.create_variables()
        critic.create_variables()
    _check_trainable(config, actor, critic)
    generator = np.random.default_rng(config.seed)
    for net in (actor, critic):
        for kernel in [v for v in net.trainable_variables if v.shape.rank == 2]:
            _orthogonal(kernel, HIDDEN_GAIN, generator)
    _orthogonal(heads[0].mean.kernel, ACTION_GAIN, generator)
    return actor, critic, deviation


def _check_trainable(config: LearnerConfig, actor: Any, critic: Any) -> None:
    """Guards against networks that would train without an error and without learning.

    It happens when TF-Agents meets Keras 3: layers of one Keras in containers of the
    other are not tracked.
    """
    # A kernel and a bias for each dense layer and the head; three for an LSTM cell.
    wanted = 2 * len(config.hidden) + 2 + 3 * (config.network == "lstm")
    found = len(actor.trainable_variables), len(critic.trainable_variables)
    if found != (wanted, wanted):
        raise RuntimeError(
            f"The actor has {found[0]} and the critic {found[1]} trainable variables; "
            f"each should have {wanted}. TF-Agents has met another Keras than tf_keras "
            "2, most likely because tf_agents was imported before "
            "keras_learned_lr.learning. Import keras_learned_lr.learning first."
        )


def _orthogonal(
    kernel: tf.Variable, gain: float, generator: np.random.Generator
) -> None:
    """Sets orthogonal initial weights (Saxe et al. 2014), the custom with PPO."""
    rows, columns = kernel.shape
    shape = max(rows, columns), min(rows, columns)
    q, r = np.linalg.qr(generator.standard_normal(shape))
    q *= np.sign(np.diag(r))
    kernel.assign(gain * (q if rows >= columns else q.T))


@contextlib.contextmanager
def _undisturbed_randomness() -> Iterator[None]:
    """Puts the user's random states back as they were.

    Building a TF-Agents network draws from all of them, though every weight is set
    again afterwards. There is no public way to read TensorFlow's.
    """
    python, numpy = random.getstate(), np.random.get_state()
    eager = context.context()
    operations = getattr(eager, "_rng", None)
    state = operations.getstate() if operations else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if operations:
            operations.setstate(state)
            # Kernels that hold a random state are cached by their seed.
            eager.clear_kernel_cache()
