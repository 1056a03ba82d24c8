"""The stand-in server against what ModelServer's two APIs say."""

import time

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT
from servers import export, observations
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_learned_lr.benchmark.loopback import LoopbackServer
from keras_learned_lr.control.warm_up import FILE as WARM_UP


@pytest.fixture(scope="module")
def http():
    with httpx.Client(trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def stubs(server):
    with grpc.insecure_channel(server.target) as channel:
        yield (
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model_service_pb2_grpc.ModelServiceStub(channel),
        )


class TestRest:
    def predict(self, http, server, body, path="/v1/models/mlp:predict"):
        return http.post(server.url + path, json=body)

    def test_column_and_row_format(self, http, server, base):
        controller = base[1]["mlp"]
        seen = observations(controller)
        expected = controller.act(tf.constant(seen), []).action
        columns = self.predict(http, server, {"inputs": seen.tolist()}).json()
        assert set(columns) == {"outputs"}
        assert set(columns["outputs"]) == {"action", "factor"}
        np.testing.assert_allclose(columns["outputs"]["action"], expected, rtol=1e-5)
        rows = self.predict(http, server, {"instances": seen.tolist()}).json()
        actions = [row["action"] for row in rows["predictions"]]
        np.testing.assert_allclose(actions, expected, rtol=1e-5)
        named = {"instances": [{"observation": row} for row in seen.tolist()]}
        assert self.predict(http, server, named).json() == rows

    def test_an_only_output_has_no_name(self, http, server):
        body = {"signature_name": "describe", "inputs": {"batch": [0, 0]}}
        told = self.predict(http, server, body).json()
        assert len(told["outputs"]) == 2
        assert told["outputs"][0].startswith('{"action_form"')

    def test_status_and_metadata(self, http, server):
        told = http.get(server.url + "/v1/models/mlp").json()
        ok = {"error_code": "OK", "error_message": ""}
        version = {"version": "1", "state": "AVAILABLE", "status": ok}
        assert told == {"model_version_status": [version]}
        told = http.get(server.url + "/v1/models/mlp/versions/1/metadata").json()
        assert told["model_spec"]["version"] == "1"
        signature = told["metadata"]["signature_def"]["signature_def"]["describe"]
        assert signature["method_name"] == "tensorflow/serving/predict"
        assert signature["inputs"]["batch"]["dtype"] == "DT_INT32"

    @pytest.mark.parametrize(
        ("path", "body", "status", "message"),
        [
            ("half:predict", {"inputs": 1}, 404, "not found for request: Latest(half)"),
            ("mlp/versions/9:predict", {"inputs": 1}, 404, "Specific(mlp, 9)"),
            ("mlp/labels/x:predict", {"inputs": 1}, 400, "version label: x"),
            ("mlp:guess", {}, 400, "Malformed request: POST /v1/models/mlp:guess"),
            ("mlp:predict", [], 400, "JSON Value: [] Is not object"),
            ("mlp:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
            ("mlp:predict", {"inputs": [["a"]]}, 400, "is not of expected type: float"),
            ("mlp:predict", {"inputs": [[1, 2], [3]]}, 400, "unexpected size: 1 at"),
            ("mlp:predict", {"inputs": [[1], 2]}, 400, "incorrect level: 2 in the"),
            ("mlp:predict", {"inputs": [[True]]}, 400, "not of expected type: float"),
            ("mlp:predict", {"inputs": {"o": 1}}, 400, "named input: observation in"),
            ("mlp:predict", {"instances": []}, 400, "No values in 'instances' array"),
            ("mlp:predict", {"inputs": 1, "instances": []}, 400, "expecting only one"),
            ("recurrent:predict", {"inputs": [[1.0]]}, 400, "inputs is a plain value"),
            (
                *("mlp:predict", {"inputs": 1, "signature_name": "x"}, 400),
                'signature name: "x" not found in signature def',
            ),
            (
                *("mlp:predict", {"inputs": 1, "signature_name": 3}, 400),
                "'signature_name' key must be a string value",
            ),
        ],
    )
    def test_errors(self, http, server, path, body, status, message):
        got = self.predict(http, server, body, f"/v1/models/{path}")
        assert got.status_code == status
        assert message in got.json()["error"]

    def test_errors_of_what_is_no_json_or_no_path(self, http, server):
        url = server.url + "/v1/models/mlp:predict"
        assert "is empty" in http.post(url).json()["error"]
        assert "JSON Parse error" in http.post(url, content="{x").json()["error"]
        deep = http.post(url, content="[" * 100_000).json()["error"]
        assert "JSON Parse error" in deep
        assert http.get(server.url + "/metrics").status_code == 404
        assert http.get(server.url + "/v1/models/half").status_code == 404

    def test_a_wrong_width_is_an_invalid_argument(self, http, server):
        got = self.predict(http, server, {"inputs": [[1.0, 2.0]]})
        assert got.status_code == 400

    def test_a_signature_without_inputs_is_out_of_its_reach(self, http, tmp_path):
        """Which is why `describe` has one."""
        module = tf.Module()
        signature = tf.function(lambda: {"json": tf.constant("{}")}, input_signature=[])
        tf.saved_model.save(module, str(tmp_path / "1"), {"describe": signature})
        with LoopbackServer(tmp_path) as bare:
            body = {"signature_name": "describe", "inputs": {}}
            got = self.predict(http, bare, body, "/v1/models/learned_lr:predict")
            assert got.status_code == 400
            assert "Failed to get input map for signature: describe" in got.text


class TestGrpc:
    def request(self, name="mlp", signature="", **inputs):
        request = predict_pb2.PredictRequest(
            inputs={k: tf.make_tensor_proto(v) for k, v in inputs.items()}
        )
        request.model_spec.name = name
        request.model_spec.signature_name = signature
        return request

    def test_predicts(self, stubs, base):
        controller = base[1]["mlp"]
        seen = observations(controller)
        got = stubs[0].Predict(self.request(observation=seen))
        expected = controller.act(tf.constant(seen), []).action
        action = tf.make_ndarray(got.outputs["action"])
        np.testing.assert_allclose(action, expected, rtol=1e-5)
        assert got.model_spec.version.value == 1

    def test_status(self, stubs):
        request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "mlp"})
        (told,) = stubs[1].GetModelStatus(request).model_version_status
        assert told.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE

    @pytest.mark.parametrize(
        ("change", "code", "message"),
        [
            ({"name": "half"}, "NOT_FOUND", r"Servable not found .*Latest\(half\)"),
            ({"signature": "x"}, "FAILED_PRECONDITION", 'signature key "x" not found'),
            ({"extra": 1.0}, "INVALID_ARGUMENT", r"2!=1 .*Sent extra: {extra}"),
            (
                {"observation": np.zeros([1, 22])},
                *("INVALID_ARGUMENT", "to be float but double is provided"),
            ),
        ],
    )
    def test_errors(self, stubs, base, change, code, message):
        asked = {"observation": observations(base[1]["mlp"])} | change
        with pytest.raises(grpc.RpcError, match=f"(?s){message}") as caught:
            stubs[0].Predict(self.request(**asked))
        assert caught.value.code().name == code

    def test_metadata_errors(self, stubs):
        request = get_model_metadata_pb2.GetModelMetadataRequest()
        with pytest.raises(grpc.RpcError, match="Missing ModelSpec"):
            stubs[0].GetModelMetadata(request)
        request.model_spec.name = "mlp"
        with pytest.raises(grpc.RpcError, match="at least one metadata_field"):
            stubs[0].GetModelMetadata(request)


# The model config of docs/serving.md, which has two versions and labels.
DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
CONFIG = DOCS.split("```proto\n")[1].split("```")[0]


def config_of(folder):
    assert "'/models/learned_lr'" in CONFIG
    return CONFIG.replace("/models/learned_lr", str(folder))


class TestVersions:
    def states(self, server, http, name="learned_lr"):
        told = http.get(f"{server.url}/v1/models/{name}").json()
        found = told.get("model_version_status", [])
        return {int(entry["version"]): entry["state"] for entry in found}

    def until(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)

    def test_a_new_one_is_loaded_while_the_old_one_serves(self, http, tmp_path):
        export(tmp_path)
        with LoopbackServer(tmp_path, poll_seconds=0.02) as server:
            assert self.states(server, http) == {1: "AVAILABLE"}
            (tmp_path / ".export-x" / "2").mkdir(parents=True)
            (tmp_path / "notes.txt").write_text("")
            export(tmp_path, seed=1)
            self.until(lambda: self.states(server, http).get(2) == "AVAILABLE")
            self.until(lambda: self.states(server, http).get(1) == "END")

    def test_one_that_does_not_load_leaves_the_old_one_serving(self, http, tmp_path):
        export(tmp_path)
        (tmp_path / "2").mkdir()
        (tmp_path / "2" / "saved_model.pb").write_bytes(b"no")
        with LoopbackServer(tmp_path, poll_seconds=0.02) as server:
            export(tmp_path)
            self.until(lambda: self.states(server, http).get(3) == "AVAILABLE")
            assert self.states(server, http)[2] == "END"

    def test_a_failing_warm_up_request_fails_the_load(self, http, tmp_path):
        export(tmp_path)
        request = predict_pb2.PredictRequest(model_spec={"name": "learned_lr"})
        from tensorflow_serving.apis import prediction_log_pb2

        log = prediction_log_pb2.PredictionLog(predict_log={"request": request})
        with tf.io.TFRecordWriter(str(tmp_path / "1" / WARM_UP)) as writer:
            writer.write(log.SerializeToString())
        with LoopbackServer(tmp_path) as server:
            assert self.states(server, http) == {1: "END"}

    def test_all_warm_up_requests_are_replayed(self, tmp_path):
        export(tmp_path, "recurrent")
        with LoopbackServer(tmp_path) as server:
            _, servable = server.models.find(
                predict_pb2.PredictRequest(model_spec={"name": "learned_lr"}).model_spec
            )
            assert servable.warmed_up == 2 + 5 + 1

    def test_labels_of_a_config_file(self, http, tmp_path):
        for seed in (1, 2):
            export(tmp_path, seed=seed)
        with LoopbackServer(config=config_of(tmp_path)) as server:
            for label, version in (("stable", "1"), ("canary", "2")):
                url = f"{server.url}/v1/models/learned_lr/labels/{label}/metadata"
                assert http.get(url).json()["model_spec"]["version"] == version
