"""Run by torchrun on two pretended machines: the driver counts the cluster's nodes, the other lends its own."""

from __future__ import annotations

import os
import sys

from rlkd.cluster.joining import join_and_wait, start_head
from rlkd.launch import Launch


def main() -> None:
    launch = Launch.from_environment()
    if launch.role == "join":
        join_and_wait(launch, deadline_s=240.0)
        print(f"machine {launch.node} left", flush=True)
    if launch.role != "driver":
        return
    with start_head(launch, deadline_s=240.0) as address:
        import ray

        ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
        print(f"nodes {sum(node['Alive'] for node in ray.nodes())} at {address}", flush=True)
        ray.shutdown()
        if "--die" in sys.argv:
            os._exit(1)  # no goodbye: as if the machine had lost power
    print(f"address afterwards {os.environ.get('RAY_ADDRESS')}", flush=True)


if __name__ == "__main__":
    main()
