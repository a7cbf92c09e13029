"""Processes: who runs where, and what is said when one does not."""

from rlkd.cluster.hardware import Hardware, check_fit, this_machine, usable_cpus, weights_transport
from rlkd.cluster.ray_cluster import KEEP_MEMORY, Cluster, Pending, Worker, gather

__all__ = [
    "KEEP_MEMORY",
    "Cluster",
    "Hardware",
    "Pending",
    "Worker",
    "check_fit",
    "gather",
    "this_machine",
    "usable_cpus",
    "weights_transport",
]
