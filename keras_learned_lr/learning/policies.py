"""TF-Agents policies as controllers, and the policy that a learner collects with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_learned_lr.control.actions import ActionForm, AnchoredScaleFactor
from keras_learned_lr.control.controller import PolicyOutput
from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.observation.spec import ObservationSpec


class CollectPolicy(tfa.tf_policy.TFPolicy):
    """Samples from an agent's policy, unclipped and from a generator of its own.

    An agent's own collect policy draws from TensorFlow's global random state, and that
    of REINFORCE clips what it drew, so that the learner would score another action.

    Args:
        policy: The agent's collect policy; its actions are one Normal.
        generator: Where the noise comes from.
        exploring: Bool variable; False takes the mean.
    """

    def __init__(
        self, policy: Any, generator: tf.random.Generator, exploring: tf.Variable
    ) -> None:
        super().__init__(
            policy.time_step_spec,
            policy.action_spec,
            policy_state_spec=policy.policy_state_spec,
            info_spec=policy.info_spec,
            clip=False,
            name="CollectPolicy",
        )
        self._policy = policy
        self._generator = generator
        self._exploring = exploring

    def _variables(self) -> Sequence[tf.Variable]:
        return self._policy.variables()

    def _distribution(self, time_step: Any, policy_state: Any) -> Any:
        return self._policy.distribution(time_step, policy_state)

    def _action(self, time_step: Any, policy_state: Any, seed: Any = None) -> Any:
        step = self._distribution(time_step, policy_state)
        mean, deviation = step.action.loc, step.action.scale
        noise = self._generator.normal(tf.shape(mean))
        noise *= tf.cast(self._exploring, tf.float32)
        return step._replace(action=mean + deviation * noise)


def time_steps(observation: tf.Tensor) -> Any:
    """Returns observations `[batch, features]` as TF-Agents time steps.

    All say that they are in the middle of an episode: what came before is in the
    controller's state, which a first step would reset.
    """
    batch = tf.shape(observation)[:1]
    middle = tf.fill(batch, tfa.time_step.StepType.MID)
    return tfa.time_step.TimeStep(
        middle, tf.zeros(batch), tf.ones(batch), tf.cast(observation, tf.float32)
    )


class PolicyController:
    """A TF-Agents policy as a controller; greedy if the policy is.

    Args:
        policy: A `TFPolicy`, or what `tf.saved_model.load` made of one. Observations
            float32 `[features]`, actions float32 `()` or `[1]`.
        observation_spec: What it was trained to see.
        action_form: What its actions mean.
        observation_shape: Shape of one observation; the policy's own if None.
        state_spec: Nest of specs of its recurrent state; the policy's own if None.
        privileged: Numbers behind the observation that the policy has room for and
            does not look at.

    Raises:
        ValueError: If the policy sees another number of features than the spec names.

    Attributes:
        variables: What the policy computes with.
    """

    def __init__(
        self,
        policy: Any,
        *,
        observation_spec: ObservationSpec | None = None,
        action_form: ActionForm | None = None,
        observation_shape: Any = None,
        state_spec: Any = None,
        privileged: int = 0,
    ) -> None:
        self.observation_spec = observation_spec or ObservationSpec()
        self.action_form = action_form or AnchoredScaleFactor()
        if observation_shape is None:
            observation_shape = policy.time_step_spec.observation.shape
        if state_spec is None:
            state_spec = policy.policy_state_spec
        wanted = [len(self.observation_spec.names) + privileged]
        if list(observation_shape) != wanted:
            raise ValueError(
                f"The policy takes observations of shape {list(observation_shape)}, "
                f"but `observation_spec` describes {wanted}. Pass the ObservationSpec "
                f"that it was trained with. Received: {self.observation_spec}"
            )
        self._policy = policy
        self._privileged = privileged
        self._state_spec = state_spec
        found = getattr(policy, "model_variables", None)
        if found is None:
            found = policy.variables
        self.variables: Sequence[tf.Variable] = list(
            found() if callable(found) else found
        )

    def initial_state(self, batch_size: int) -> list[tf.Tensor]:
        """Returns the recurrent state before the first decision, zeros."""
        return [
            tf.zeros([batch_size, *spec.shape], spec.dtype)
            for spec in tf.nest.flatten(self._state_spec)
        ]

    @tf.autograph.experimental.do_not_convert
    def act(self, observation: tf.Tensor, state: list[tf.Tensor]) -> PolicyOutput:
        """Answers observations of shape `[batch, features]`; works inside a graph."""
        nested = tf.nest.pack_sequence_as(self._state_spec, list(state))
        padded = tf.pad(observation, [[0, 0], [0, self._privileged]])
        step = self._policy.action(time_steps(padded), nested)
        (action,) = tf.nest.flatten(step.action)
        action = tf.reshape(action, tf.shape(observation)[:1])
        return PolicyOutput(action, tf.nest.flatten(step.state), step.info)


def load_policy_saver(
    path: str | Path,
    *,
    observation_spec: ObservationSpec | None = None,
    action_form: ActionForm | None = None,
) -> PolicyController:
    """Loads a folder that TF-Agents' `PolicySaver` wrote, as a controller.

    A SavedModel is a program: load only what you trust.

    Args:
        path: The folder, with `saved_model.pb` and `policy_specs.pbtxt`.
        observation_spec: What the policy was trained to see.
        action_form: What its actions mean.

    Raises:
        ValueError: If there is no saved policy, or its observation does not fit.
    """
    specs_file = Path(path) / "policy_specs.pbtxt"
    if not specs_file.is_file():
        raise ValueError(
            f"Not a PolicySaver folder, it has no {specs_file.name}. Received: {path}"
        )
    specs = tfa.tensor_spec.from_pbtxt_file(str(specs_file))
    return PolicyController(
        tf.saved_model.load(str(path)),
        observation_spec=observation_spec,
        action_form=action_form,
        observation_shape=specs["collect_data_spec"].observation.shape,
        state_spec=specs["policy_state_spec"],
    )
