"""The one training loop: float training, quantisation-aware training and distillation.

They differ by config: a teacher or none, a ternary policy or none, the weights of the losses.
"""

import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
from grain.experimental import ThreadPrefetchIterDataset
from jax.sharding import Mesh

from tclip import evals
from tclip.data import View, batch_keys, open_source, train_batches
from tclip.data.batch_layout import batch_layout
from tclip.files import write_whole
from tclip.inference import Model
from tclip.losses import check_negatives
from tclip.models import CLIPConfig, effective_weights
from tclip.parallel import processes
from tclip.parallel.processes import local_rows, main_says, put_rows, put_whole
from tclip.parallel.sharding import batch_sharding, check_batch, make_mesh, param_shardings
from tclip.processing import Tokenizer
from tclip.run.checkpoint import Checkpoints, has_checkpoint
from tclip.run.experiment import Experiment, check_resumable, read_experiment
from tclip.run.state import TrainState
from tclip.train.bad_steps import NAMED, BadSteps
from tclip.train.metric_writer import MetricWriter, read_metrics
from tclip.train.preemption import Preempted, StopRequests
from tclip.train.profiler import Profiler
from tclip.train.setup import RunSetup, continue_as, set_up_run
from tclip.train.sharded_step import make_sharded_step
from tclip.train.teacher import put_teacher
from tclip.train.throughput import workload

RESULT_FILE = "result.json"

logger = logging.getLogger(__name__)


def train(experiment: Experiment, workdir: str | Path) -> dict[str, Any]:
    """Trains, or continues where `workdir` was left.

    A continued run ends with the same bits as one that was never interrupted on the same machine.
    On another number of processes, or another mesh, it goes on with the same batches. Where there
    are several processes all call this, and see the same `workdir`; process 0 alone writes there,
    but for the checkpoints.

    Args:
      experiment: what to train; vocabulary and end-of-text token are taken from the tokenizer.
      workdir: receives config.json, tokenizer.json, preprocessor_config.json, checkpoints/,
        metrics.jsonl, tensorboard/, goodput.jsonl, profile/ where a trace is asked for and, when
        training is over, result.json.

    Returns:
      What result.json holds: the last row of training metrics and of evaluation ("eval/...").

    Raises:
      FolderInUseError: another program trains in `workdir`.
      ValueError: the experiment contradicts itself, its teacher or what is in `workdir`.
      FileNotFoundError: the data, the tokenizer or the teacher is missing.
      FloatingPointError: loss, gradient or update were not finite train.max_bad_steps times in a
        row.
      CheckpointError: a checkpoint cannot be written, or none can be read.
      Preempted: SIGTERM came; what was trained is saved.
    """
    workdir, started = Path(workdir), time.time()
    with StopRequests() as stop, processes.folder_of_all(workdir):
        is_resumed = bool(main_says(has_checkpoint(workdir)))
        if is_resumed:
            saved = read_experiment(workdir)
            experiment = continue_as(saved, experiment)
            check_resumable(saved, experiment, workdir)
            if main_says((workdir / RESULT_FILE).is_file()):
                logger.info("%s: training is finished; nothing to do", workdir)
                return json.loads((workdir / RESULT_FILE).read_text())
        mesh = make_mesh(experiment.mesh)
        check_batch(experiment.train.batch_size, experiment.optim.accumulate, mesh)
        check_negatives(experiment.loss, experiment.train.batch_size, mesh)
        take_steps(set_up_run(experiment, workdir, is_resumed), workdir, mesh, started, stop)
        if processes.is_main():
            write_result(workdir)
        processes.wait_for_all("result")
    return json.loads((workdir / RESULT_FILE).read_text())


def take_steps(
    run: RunSetup, workdir: Path, mesh: Mesh, started: float, stop: StopRequests
) -> None:
    """Takes the steps that are left, with all that is due between them; raises as `train`.

    Args:
      started: when this start of the run began, as of time.time().
    """
    experiment, teacher = run.experiment, teacher_config(run)
    config = experiment.train
    work = workload(experiment, teacher, run.cache is not None, mesh)
    teacher_params = put_teacher(run.teacher, run.cache, mesh)
    first_weights, batches_from = run.start, make_reader(run, mesh)
    tokenizer, data, layout = run.tokenizer, run.data, layout_of(run, mesh)
    del run  # and with it the teacher's copy in host memory
    jitted = make_sharded_step(experiment, teacher, mesh, first_weights)
    param_sharding = jax.tree.map(lambda x: x.sharding, jitted.state.trainable["params"])
    evaluate = make_evaluation(experiment, tokenizer, param_sharding)

    def keys_of(step: int) -> list[str]:
        return batch_keys(data, config.batch_size, experiment.seed, step - 1, NAMED)

    with Checkpoints(workdir, config.keep_last, config.best_metric) as checkpoints:
        # The state is born on the mesh, and stays there: every step consumes the one before it.
        state = checkpoints.restore(jitted.state)
        if state is None:
            if first_weights is not None:
                first_weights = put_whole(first_weights, param_shardings(first_weights, mesh))
            state = jitted.init(first_weights)
        del first_weights
        start = int(state.step)
        if start:
            logger.info("%s: continuing after step %d", workdir, start)

        bad_steps = BadSteps(config.max_bad_steps, workdir, keys_of)
        step_fn = jitted.step.lower(state, teacher_params, layout).compile()
        writes_to = workdir if processes.is_main() else None
        with (
            contextlib.closing(batches_from(start)) as batches,
            MetricWriter(writes_to, start, config.steps, work, config.log_every, started) as writer,
            Profiler(experiment.profile, workdir, writer.pause) as profiler,
            jax.transfer_guard("disallow"),
        ):
            for step in range(start + 1, config.steps + 1):
                with profiler.step(step):
                    with writer.waiting():
                        batch = next(batches)
                    state, metrics = step_fn(state, teacher_params, batch)
                    writer.write_train(step, metrics)
                stops = stop.is_last(step) and step < config.steps
                evaluates = evaluate is not None and is_due(step, config.eval_every, config.steps)
                saves = stops or is_due(step, config.checkpoint_every, config.steps)
                if evaluates or saves:
                    writer.flush()
                for ended, values in writer.take_ended():
                    bad_steps.check(ended, values)
                # Nor are older checkpoints lost while something is wrong.
                saves = saves and (not bad_steps.in_a_row or stops or step == config.steps)
                evaluation = None
                if evaluate is not None and evaluates:
                    with writer.pause(), jax.transfer_guard("allow"):
                        evaluation = evaluate(state)
                        writer.write_eval(step, evaluation)
                if saves:
                    with writer.pause(), jax.transfer_guard("allow"):
                        checkpoints.save(step, state, evaluation)
                if evaluation is not None and config.best_metric not in evaluation:
                    checkpoints.wait()
                    raise ValueError(
                        f"train.best_metric={config.best_metric!r} is none of what the evaluation "
                        f"gives: {', '.join(evaluation)}; what was trained is saved"
                    )
                if stops:
                    checkpoints.wait()
                    raise Preempted(f"{workdir}: stopped after step {step}, which is saved")


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the last one, happens now."""
    return step % every == 0 or step == last


def teacher_config(run: RunSetup) -> CLIPConfig | None:
    """The teacher's architecture; None without one."""
    return None if run.teacher is None else run.teacher.config


def teacher_view(run: RunSetup) -> View | None:
    """How a teacher that runs sees a sample; None without one."""
    if run.teacher is None or run.cache is not None:
        return None
    return View(run.teacher.preprocess, run.teacher.tokenizer)


def layout_of(run: RunSetup, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch, as shapes."""
    student, teacher = View(run.experiment.preprocess, run.tokenizer), teacher_view(run)
    return batch_layout(
        run.experiment.train.batch_size,
        run.experiment.model,
        teacher_config(run),
        stored_embeddings=run.cache is not None,
        own_pixels=teacher is not None and not student.same_pixels(teacher),
        own_tokens=teacher is not None and not student.same_tokens(teacher),
        sharding=batch_sharding(mesh),
    )


def make_reader(run: RunSetup, mesh: Mesh) -> Callable[[int], grain.DatasetIterator]:
    """Returns a function from the number of a global batch to an iterator that begins with it.

    The batches are on the mesh before they are asked for; every process has read the rows that its
    devices hold.
    """
    config = run.experiment.train
    sharding = batch_sharding(mesh)
    batches_from = functools.partial(
        train_batches,
        run.data,
        View(run.experiment.preprocess, run.tokenizer),
        config.batch_size,
        run.experiment.seed,
        config.num_workers,
        local_rows(sharding, config.batch_size),
        teacher=teacher_view(run),
        embeddings=run.cache,
    )

    def read(first_batch: int) -> grain.DatasetIterator:
        batches = batches_from(first_batch=first_batch).map(
            lambda batch: put_rows(batch, config.batch_size, sharding)
        )
        # A thread puts the next batch on the devices while they run the step of this one.
        return iter(ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1))

    return read


def make_evaluation(
    experiment: Experiment, tokenizer: Tokenizer, shardings: Any
) -> Callable[[TrainState], dict[str, float]] | None:
    """Returns a function from the state to metrics, or None if there is nothing to evaluate on.

    It runs on all devices, and gives the same in every process.

    Args:
      shardings: of the parameters.
    """
    config = experiment.eval
    if not config.data.source:
        return None
    with processes.main_first("evaluation data"):
        source = open_source(config.data)
    weights_fn = jax.jit(
        lambda w: effective_weights(w["params"], w["quant"], experiment.quant),
        out_shardings=shardings,
    )
    batch = batch_sharding(jax.tree.leaves(shardings)[0].mesh)

    def evaluate(state: TrainState) -> dict[str, float]:
        weights = weights_fn(state.weights)
        model = Model(experiment.model, weights, tokenizer, experiment.preprocess, batch)
        return evals.evaluate(model, source, config.batch_size, config.num_workers)

    return evaluate


def write_result(workdir: Path) -> None:
    """Writes result.json, the mark of a finished run, from the last rows of the metrics."""
    rows = read_metrics(workdir)
    result = {}
    for row in rows:
        if row["step"] == rows[-1]["step"]:
            result |= row
    write_whole(workdir / RESULT_FILE, json.dumps(result, indent=2) + "\n")
