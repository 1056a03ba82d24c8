"""An export through the C++ loader that ModelServer uses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from servers import observations
from tensorflow.core.protobuf import saved_model_pb2

LIBRARY = Path(tf.sysconfig.get_lib())
SCRIPT = Path(__file__).with_name("cpp_loader.py")

pytestmark = pytest.mark.skipif(
    not (LIBRARY / "libtensorflow_cc.so.2").exists(),
    reason="this TensorFlow has no libtensorflow_cc.so.2",
)


def signature_of(export_dir, name):
    content = (export_dir / "saved_model.pb").read_bytes()
    (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    return graph.signature_def[name]


def run(export_dir, feeds, fetches):
    asked = {
        "library": str(LIBRARY),
        "export_dir": str(export_dir),
        "feeds": {name: np.asarray(value).tolist() for name, value in feeds.items()},
        "fetches": fetches,
    }
    return subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps(asked),
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.parametrize("kind", ["mlp", "recurrent"])
@pytest.mark.parametrize("batch", [1, 5])
def test_answers_as_python_does(kind, batch, base):
    folder, controllers = base
    controller, path = controllers[kind], folder / kind / "1"
    signature = signature_of(path, "serving_default")
    seen = observations(controller, batch, seed=7)
    state = [s + 0.25 for s in controller.initial_state(batch)]
    inputs = {"observation": seen} | {f"state_{i}": s for i, s in enumerate(state)}
    outputs = ["action", *(f"state_{i}" for i in range(len(state)))]
    finished = run(
        path,
        {signature.inputs[name].name: value for name, value in inputs.items()},
        [signature.outputs[name].name for name in outputs],
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    got = json.loads(finished.stdout.splitlines()[-1])
    expected = controller.act(tf.constant(seen), state)
    for value, wanted in zip(got, [expected.action, *expected.state], strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)


def test_refuses_a_folder_that_holds_none(tmp_path):
    finished = run(tmp_path, {}, [])
    assert finished.returncode != 0
    assert "Could not find SavedModel" in finished.stderr
