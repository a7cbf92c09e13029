"""vLLM's NCCL weight transfer with gloo as the communicator: the same protocol on machines without a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, TCPStore
from vllm.distributed.weight_transfer import ParamMeta, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
)

from rlkd.rollout.receiving import SummedUp

DEADLINE = timedelta(seconds=300)  # of a rendezvous, and of one tensor


class GlooGroup:
    """What the protocol asks of its communicator."""

    def __init__(self, host: str, port: int, *, rank: int, world_size: int) -> None:
        store = TCPStore(host, port, world_size, is_master=rank == 0, timeout=DEADLINE)
        self.group: Any = ProcessGroupGloo(store, rank, world_size, DEADLINE)

    def broadcast(self, tensor: Tensor) -> None:
        """From rank 0; back when it is done."""
        self.group.broadcast(tensor, 0).wait()

    def destroy(self) -> None:
        self.group = None


class _UnpackedReceiver(NCCLWeightTransferEngine):
    """NCCLWeightTransferEngine's unpacked way without its CUDA streams."""

    def init_transfer_engine(self, init_info: Any) -> None:
        self.shutdown()
        ours = self.parallel_config
        rank = init_info.rank_offset + ours.data_parallel_index * ours.world_size + ours.rank
        self.model_update_group = GlooGroup(
            init_info.master_address, init_info.master_port, rank=rank, world_size=init_info.world_size
        )

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))  # no accelerator to wait for

    def receive_weights(self, update_info: Any) -> None:
        declared = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        for name, dtype, shape in declared:
            weight = torch.empty(shape, dtype=getattr(torch, dtype))
            self.model_update_group.broadcast(weight)
            self.model.load_weights([(name, weight)])


class GlooReceiver(SummedUp, _UnpackedReceiver):
    """The engine's end."""


@dataclass
class GlooTrainerInitInfo(NCCLTrainerInitInfo):
    """Selects GlooSender."""

    backend: ClassVar[str] = "rlkd_gloo"


class GlooSender(NCCLTrainerWeightTransferEngine):
    """The learner's end: vLLM's own ``send_weights`` over another group."""

    @classmethod
    def trainer_init(cls, init_info: Any, *, client: Any, source: Any = None) -> Self:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender, packed=False)
        if engine.is_sender:
            place = {"master_address": init_info.master_address, "master_port": init_info.master_port}
            told = NCCLWeightTransferInitInfo(**place, rank_offset=1, world_size=init_info.world_size)
            with ThreadPoolExecutor(max_workers=1) as side:  # both ends wait for each other
                invited = side.submit(client.init_weight_transfer_engine, worker_init_payload(told))
                engine.model_update_group = GlooGroup(*place.values(), rank=0, world_size=init_info.world_size)
                invited.result()
        return engine

    def _broadcast(self, source: Any, meta: list[ParamMeta]) -> None:
        if not self.is_sender:
            super()._broadcast(source, meta)
            return
        for _, tensor in self._checked_iter(source, meta):
            self.model_update_group.broadcast(tensor.contiguous())


WeightTransferTrainerFactory.register_engine("rlkd_gloo", GlooSender)
