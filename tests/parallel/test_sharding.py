"""The mesh, and rules by path."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from tclip.parallel.sharding import (
    AXES,
    MeshConfig,
    batch_sharding,
    check_batch,
    make_mesh,
    param_shardings,
    state_shardings,
)
from tests.helpers import tiny

P = PartitionSpec


def test_the_mesh_takes_all_devices_or_the_first_few():
    assert make_mesh(MeshConfig()).shape == {"slice": 1, "data": 8, "fsdp": 1, "tensor": 1}
    mesh = make_mesh(MeshConfig(data=2))
    assert list(mesh.devices.flat) == jax.devices()[:2]
    assert mesh.axis_names == AXES
    assert mesh.axis_types == (AxisType.Auto,) * 4


def test_data_takes_what_the_other_axes_leave():
    mesh = make_mesh(MeshConfig(slice=2, fsdp=2))
    assert mesh.shape == {"slice": 2, "data": 2, "fsdp": 2, "tensor": 1}
    # Halves of the devices are slices.
    assert set(mesh.devices[0].flat) == set(jax.devices()[:4])


@pytest.mark.parametrize(
    "sizes", [{"data": 9}, {"fsdp": 3}, {"fsdp": 16}, {"slice": 2, "data": 2, "tensor": 4}]
)
def test_axes_that_do_not_fit_the_devices_are_an_error(sizes):
    with pytest.raises(ValueError, match=r"mesh: .* do not fit the 8 devices"):
        make_mesh(MeshConfig(**sizes))


@pytest.mark.parametrize("sizes", [{"data": 0}, {"data": -2}, {"fsdp": -1}, {"tensor": 0}])
def test_sizes_of_axes_are_positive(sizes):
    with pytest.raises(ValueError, match=f"mesh.{next(iter(sizes))}=.*: must be at least 1"):
        MeshConfig(**sizes)


@dataclasses.dataclass(frozen=True)
class SlicedDevice:
    """A TPU of one of several slices, as far as the order of a mesh goes."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0
    coords: tuple = (0, 0, 0)
    core_on_chip: int = 0


def sliced_devices(slices: int) -> list[SlicedDevice]:
    # A slice of 2 x 2 chips.
    grid = [(x, y, 0) for y in range(2) for x in range(2)]
    return [
        SlicedDevice(id=4 * s + i, slice_index=s, coords=coords)
        for s in range(slices)
        for i, coords in enumerate(grid)
    ]


def test_only_the_slice_axis_crosses_between_slices():
    mesh = make_mesh(MeshConfig(fsdp=2), sliced_devices(2))
    assert mesh.shape == {"slice": 2, "data": 2, "fsdp": 2, "tensor": 1}
    for index in range(2):
        assert len({device.slice_index for device in mesh.devices[index].flat}) == 1


def test_a_number_of_slices_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match=r"mesh\.slice=4: the devices come in 2 slices"):
        make_mesh(MeshConfig(slice=4), sliced_devices(2))


def test_batches_split_evenly_over_micro_batches_and_devices():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    check_batch(24, 2, mesh)
    for batch_size, accumulate in ((12, 2), (0, 1), (8, 0), (4, 3)):
        with pytest.raises(ValueError, match=f"batch_size={batch_size} is not divisible"):
            check_batch(batch_size, accumulate, mesh)


def test_a_batch_is_split_along_its_first_axis_and_repeated_over_tensor():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    x = jax.device_put(jnp.zeros((16, 3)), batch_sharding(mesh))
    assert {shard.data.shape for shard in x.addressable_shards} == {(4, 3)}


RULES = ((r".*/kernel", P(None, "fsdp")), (r"a/.*", P()))


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_the_first_matching_rule_decides_and_speaks_of_the_last_dimensions():
    mesh = make_mesh(MeshConfig(fsdp=8))
    tree = {"a": {"kernel": array(3, 4, 16), "bias": array(4)}}
    shardings = param_shardings(tree, mesh, RULES)
    assert shardings["a"]["kernel"].spec == P(None, None, "fsdp")
    assert shardings["a"]["bias"].is_fully_replicated


def test_every_parameter_needs_a_rule():
    tree = {"a": {"kernel": array(4, 16), "bias": array(4)}, "b": [array(3)]}
    with pytest.raises(ValueError, match="no sharding rule matches 'b/0'"):
        param_shardings(tree, make_mesh(MeshConfig()), RULES)


def test_every_rule_needs_a_parameter():
    with pytest.raises(ValueError, match=r"rule 'a/\.\*' matches no parameter"):
        param_shardings({"b": {"kernel": array(4, 16)}}, make_mesh(MeshConfig()), RULES)


def test_a_dimension_that_does_not_divide_is_an_error_with_a_remedy():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    tree = {"a": {"kernel": array(4, 12), "bias": array(4)}}
    with pytest.raises(ValueError, match=r"a/kernel \[4, 12\]: mesh.fsdp = 8 .* such as 4"):
        param_shardings(tree, mesh, RULES)


def test_what_belongs_to_a_weight_follows_it():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    weight = {"mlp": {"fc2": {"kernel": array(64, 32)}}}
    quant = {
        "mlp/fc2/kernel": {"log_scale": array(1, 32), "log_threshold": array(4, 32)},
        "mlp/fc1/kernel": {"log_scale": array(3, 1)},
    }
    state = {"step": array(), "params": weight, "quant": quant, "adapters": {"x": array(3, 5)}}
    state |= {"opt_state": [{"mu": {"params": weight, "quant": quant}, "count": array()}]}
    shardings = state_shardings(state, mesh)
    for part in (shardings, shardings["opt_state"][0]["mu"]):
        assert part["params"]["mlp"]["fc2"]["kernel"].spec == P("tensor", "fsdp")
        groups = part["quant"]["mlp/fc2/kernel"]
        assert groups["log_scale"].spec == P(None, "fsdp")
        assert groups["log_threshold"].spec == P("tensor", "fsdp")
        assert part["quant"]["mlp/fc1/kernel"]["log_scale"].is_fully_replicated
    assert shardings["adapters"]["x"].is_fully_replicated
    assert shardings["step"].is_fully_replicated


def test_a_state_has_nothing_that_no_rule_is_for():
    with pytest.raises(ValueError, match="no sharding rule is for 'step/x'"):
        state_shardings({"step": {"x": array(2)}}, make_mesh(MeshConfig()))


def test_the_rules_fit_both_layouts_of_the_model():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for scan in (False, True):
        config = dataclasses.replace(tiny.config(), scan_layers=scan)
        shapes = jax.eval_shape(lambda config=config: tiny.init_params(config, jax.random.key(0)))
        kernel = param_shardings(shapes, mesh)["text"]["blocks" if scan else "blocks_1"]
        expected = P(*(None,) * scan, None, ("tensor", "fsdp"))
        assert kernel["attn"]["k_proj"]["kernel"].spec == expected
