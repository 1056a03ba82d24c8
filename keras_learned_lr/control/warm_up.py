"""Warm-up requests, which TensorFlow Serving replays before a version serves."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.controller import Controller

FILE = "assets.extra/tf_serving_warmup_requests"
# ModelServer refuses a version with more than 1000; a few warm every code path.
REQUESTS = 20

Request = tuple[str, dict[str, np.ndarray]]


def warm_up_requests(controller: Controller, observations: np.ndarray) -> list[Request]:
    """Returns the requests of a client whose run brings these observations.

    Args:
        controller: Its recurrent state goes along from one request to the next.
        observations: float32 `[decisions, features]`, of one run, in order.

    Returns:
        Pairs of a signature and its inputs by name: one for each observation, one
        with all of them as a batch, and one for each other signature.
    """
    observations = np.asarray(observations, np.float32)
    state = controller.initial_state(1)
    one = {"batch": np.zeros(1, np.int32)}
    requests: list[Request] = [("describe", one)]
    if state:
        requests.append(("initial_state", one))
    for observation in observations[:REQUESTS, np.newaxis]:
        requests.append(("serving_default", _inputs(observation, state)))
        state = controller.act(tf.constant(observation), state).state
    batch = _inputs(observations, controller.initial_state(len(observations)))
    return [*requests, ("serving_default", batch)]


def write_warm_up(folder: Path, model: str, requests: list[Request]) -> None:
    """Writes requests to where ModelServer looks for them inside a SavedModel.

    Args:
        folder: The SavedModel.
        model: The name that it is served under.
        requests: See `warm_up_requests`.

    Raises:
        ImportError: If tensorflow-serving-api is not installed.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    path = folder / FILE
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            request = predict_pb2.PredictRequest(
                model_spec={"name": model, "signature_name": signature},
                inputs={k: tf.make_tensor_proto(v) for k, v in inputs.items()},
            )
            log = prediction_log_pb2.PredictLog(request=request)
            record = prediction_log_pb2.PredictionLog(predict_log=log)
            writer.write(record.SerializeToString())


def _inputs(observation: np.ndarray, state: list[Any]) -> dict[str, np.ndarray]:
    states = {f"state_{i}": np.asarray(value) for i, value in enumerate(state)}
    return {"observation": observation, **states}
