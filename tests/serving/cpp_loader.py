"""Runs a SavedModel through TensorFlow's C API, without Python's TensorFlow.

`TF_LoadSessionFromSavedModel` is the loader that ModelServer uses. Reads a JSON object
from stdin (`library` folder, `export_dir`, `feeds` by tensor name as nested lists,
`fetches` as tensor names) and prints the fetched float32 tensors.
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

FLOAT = 1


class Output(ctypes.Structure):
    """TF_Output: an operation and the index of one of its outputs."""

    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


def load(folder):
    """Loads libtensorflow_cc and tells ctypes what its functions return."""
    mode = ctypes.RTLD_GLOBAL
    ctypes.CDLL(str(Path(folder) / "libtensorflow_framework.so.2"), mode=mode)
    library = ctypes.CDLL(str(Path(folder) / "libtensorflow_cc.so.2"), mode=mode)
    for name in (
        *("TF_NewStatus", "TF_NewGraph", "TF_NewSessionOptions", "TF_AllocateTensor"),
        *("TF_LoadSessionFromSavedModel", "TF_GraphOperationByName", "TF_TensorData"),
    ):
        getattr(library, name).restype = ctypes.c_void_p
    library.TF_Message.restype = ctypes.c_char_p
    library.TF_TensorByteSize.restype = ctypes.c_size_t
    library.TF_Dim.restype = ctypes.c_int64
    return library


class Session:
    """A SavedModel, loaded by TensorFlow's C++ loader."""

    def __init__(self, library, export_dir):
        self._tf = library
        self._status = ctypes.c_void_p(library.TF_NewStatus())
        self._graph = ctypes.c_void_p(library.TF_NewGraph())
        options = ctypes.c_void_p(library.TF_NewSessionOptions())
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = ctypes.c_void_p(
            library.TF_LoadSessionFromSavedModel(
                *(options, None, export_dir.encode(), tags, 1),
                *(self._graph, None, self._status),
            )
        )
        self._check()

    def run(self, feeds, fetches):
        """Feeds float32 arrays and returns float32 arrays."""
        count_in, count_out = len(feeds), len(fetches)
        inputs = (Output * count_in)(*map(self._output, feeds))
        outputs = (Output * count_out)(*map(self._output, fetches))
        tensors = (ctypes.c_void_p * count_in)(*map(self._tensor, feeds.values()))
        results = (ctypes.c_void_p * count_out)()
        self._tf.TF_SessionRun(
            *(self._session, None, inputs, tensors, count_in),
            *(outputs, results, count_out, None, 0, None, self._status),
        )
        self._check()
        return [self._array(ctypes.c_void_p(result)) for result in results]

    def _output(self, name):
        operation, index = name.split(":")
        found = self._tf.TF_GraphOperationByName(self._graph, operation.encode())
        assert found, f"no operation {operation}"
        return Output(found, int(index))

    def _tensor(self, value):
        value = np.ascontiguousarray(value, np.float32)
        shape = (ctypes.c_int64 * value.ndim)(*value.shape)
        size = ctypes.c_size_t(value.nbytes)
        tensor = self._tf.TF_AllocateTensor(FLOAT, shape, value.ndim, size)
        place = self._tf.TF_TensorData(ctypes.c_void_p(tensor))
        ctypes.memmove(place, value.ctypes.data, value.nbytes)
        return tensor

    def _array(self, tensor):
        assert self._tf.TF_TensorType(tensor) == FLOAT
        rank = self._tf.TF_NumDims(tensor)
        shape = [self._tf.TF_Dim(tensor, axis) for axis in range(rank)]
        size = self._tf.TF_TensorByteSize(tensor)
        content = ctypes.string_at(self._tf.TF_TensorData(tensor), size)
        return np.frombuffer(content, np.float32).reshape(shape)

    def _check(self):
        if self._tf.TF_GetCode(self._status) != 0:
            sys.exit(self._tf.TF_Message(self._status).decode())


def main():
    asked = json.load(sys.stdin)
    session = Session(load(asked["library"]), asked["export_dir"])
    values = session.run(asked["feeds"], asked["fetches"])
    assert "tensorflow" not in sys.modules
    print(json.dumps([value.tolist() for value in values]))


if __name__ == "__main__":
    main()
