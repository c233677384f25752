"""The two programs of a training run, its state's beginning and its step, placed on a mesh."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from tclip.models import CLIPConfig
from tclip.parallel.sharding import placed, replicated, state_shardings
from tclip.run.experiment import Experiment
from tclip.run.optim import learning_rate, make_optimizer
from tclip.run.state import Params, TrainState, create_state
from tclip.train.step import StepFunction, make_train_step


@dataclasses.dataclass(frozen=True)
class ShardedStep:
    """Jitted functions, and what they work on.

    Attributes:
      init: from the parameters to start from, or None, to the state; it is born on the mesh.
      step: as `make_train_step` says; it consumes the state.
      state: shapes, dtypes and shardings of the state.
    """

    init: Callable[[Params | None], TrainState]
    step: StepFunction
    state: TrainState


def make_sharded_step(
    experiment: Experiment,
    teacher_model: CLIPConfig | None,
    mesh: Mesh,
    start: Params | None = None,
) -> ShardedStep:
    """Returns the programs of an experiment, not yet compiled.

    Args:
      teacher_model: architecture of the teacher, or None.
      start: the parameters to start from, or their shapes; None for random ones.

    Raises:
      ValueError: the state cannot be spread over the mesh.
    """
    steps = experiment.train.steps
    optimizer = make_optimizer(experiment.optim, steps)
    schedule = learning_rate(experiment.optim, steps)
    init = functools.partial(create_state, experiment, teacher_model, optimizer)
    shapes = jax.eval_shape(init, start)
    shardings = state_shardings(shapes, mesh)
    step = make_train_step(experiment, teacher_model, optimizer, schedule, mesh)
    return ShardedStep(
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))),
        state=placed(shapes, shardings),
    )
