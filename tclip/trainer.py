"""The one training loop: float training, quantisation-aware training and distillation.

They differ by config: a teacher or none, a ternary policy or none, the weights of the losses.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tclip import evals
from tclip.checkpoint import Checkpoints, has_checkpoint, load_trained
from tclip.data import (
    BadSample,
    Source,
    Tokenizer,
    clip_tokenizer,
    load_tokenizer,
    open_source,
    save_preprocess,
    train_batches,
    train_tokenizer,
)
from tclip.experiment import (
    Experiment,
    check_hidden_layers,
    check_resumable,
    read_experiment,
    write_experiment,
)
from tclip.files import write_whole
from tclip.inference import Model
from tclip.metrics import MetricWriter, read_metrics
from tclip.models import CLIPConfig
from tclip.optim import learning_rate, make_optimizer
from tclip.packed import PREPROCESSOR, TOKENIZER
from tclip.quant import ternarize_params
from tclip.sharding import batch_sharding, check_batch, make_mesh, tree_shardings
from tclip.state import Params, TrainState, create_state, random_start
from tclip.step import Batch, make_train_step

RESULT_FILE = "result.json"
# Samples whose captions train a tokenizer: more hardly change it.
TOKENIZER_SAMPLES = 20_000

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen model to learn from. Attributes: config: architecture; params: as it is applied."""

    config: CLIPConfig
    params: Params


def train(experiment: Experiment, workdir: str | Path) -> dict[str, Any]:
    """Trains, or continues where `workdir` was left.

    A continued run ends with the same bits as one that was never interrupted on the same machine.

    Args:
      experiment: what to train; vocabulary and end-of-text token are taken from the tokenizer.
      workdir: receives config.json, tokenizer.json, preprocessor_config.json, checkpoints/,
        metrics.jsonl, tensorboard/ and, when training is over, result.json.

    Returns:
      What result.json holds: the last row of training metrics and of evaluation ("eval/...").

    Raises:
      ValueError: the experiment contradicts itself, its teacher or what is in `workdir`.
      FileNotFoundError: the data, the tokenizer or the teacher is missing.
      FloatingPointError: the loss is not finite.
      CheckpointError: a checkpoint cannot be written or read.
    """
    workdir = Path(workdir)
    if has_checkpoint(workdir):
        saved = read_experiment(workdir)
        experiment = with_vocabulary(
            experiment, saved.model.text.vocab_size, saved.model.text.eot_token_id
        )
        check_resumable(saved, experiment, workdir)
        if (workdir / RESULT_FILE).is_file():
            logger.info("%s: training is finished; nothing to do", workdir)
            return json.loads((workdir / RESULT_FILE).read_text())
    config = experiment.train
    mesh = make_mesh(experiment.mesh)
    check_batch(config.batch_size, experiment.optim.accumulate, mesh)
    source = open_source(experiment.train_data)
    experiment, tokenizer = prepare_workdir(experiment, workdir, source)
    teacher = load_teacher(experiment, mesh)
    evaluate = make_evaluation(experiment, tokenizer)
    iterator = make_iterator(experiment, source, tokenizer)
    optimizer = make_optimizer(experiment.optim, config.steps)
    schedule = learning_rate(experiment.optim, config.steps)
    step_fn = make_train_step(experiment, teacher.config, optimizer, schedule, mesh)

    # The state is born on the mesh, and stays there: every step consumes the one before it.
    init = functools.partial(create_state, experiment, teacher.config, optimizer)
    abstract_state = jax.eval_shape(init, teacher.params)
    shardings = tree_shardings(abstract_state, mesh)
    step_fn = jax.jit(step_fn, donate_argnums=0, out_shardings=(shardings, None))

    with Checkpoints(workdir, config.keep_last, config.best_metric) as checkpoints:
        start = checkpoints.latest_step or 0
        if start:
            logger.info("%s: continuing after step %d", workdir, start)
            state = checkpoints.restore(_place(abstract_state, shardings), iterator)
        else:
            if teacher.config is not None:
                reason = random_start(experiment, teacher.config)
                origin = f"random weights: {reason}" if reason else "the teacher's weights"
                logger.info("the student starts from %s", origin)
            state = jax.jit(init, out_shardings=shardings)(teacher.params)

        with MetricWriter(
            workdir, start, config.steps, config.batch_size, config.log_every
        ) as writer:
            for step in range(start + 1, config.steps + 1):
                batch = put_batch(next(iterator), mesh)
                state, metrics = step_fn(state, teacher.params, batch)
                writer.write_train(step, metrics)
                evaluation = None
                if evaluate and is_due(step, config.eval_every, config.steps):
                    writer.flush()
                    evaluation = evaluate(state)
                    writer.write_eval(step, evaluation)
                if is_due(step, config.checkpoint_every, config.steps):
                    writer.flush()
                    checkpoints.save(step, state, iterator, evaluation)
    return write_result(workdir)


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the last one, happens now."""
    return step % every == 0 or step == last


def prepare_workdir(
    experiment: Experiment, workdir: Path, source: Source
) -> tuple[Experiment, Tokenizer]:
    """Writes config, tokenizer and preprocessing; returns the experiment with its vocabulary.

    The tokenizer is that of the run which is continued, else the teacher's, else the config's.
    """
    context_length = experiment.model.text.context_length
    path = workdir / TOKENIZER
    if has_checkpoint(workdir):
        tokenizer = load_tokenizer(path, context_length)
    else:
        tokenizer = make_tokenizer(experiment, source)
        workdir.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path)
        save_preprocess(experiment.preprocess, workdir / PREPROCESSOR)
    experiment = with_vocabulary(experiment, tokenizer.vocab_size, tokenizer.eot_token_id)
    write_experiment(experiment, workdir)
    return experiment, tokenizer


def make_tokenizer(experiment: Experiment, source: Source) -> Tokenizer:
    """Returns the teacher's tokenizer, or the one that the config describes."""
    config, context_length = experiment.tokenizer, experiment.model.text.context_length
    if experiment.teacher.path:
        return load_tokenizer(Path(experiment.teacher.path) / TOKENIZER, context_length)
    if config.kind == "clip":
        return clip_tokenizer(config.path, context_length)
    if config.kind == "file":
        return load_tokenizer(config.path, context_length)
    return train_tokenizer(captions_of(source), context_length, config.vocab_size)


def captions_of(source: Source) -> Iterator[str]:
    """Yields the captions that train a tokenizer; bad samples have none."""
    for index in range(min(len(source), TOKENIZER_SAMPLES)):
        try:
            yield from source[index].captions
        except BadSample:
            continue


def with_vocabulary(experiment: Experiment, vocab_size: int, eot_token_id: int) -> Experiment:
    """Returns the experiment with the text tower made for this vocabulary."""
    text = dataclasses.replace(
        experiment.model.text, vocab_size=vocab_size, eot_token_id=eot_token_id
    )
    model = dataclasses.replace(experiment.model, text=text)
    return dataclasses.replace(experiment, model=model)


def load_teacher(experiment: Experiment, mesh: Mesh) -> Teacher:
    """Returns the teacher, its parameters on every device; without a teacher both parts are None.

    Raises:
      ValueError: the teacher does not see the pixels and tokens that the student sees, or lacks a
        layer that the loss compares with.
    """
    if not experiment.teacher.path:
        return Teacher(None, None)
    of_teacher, params, quant = load_trained(experiment.teacher.path)
    check_hidden_layers(experiment.loss, "teacher", of_teacher.model)
    ours, theirs = experiment.preprocess, of_teacher.preprocess
    for name in ("image_size", "mean", "std"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"preprocess.{name}: the student's {getattr(ours, name)} is not the teacher's "
                f"{getattr(theirs, name)} ({experiment.teacher.path}); both see the same images"
            )
    for name in ("context_length", "vocab_size", "eot_token_id"):
        ours, theirs = experiment.model.text, of_teacher.model.text
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"model.text.{name}: the student's {getattr(ours, name)} is not the teacher's "
                f"{getattr(theirs, name)} ({experiment.teacher.path}); both read the same tokens"
            )
    params = ternarize_params(params, quant, of_teacher.quant)
    return Teacher(of_teacher.model, jax.device_put(params, NamedSharding(mesh, PartitionSpec())))


def make_iterator(
    experiment: Experiment, source: Source, tokenizer: Tokenizer
) -> grain.DatasetIterator:
    """Returns this process's part of the training batches; its state is that of a checkpoint."""
    return iter(
        train_batches(
            source,
            tokenizer,
            experiment.preprocess,
            experiment.train.batch_size,
            experiment.seed,
            experiment.train.num_workers,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
    )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    """Returns global arrays split over the mesh, from the rows that this process has read."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def make_evaluation(
    experiment: Experiment, tokenizer: Tokenizer
) -> Callable[[TrainState], dict[str, float]] | None:
    """Returns a function from the state to metrics, or None if there is nothing to evaluate on."""
    config = experiment.eval
    if not config.data.source:
        return None
    source = open_source(config.data)
    weights_fn = jax.jit(lambda w: ternarize_params(w["params"], w["quant"], experiment.quant))

    def evaluate(state: TrainState) -> dict[str, float]:
        # Weights are replicated: one copy is enough, and keeps the evaluation on one device.
        weights = jax.tree.map(lambda x: x.addressable_data(0), state.weights)
        model = Model(experiment.model, weights_fn(weights), tokenizer, experiment.preprocess)
        return evals.evaluate(model, source, config.batch_size, config.num_workers)

    return evaluate


def write_result(workdir: Path) -> dict[str, Any]:
    """Writes result.json, the mark of a finished run, from the last rows of the metrics."""
    rows = read_metrics(workdir)
    result = {}
    for row in rows:
        if row["step"] == rows[-1]["step"]:
            result |= row
    write_whole(workdir / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    return result


def _place(abstract_state: TrainState, shardings: Any) -> TrainState:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract_state,
        shardings,
    )
