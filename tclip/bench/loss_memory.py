"""Memory that the losses need on every device, of the program compiled for TPUs that are not there.

Needs libtpu (`pip install "tclip[tpu]"`).
"""

import json
import sys
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from tclip.hardware.tpu_compiler import answer, ask, libtpu_version
from tclip.losses import NEGATIVES, LossConfig, Outputs, Widths, init_adapters, total_loss
from tclip.parallel.sharding import MeshConfig, batch_sharding, make_mesh, placed, replicated
from tclip.tables import markdown_table, megabytes

CONTEXT_LENGTH = 77


def run(
    topology: Annotated[str, "TPUs, such as v5e:16x16"] = "v5e:16x16",
    batch_size: Annotated[int, "image-caption pairs on all devices"] = 32768,
    chunk_size: Annotated[int, "loss.chunk_size"] = 1024,
    embed_dim: Annotated[int, "width of the student's embeddings"] = 512,
    teacher_embed_dim: Annotated[int, "width of the teacher's embeddings"] = 768,
) -> dict[str, Any]:
    """Compiles value and gradient of the losses of configs/vit_b16_cc12m.py, without the models.

    The bfloat16 embeddings of student and teacher are split over all devices; the gradient is that
    of the student's embeddings, its logit scale and the adapters.

    Returns:
      The version of the compiler, and the figures of `compile_losses` by `loss.negatives`.

    Raises:
      ValueError: libtpu is not installed, or compiles no such program.
    """
    options = {
        "topology": topology,
        "batch_size": batch_size,
        "chunk_size": chunk_size,
        "embed_dim": embed_dim,
        "teacher_embed_dim": teacher_embed_dim,
    }
    version = libtpu_version()
    who = f"the compiler for {topology} failed: it"
    figures = ask("tclip.bench.loss_memory", options, who)
    print(f"{batch_size} pairs on {topology}, on every device")
    print(
        markdown_table(
            ("negatives", "temporaries", "peak"),
            [
                (name, megabytes(sizes["temporary_bytes"]), megabytes(sizes["peak_bytes"]))
                for name, sizes in figures.items()
            ],
        )
    )
    return options | {"libtpu": version, "negatives": figures}


def compile_losses(
    negatives: str,
    topology: str,
    batch_size: int,
    chunk_size: int,
    embed_dim: int,
    teacher_embed_dim: int,
) -> dict[str, int]:
    """Compiles the losses with one way to meet the negatives.

    Returns:
      Bytes on every device: `temporary_bytes`, without those that stay in the fast memory of the
      core, and `peak_bytes`, with arguments, results and the program itself.
    """
    config = LossConfig(
        similarity_weight=1.0, embedding_weight=1.0, negatives=negatives, chunk_size=chunk_size
    )
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = make_mesh(MeshConfig(), devices)

    def rows(width: int, dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct((batch_size, width), dtype, sharding=batch_sharding(mesh))

    scale: Any = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    student = Outputs(rows(embed_dim), rows(embed_dim), scale, scale)
    teacher = Outputs(rows(teacher_embed_dim), rows(teacher_embed_dim), scale, scale)
    ours, theirs = (Widths(width, 0, 0) for width in (embed_dim, teacher_embed_dim))
    adapters = jax.eval_shape(
        lambda key: init_adapters(key, ours, theirs, config), jax.random.key(0)
    )
    adapters = placed(adapters, dict.fromkeys(adapters, replicated(mesh)))

    def loss(student: Outputs, adapters: dict, teacher: Outputs, captions_BxL: jax.Array):
        return total_loss(config, student, teacher, captions_BxL, adapters, mesh)

    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    captions = rows(CONTEXT_LENGTH, jnp.int32)
    memory: Any = function.lower(student, adapters, teacher, captions).compile().memory_analysis()
    return {
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
    }


def main() -> None:
    options = json.load(sys.stdin)
    answer({name: compile_losses(name, **options) for name in NEGATIVES})


if __name__ == "__main__":
    main()
