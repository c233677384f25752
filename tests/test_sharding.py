"""The mesh, and rules by path."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from tclip.sharding import MeshConfig, batch_sharding, check_batch, make_mesh, tree_shardings


def test_the_mesh_takes_all_devices_or_the_first_few():
    assert make_mesh(MeshConfig()).shape == {"data": 8}
    mesh = make_mesh(MeshConfig(data=2))
    assert list(mesh.devices.flat) == jax.devices()[:2]
    assert mesh.axis_types == (AxisType.Auto,)


@pytest.mark.parametrize("data", [0, 9, -2])
def test_more_devices_than_there_are_is_an_error(data):
    with pytest.raises(ValueError, match=f"mesh.data={data}: there are 8 devices"):
        make_mesh(MeshConfig(data=data))


def test_batches_split_evenly_over_micro_batches_and_devices():
    mesh = make_mesh(MeshConfig(data=4))
    check_batch(24, 2, mesh)
    for batch_size, accumulate in ((12, 2), (0, 1), (8, 0), (4, 3)):
        with pytest.raises(ValueError, match=f"batch_size={batch_size} is not divisible"):
            check_batch(batch_size, accumulate, mesh)


def test_a_batch_is_split_along_its_first_axis():
    x = jax.device_put(jnp.zeros((16, 3)), batch_sharding(make_mesh(MeshConfig())))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 3)}


def test_the_first_matching_rule_decides_and_every_leaf_needs_one():
    mesh = make_mesh(MeshConfig())
    tree = {"a": {"kernel": 0, "bias": 0}, "b": [0]}
    rules = ((r".*/kernel", PartitionSpec("data")), (r"a/.*", PartitionSpec()))
    with pytest.raises(ValueError, match="no sharding rule matches 'b/0'"):
        tree_shardings(tree, mesh, rules)
    shardings = tree_shardings({"a": tree["a"]}, mesh, rules)
    assert shardings["a"]["kernel"].spec == PartitionSpec("data")
    assert shardings["a"]["bias"].spec == PartitionSpec()
