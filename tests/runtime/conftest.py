"""One Ray of two nodes on this machine for a module."""

import os
import sys
import warnings

import one_ray
import pytest

MEGABYTES = 100 * 2**20


@pytest.fixture(scope="module")
def two_nodes():
    """The address of a cluster of two nodes with six logical CPUs each."""
    from ray.cluster_utils import Cluster

    with one_ray.at_a_time(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        options = dict(num_cpus=6, include_dashboard=False, object_store_memory=MEGABYTES)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            cluster = Cluster(initialize_head=True, head_node_args=options)
            cluster.add_node(num_cpus=6, object_store_memory=MEGABYTES)
            cluster.wait_for_nodes()
        try:
            yield cluster.address
        finally:
            cluster.shutdown()
