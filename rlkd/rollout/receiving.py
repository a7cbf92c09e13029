"""The engine's end of vLLM's weight-transfer protocol. Imported inside vLLM's worker processes, where it registers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from rlkd.learner.weights import Checksum
from rlkd.rollout.vllm_engine import with_head


class SummedUp:
    """Mixed into a receiver of vLLM's: sums up what arrives before the model takes it, and renews a tied head."""

    model: Any
    model_config: Any
    checksum: Checksum

    def start_weight_update(self) -> None:
        self.checksum = Checksum()
        super().start_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        tied = bool(getattr(self.model_config.hf_config, "tie_word_embeddings", False))
        self.model = _Loading(model, self.checksum, tied=tied)
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model


class _Loading:
    """Stands in for the model while weights arrive: receivers call nothing but ``load_weights``."""

    def __init__(self, model: Any, checksum: Checksum, *, tied: bool) -> None:
        self.model = model
        self.checksum = checksum
        self.tied = tied

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        named = list(weights)
        for name, tensor in named:
            self.checksum.add(name, tensor)
        return self.model.load_weights(with_head(named) if self.tied else named)


class NcclReceiver(SummedUp, NCCLWeightTransferEngine):
    """NCCL broadcast from rank 0 of the learners; joins anew when the learners ask again."""

    def init_transfer_engine(self, init_info: Any) -> None:
        self.shutdown()
        super().init_transfer_engine(init_info)


class IpcReceiver(SummedUp, IPCWeightTransferEngine):
    """CUDA memory of the learner on the same GPU."""


class ReceivedWeights:
    """vLLM makes its worker class inherit this (``worker_extension_cls``)."""

    weight_transfer_engine: Any

    def received_checksum(self) -> int:
        """Of everything since the update began, on this worker."""
        return int(self.weight_transfer_engine.checksum.value())


WeightTransferEngineFactory.register_engine("rlkd_nccl", NcclReceiver)
WeightTransferEngineFactory.register_engine("rlkd_ipc", IpcReceiver)
WeightTransferEngineFactory.register_engine("rlkd_gloo", "rlkd.rollout.gloo_transfer", "GlooReceiver")
