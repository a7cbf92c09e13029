"""Processes: who runs where, and what is said when one does not."""

from rlkd.cluster.fit import check_fit, gpu_share, settle, sharing, teachers_beside, weights_transport
from rlkd.cluster.hardware import Hardware, slow_precisions, this_machine, usable_cpus
from rlkd.cluster.ray_cluster import Cluster, Pending, Worker, gather

__all__ = [
    "Cluster",
    "Hardware",
    "Pending",
    "Worker",
    "check_fit",
    "gather",
    "gpu_share",
    "settle",
    "sharing",
    "slow_precisions",
    "teachers_beside",
    "this_machine",
    "usable_cpus",
    "weights_transport",
]
