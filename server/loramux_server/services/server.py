"""ServerService: what this server is."""

from loramux import __version__
from loramux.v1 import server_pb2
from loramux_server.config import ServerConfig
from loramux_server.engine.messages import ModelInfo
from loramux_server.rpc import Context


class ServerService:
    """Implements `loramux.v1.ServerService`."""

    def __init__(self, model: ModelInfo, config: ServerConfig) -> None:
        self._response = server_pb2.GetServerInfoResponse(
            version=__version__,
            base_model=server_pb2.BaseModel(
                name=model.name,
                architecture=model.architecture,
                fingerprint=model.fingerprint,
                dtype=model.dtype,
                device=model.device,
                context_length=model.context_length,
                vocab_size=model.vocab_size,
                has_tokenizer=model.tokenizer_json is not None,
                num_parameters=model.num_parameters,
                has_chat_template=model.chat_template is not None,
            ),
            max_running_requests=config.max_running,
            max_upload_bytes=config.max_upload,
        )

    async def GetServerInfo(
        self, request: server_pb2.GetServerInfoRequest, context: Context
    ) -> server_pb2.GetServerInfoResponse:
        """Describe the server and its base model."""
        return self._response
