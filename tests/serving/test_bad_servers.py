"""Bad addresses, models that are no controller, and servers that answer nonsense."""

import json
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import MLPController, fit, model, rate
from servers import (
    GrpcImpostor,
    Impostor,
    closed_port,
    connect,
    drip,
    export,
)
from tensorflow.core.framework import types_pb2

from keras_learned_lr import GrpcController, RestController, ServingError
from keras_learned_lr.benchmark.loopback import LoopbackServer
from keras_learned_lr.control.description import describe
from keras_learned_lr.control.remote.client import MAX_RESPONSE_BYTES


class TestAddress:
    @pytest.mark.parametrize(
        "url",
        [
            "host:8501/v1/models/learned_lr",
            "ftp://host/v1/models/learned_lr",
            "http://host:8501",
            "http://host:8501/v1/models/",
            "http://host:8501/v1/models/learned_lr:predict",
            "http://host:8501/v1/models/learned_lr/versions/one",
            "http://host:8501/v1/models/learned_lr?x=1",
            "http://host:99999999/v1/models/learned_lr",
            "http:///v1/models/learned_lr",
            None,
            8501,
        ],
    )
    def test_of_rest_that_is_none(self, url):
        with pytest.raises(ValueError, match="http://HOST:8501/v1/models/NAME"):
            RestController(url)

    @pytest.mark.parametrize(
        "target", ["http://host:8500", "host", "host:port", "me@host:8500", "", None]
    )
    def test_of_grpc_that_is_none(self, target):
        with pytest.raises(ValueError, match="HOST:PORT.*Received: "):
            GrpcController(target)

    @pytest.mark.parametrize("client", ["rest", "grpc"])
    def test_where_nobody_listens(self, client):
        place = f"127.0.0.1:{closed_port()}"
        with pytest.raises(ServingError, match=f"{place}.*(reached|UNAVAILABLE)"):
            if client == "grpc":
                GrpcController(place, connect_timeout=0.5)
            else:
                url = f"http://{place}/v1/models/learned_lr"
                RestController(url, connect_timeout=0.5)

    def test_of_the_other_api(self, server):
        with pytest.raises(ServingError, match="UNAVAILABLE"):
            target = server.url.removeprefix("http://")
            GrpcController(target, model="mlp", connect_timeout=0.5)
        with pytest.raises(ServingError, match="broke off its answer"):
            url = f"http://{server.target}/v1/models/mlp"
            RestController(url, connect_timeout=0.5)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"timeout": 0}, "`timeout` must be a positive number. Received: 0"),
            ({"timeout": "1"}, "`timeout` must be"),
            ({"connect_timeout": float("nan")}, "`connect_timeout` must be"),
            ({"version": "1"}, "`version` must be an integer. Received: '1'"),
            ({"version": True}, "`version` must be an integer"),
            ({"label": "no/label"}, "`label` must be .*Received: 'no/label'"),
            ({"version": 1, "label": "a"}, "not both"),
            ({"ca_file": "ca.pem"}, "`ca_file` and .* are for"),
        ],
    )
    @pytest.mark.parametrize("client", ["rest", "grpc"])
    def test_options(self, client, options, match, server):
        with pytest.raises(ValueError, match=match):
            connect(client, server, "mlp", **options)

    def test_version_twice(self, server):
        with pytest.raises(ValueError, match="in the URL or as an argument"):
            RestController(f"{server.url}/v1/models/mlp/versions/1", version=1)


def serve_signatures(folder, **signatures):
    module = tf.Module()
    tf.saved_model.save(module, str(folder / "1"), signatures)
    return LoopbackServer(folder)


def controller_like(told=None, features=22, dtype=tf.float32, action=None):
    """Signatures of a controller that is not quite one."""
    controller = MLPController()
    told = describe(controller) if told is None else told
    answer = action or (lambda o: tf.cast(tf.reduce_sum(o, axis=1), tf.float32))
    observation = tf.TensorSpec([None, features], dtype, name="observation")
    batch = tf.TensorSpec([None], tf.int32, name="batch")
    return {
        "serving_default": tf.function(
            lambda observation: {"action": answer(observation)},
            input_signature=[observation],
        ),
        "describe": tf.function(
            lambda batch: {"json": tf.fill(tf.shape(batch), told)},
            input_signature=[batch],
        ),
    }


def changed(**changes):
    return json.dumps(json.loads(describe(MLPController())) | changes)


MODELS = {
    "another description": (
        lambda: controller_like("hello"),
        "is not a controller: it does not describe itself.*Received: b?'hello'",
    ),
    "a newer format": (
        lambda: controller_like(changed(format_version=9)),
        "format version 9; this keras_learned_lr reads 1",
    ),
    "an unknown feature": (
        lambda: controller_like(
            changed(observation={"version": 2, "names": ["mood", "speed"]})
        ),
        r"Unknown features: \['mood', 'speed'\]",
    ),
    "another version of the observation": (
        lambda: controller_like(changed(observation={"version": 4, "names": []})),
        "observations of version 4; this keras_learned_lr makes version 3",
    ),
    "an unknown action form": (
        lambda: controller_like(changed(action_form={"name": "Leap", "version": 1})),
        "Unknown action form: 'Leap'",
    ),
    "another width": (
        lambda: controller_like(features=21),
        r"'observation' as DT_FLOAT \(-1, 22\).*Received: DT_FLOAT \(-1, 21\)",
    ),
    "another dtype": (
        lambda: controller_like(dtype=tf.float64),
        "must take 'observation' as DT_FLOAT.*Received: DT_DOUBLE",
    ),
    "states that it does not take": (
        lambda: controller_like(changed(state_shapes=[[4]])),
        "'serving_default' must take .*'state_0'",
    ),
    "actions that are not finite": (
        lambda: controller_like(action=lambda o: tf.math.log(o[:, 0] - 1.0)),
        "answers zeros with an action that is not finite. Received: .nan.",
    ),
}


class TestModel:
    @pytest.mark.parametrize("client", ["rest", "grpc"])
    @pytest.mark.parametrize("kind", MODELS)
    def test_that_is_no_controller_of_ours(self, client, kind, tmp_path):
        make, match = MODELS[kind]
        with serve_signatures(tmp_path, **make()) as server:
            with pytest.raises(ValueError, match=f"(?s){match}"):
                connect(client, server)

    @pytest.mark.parametrize("client", ["rest", "grpc"])
    def test_that_is_a_keras_model(self, client, tmp_path):
        trainee = model()
        trainee.export(str(tmp_path / "1"), verbose=False)
        with LoopbackServer(tmp_path) as server:
            with pytest.raises(ValueError, match="is not a controller: its signature"):
                connect(client, server)

    @pytest.mark.parametrize("client", ["rest", "grpc"])
    def test_that_answers_in_another_shape(self, client, tmp_path):
        def action(o):
            return tf.concat([o[:, 0], o[:, 0]], axis=0)

        with serve_signatures(tmp_path, **controller_like(action=action)) as server:
            with pytest.raises(ServingError, match=r"'action' as .*shape \(1,\)"):
                connect(client, server)


def text(body, **headers):
    return lambda handler: handler.reply(body, **headers)


def truncated(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"outputs": ')
    handler.close_connection = True


def endless(handler):
    """A gigabyte, its length not told."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    chunk = b" " * 65536
    try:
        for _ in range(16_384):
            handler.wfile.write(b"10000\r\n" + chunk + b"\r\n")
            handler.server.sent += len(chunk)
    except OSError:
        pass
    handler.close_connection = True


def announced(handler):
    """A gigabyte, told beforehand."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(1 << 30))
    handler.end_headers()
    handler.close_connection = True


BODIES = {
    "html": (text("<html>Sign in", Content_Type="text/html"), "JSON.*text/html.*Sign"),
    "nothing": (text(""), "must answer in JSON"),
    "deep": (text("[" * 200_000), "must answer in JSON.*RecursionError"),
    "a huge number": (text('{"outputs": ' + "9" * 9000 + "}"), "answer in JSON"),
    "binary": (text(b"\x80\x02c__builtin__\nexec\n"), "must answer in JSON"),
    "a list": (text("[1, 2]"), "must answer with a JSON object"),
    "no outputs": (text('{"predictions": [1]}'), "must answer with `outputs`"),
    "truncated": (truncated, "broke off its answer"),
    "endless": (endless, f"more than {MAX_RESPONSE_BYTES} bytes"),
    "announced": (announced, f"more than {MAX_RESPONSE_BYTES} bytes"),
    "compressed": (text(b"", Content_Encoding="gzip"), "answers compressed"),
    "redirect": (text("", status=302), r"redirects \(HTTP 302\)"),
    "slow": (drip, "did not answer within"),
}
OUTPUTS = {
    "a string": ('{"action": ["0.5"], "factor": [1]}', "'action' as numbers of shape"),
    "a flag": ('{"action": [true], "factor": [1]}', "'action' as numbers"),
    "null": ('{"action": null, "factor": [1]}', "'action' as numbers"),
    "ragged": ('{"action": [[1], [1, 2]], "factor": [1]}', "'action' as numbers"),
    "too many": ('{"action": [1, 2], "factor": [1]}', r"of shape \(1,\)"),
    "without a name": ('{"factor": [1], "other": [2]}', "Received: 'None'"),
    "too large": ('{"action": [1' + "0" * 400 + '], "factor": [1]}', "as numbers"),
}
ANSWERS = BODIES | {
    name: (text(f'{{"outputs": {body}}}'), match)
    for name, (body, match) in OUTPUTS.items()
}


class TestRestAnswers:
    """Before the first step an error; during the run a held learning rate."""

    @pytest.fixture(scope="class")
    def impostor(self, server):
        with Impostor(server) as running:
            yield running

    @pytest.fixture(autouse=True)
    def honest(self, impostor):
        impostor.answers.clear()
        yield
        impostor.answers.clear()

    def connect(self, impostor, connect_timeout=10.0):
        url = impostor.url + "/v1/models/mlp"
        return RestController(url, timeout=0.5, connect_timeout=connect_timeout)

    @pytest.mark.parametrize("kind", BODIES)
    @pytest.mark.parametrize("part", ["metadata", "describe"])
    def test_about_the_model(self, kind, part, impostor):
        answer, match = BODIES[kind]
        impostor.answers[part] = answer
        begun = time.monotonic()
        if kind == "no outputs" and part == "metadata":
            match = "did not answer as TensorFlow Serving does"
        with pytest.raises(ServingError, match=f"(?s){match}") as caught:
            self.connect(impostor, connect_timeout=1.0)
        assert time.monotonic() - begun < 3
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize(
        "told",
        [
            {"model_spec": {"version": "1"}, "metadata": {"signature_def": None}},
            {"model_spec": {}, "metadata": {"signature_def": {"signature_def": {}}}},
            {
                "model_spec": {"version": "1"},
                "metadata": {"signature_def": {"signature_def": {"x": {"inputs": 3}}}},
            },
        ],
    )
    def test_metadata_of_another_form(self, told, impostor):
        impostor.answers["metadata"] = text(json.dumps(told))
        with pytest.raises(ServingError, match="did not answer as|in no known form"):
            self.connect(impostor)

    @pytest.mark.parametrize("kind", ANSWERS)
    def test_to_an_observation(self, kind, impostor):
        answer, match = ANSWERS[kind]
        remote = self.connect(impostor)
        impostor.answers["serving_default"] = answer
        with pytest.raises(ServingError, match=f"(?s){match}") as caught:
            remote.act(tf.zeros([1, 22]), [])
        assert len(str(caught.value)) < 1000

    def test_a_gigabyte_is_not_read(self, impostor):
        remote = self.connect(impostor)
        impostor.answers["serving_default"] = endless
        impostor._server.sent = 0
        with pytest.raises(ServingError):
            remote.act(tf.zeros([1, 22]), [])
        time.sleep(0.2)
        # What the sockets between them hold comes on top.
        assert impostor._server.sent < 10 * MAX_RESPONSE_BYTES

    @pytest.mark.parametrize("kind", ["html", "endless", "slow", "a string", "nan"])
    def test_during_a_run_hold_the_rate_with_one_warning(self, kind, impostor):
        nan = text('{"outputs": {"action": [NaN], "factor": [1]}}')
        answer, match = (ANSWERS | {"nan": (nan, "was not finite")})[kind]
        callback = rate(self.connect(impostor))
        watch = At(7, lambda: impostor.answers.update({"serving_default": answer}))
        back = At(13, impostor.answers.clear)
        trainee = model()
        with pytest.warns(
            UserWarning, match=f"(?s)LearnedLearningRate: .*{match}"
        ) as w:
            fit(trainee, [callback, watch, back], epochs=3)
        assert sum("LearnedLearningRate" in str(one.message) for one in w) == 1
        decisions = callback.decisions
        assert decisions["step"].tolist() == [0, 3, 6, 9, 12, 15]
        assert decisions["held"].tolist() == [False] * 3 + [True] * 2 + [False]
        rates = decisions["learning_rate"]
        assert rates[2] == rates[3] == rates[4] != rates[5]
        assert all(np.isfinite(weight).all() for weight in trainee.get_weights())


class At(keras.callbacks.Callback):
    """Does something after a step of the run."""

    def __init__(self, step, action):
        super().__init__()
        self.left, self.action = step, action

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.action()


class TestGrpcAnswers:
    @pytest.fixture(scope="class")
    def impostor(self, server):
        with GrpcImpostor(server) as running:
            yield running

    @pytest.fixture(autouse=True)
    def honest(self, impostor):
        impostor.change = lambda signature, response, context: response
        yield

    def change(self, impostor, wanted, change):
        def apply(signature, response, context):
            if signature == wanted:
                change(response)
            return response

        impostor.change = apply

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda r: r.outputs["action"].tensor_shape.dim.add(size=2), "of shape"),
            (
                # A few bytes that claim to be a terabyte.
                lambda r: r.outputs["action"].tensor_shape.dim.add(size=1 << 38),
                r"of shape \(1,\)",
            ),
            (
                lambda r: setattr(r.outputs["action"], "dtype", types_pb2.DT_STRING),
                "as float32",
            ),
            (
                lambda r: setattr(r.outputs["action"], "tensor_content", b"abc"),
                "as float32",
            ),
            (lambda r: r.outputs.clear(), r"must answer \['action'\]"),
            (
                lambda r: r.outputs["action"].string_val.append(b"x" * (1 << 22)),
                "RESOURCE_EXHAUSTED",
            ),
        ],
        ids=["rank", "terabyte", "dtype", "content", "missing", "large"],
    )
    def test_to_an_observation(self, change, match, impostor):
        remote = GrpcController(impostor.target, model="mlp")
        self.change(impostor, "serving_default", change)
        with pytest.raises(ServingError, match=match) as caught:
            remote.act(tf.zeros([1, 22]), [])
        assert len(str(caught.value)) < 1000

    def test_that_is_not_finite_holds_the_rate(self, impostor):
        remote = GrpcController(impostor.target, model="mlp")
        nan = float("nan")

        def change(response):
            response.outputs["action"].ClearField("tensor_content")
            response.outputs["action"].float_val[:] = [nan]

        callback = rate(remote)
        watch = At(7, lambda: self.change(impostor, "serving_default", change))
        with pytest.warns(UserWarning, match="was not finite"):
            fit(model(), [callback, watch])
        assert callback.decisions["held"].tolist() == [False] * 3 + [True]

    @pytest.mark.parametrize(
        ("signature", "change", "match"),
        [
            ("metadata", lambda r: r.metadata.clear(), "does not tell its signatures"),
            (
                "metadata",
                lambda r: setattr(r.metadata["signature_def"], "value", b"\xff"),
                "in no known form",
            ),
            (
                "describe",
                lambda r: r.outputs["json"].string_val.append(b"more"),
                "as one string",
            ),
        ],
        ids=["none", "garbage", "two strings"],
    )
    def test_about_the_model(self, signature, change, match, impostor):
        self.change(impostor, signature, change)
        with pytest.raises(ServingError, match=match):
            GrpcController(impostor.target, model="mlp", connect_timeout=1.0)


def test_a_callback_with_a_served_controller_that_is_none_touches_nothing(tmp_path):
    """Found out when the run begins: the server has loaded something else since."""
    export(tmp_path)
    with LoopbackServer(tmp_path) as server:
        callback = rate(connect("rest", server))
        tf.saved_model.save(tf.Module(), str(tmp_path / "2"), controller_like("hello"))
        server.models.poll()
        trainee = model()
        before = trainee.get_weights()
        with pytest.raises(ValueError, match="is not a controller"):
            fit(trainee, [callback])
        assert all(map(np.array_equal, before, trainee.get_weights()))
        assert "train_step" not in trainee.__dict__
