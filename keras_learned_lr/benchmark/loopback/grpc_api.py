"""PredictionService and ModelService, as ModelServer has them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_learned_lr.benchmark.loopback.models import (
    DEFAULT_SIGNATURE,
    Models,
    StatusError,
)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the other methods are unimplemented."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Runs a signature of the model and version asked for."""
        with _status(context):
            return predict(self._models, request)

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Tells the signatures of the model and version asked for."""
        with _status(context):
            return metadata(self._models, request)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Tells which versions there are and in which state."""
        with _status(context):
            return status(self._models, request)


def predict(models: Models, request: predict_pb2.PredictRequest) -> Any:
    """Answers a PredictRequest, from whichever API it came."""
    _check_spec(request)
    version, servable = models.find(request.model_spec)
    outputs = servable.predict(request)
    response = predict_pb2.PredictResponse(
        outputs={name: tf.make_tensor_proto(value) for name, value in outputs.items()}
    )
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = version
    response.model_spec.signature_name = (
        request.model_spec.signature_name or DEFAULT_SIGNATURE
    )
    return response


def metadata(models: Models, request: Any) -> Any:
    """Answers a GetModelMetadataRequest, from whichever API it came."""
    _check_spec(request)
    if not request.metadata_field:
        raise StatusError(
            "INVALID_ARGUMENT",
            "GetModelMetadataRequest must specify at least one metadata_field",
        )
    for field in request.metadata_field:
        if field != "signature_def":
            raise StatusError(
                "INVALID_ARGUMENT", f"Metadata field {field} is not supported"
            )
    version, servable = models.find(request.model_spec)
    signatures = get_model_metadata_pb2.SignatureDefMap(
        signature_def=servable.signatures
    )
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = version
    response.metadata["signature_def"].Pack(signatures)
    return response


def status(models: Models, request: Any) -> Any:
    """Answers a GetModelStatusRequest, from whichever API it came."""
    _check_spec(request)
    return get_model_status_pb2.GetModelStatusResponse(
        model_version_status=models.status(request.model_spec)
    )


def _check_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise StatusError("INVALID_ARGUMENT", "Missing ModelSpec")


@contextlib.contextmanager
def _status(context: Any) -> Iterator[None]:
    try:
        yield
    except StatusError as error:
        context.abort(grpc.StatusCode[error.code], str(error))
