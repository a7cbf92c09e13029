"""The learner's end of vLLM's weight-transfer protocol: layer by layer, from rank 0 to every engine at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory

from rlkd.cluster import gather
from rlkd.learner.weights import Checksum, Route, Sent

BUFFER_BYTES = 2**28  # of packed weights under way; vLLM's own 1 GiB, twice over, is much beside a small model


class WeightSender:
    """Opened on every rank: all of them gather, rank 0 speaks."""

    def __init__(self, route: Route, published: Callable[[], Iterator[tuple[str, Tensor]]], *, rank: int) -> None:
        self.source = _Published(published)
        self.rank = rank
        info = _init_info(route, rank, self.source.buffer_bytes())
        self.engine = WeightTransferTrainerFactory.trainer_init(info, client=_Engines(route), source=self.source)

    def send(self) -> Sent | None:
        """One whole update. Returns: what was sent, on rank 0. Raises: ClusterError naming an engine that fails."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # vLLM packs on streams of its own, which don't wait for the optimizer's
        self.engine.send_weights()
        return None if self.rank else Sent(self.source.checksum.value())

    def close(self) -> None:
        """Leave the group."""
        self.engine.shutdown()


def _init_info(route: Route, rank: int, buffer_bytes: int) -> Any:
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    if route.transport == "ipc":
        return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=buffer_bytes)
    kind = NCCLTrainerInitInfo
    if route.transport == "gloo":
        from rlkd.rollout.gloo_transfer import GlooTrainerInitInfo

        kind = GlooTrainerInitInfo
    host, port = route.address
    size = 1 + len(route.engines) * route.devices
    return kind(
        rank=rank, master_address=host, master_port=port, world_size=size, packed_buffer_size_bytes=buffer_bytes
    )


class _Published(WeightSource):
    """The policy's weights as vLLM's protocol reads them, summed up on their way."""

    def __init__(self, published: Callable[[], Iterator[tuple[str, Tensor]]]) -> None:
        self.published = published
        self.checksum = Checksum()
        self.declared: list[ParamMeta] | None = None

    def metadata(self) -> list[ParamMeta]:
        """Names, types and shapes never change: one pass finds what merging and gathering make of them."""
        if self.declared is None:
            self.declared = [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.published()]
        return self.declared

    def buffer_bytes(self) -> int:
        """CUDA IPC refuses a weight that its buffer does not hold."""
        sizes = [int(math.prod(meta.shape) * meta.dtype.itemsize) for meta in self.metadata()]
        return max(BUFFER_BYTES, *sizes)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self.checksum = Checksum()
        for name, tensor in self.published():
            self.checksum.add(name, tensor)
            yield name, tensor


class _Engines:
    """vLLM's VLLMWeightSyncClient over our workers. To vLLM each engine is a world of its own: we number ranks."""

    def __init__(self, route: Route) -> None:
        self.route = route

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        calls = []
        for index, engine in enumerate(self.route.engines):
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += index * self.route.devices
            calls.append(engine.submit("weight_sync", "init_weight_transfer_engine", {"init_info": info}))
        gather(calls, self.route.deadline_s)

    def start_weight_update(self) -> None:
        self._all("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._all("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        del weight_version  # the worker stamps the version, once the checksum holds
        self._all("finish_weight_update")

    def _all(self, call: str, request: dict[str, Any] | None = None) -> None:
        gather([engine.submit("weight_sync", call, request) for engine in self.route.engines], self.route.deadline_s)
