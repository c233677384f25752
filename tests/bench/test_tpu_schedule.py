"""Schedules are read right, and those of the ternary kernels are no longer than recorded."""

import importlib.metadata
import json

import jax
import pytest

from tclip.bench import tpu_schedule
from tclip.bench.schedule import Schedule, read_schedule, take_schedules

# How much longer than recorded a schedule may be.
GROWTH = 0.03

STRAIGHT = """
= control target key start
LB: loop body
= control target key end

     0   :  { %7 = vsyncpa [#allocation3], 0 } /* entry bundle: %f = custom-call(%x) */
   0x1   :  { %v8 = vmatmul.f32.gmra.mxu0 %v1 }
   0x2   :  {} /* End region 4 */
"""
LOOP = """
     0   :  { %7 = vsyncpa [#allocation3], 0 }
   0x1 LB: > { %s1 = sadd.s32 4294967295, %s2  ;;  %s2 = sphi %s3, %s4 }
   0x2   : > { %v8 = vmatmul.bf16.gmra.mxu0 %v1 }
   0x3 PF: > { %p16_p0 = scmp.ge.s32.totalorder %s5, 8 /* loop exit test */ }
   0x4   :  { %9 = vsyncpa [#allocation3], 1 }
"""


def utilization(*matrix_units):
    rows = "".join(f"{used} 0 3\n" for used in matrix_units)
    return f"== CAPACTIY:\nMXU, XLU, VALU\n    4     3     4\n== UTILIZATION:\n{rows}"


def test_a_straight_program_is_issued_once():
    schedule = read_schedule(STRAIGHT, utilization(0, 4, 0))
    assert schedule == Schedule(bundles=3, inner=3, trips=1, matrix_bundles=1)
    assert schedule.executed == 3


def test_a_loop_is_issued_once_a_block():
    # Eight iterations: the first only fetches, the last only writes back.
    schedule = read_schedule(LOOP, utilization(0, 1, 2, 0, 0))
    assert schedule == Schedule(bundles=5, inner=3, trips=6, matrix_bundles=2)
    assert schedule.executed == 2 + 6 * 3


def test_a_loop_of_unknown_length_is_counted_once():
    text = LOOP.replace("/* loop exit test */", "")
    assert read_schedule(text, utilization(*[0] * 5)).executed == 5


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="a schedule of 2 pipelined loops"):
        read_schedule(LOOP + LOOP, utilization(*[0] * 10))


def test_the_compilers_own_programs_are_left_out(tmp_path):
    for prefix in ("1-f", "1-<late-finalization>", "1-TLP"):
        (tmp_path / f"{prefix}-72-final_bundles.txt").write_text(STRAIGHT)
        table = tmp_path / f"{prefix}-70-final_hlo-static-per-bundle-utilization.txt"
        table.write_text(utilization(0, 4, 0))
    assert take_schedules(tmp_path) == [Schedule(3, 3, 1, 1)]
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="wrote no schedules"):
        take_schedules(tmp_path)


def test_bounds_are_work_over_rate():
    # v5e: 394e12 int8 operations and 0.82e12 bytes a second.
    matrix, memory = tpu_schedule.bounds("v5e", (256, 768, 3072), True, 2)
    assert matrix == pytest.approx(2 * 256 * 768 * 3072 / 394e6)
    assert memory == pytest.approx((2 * 256 * (768 + 3072) + 768 * 3072 / 4) / 0.82e6)


def test_a_job_that_fails_is_answered_and_the_next_one_goes_on():
    jobs = [{"chip": "v9"}, {"chip": "v10"}]
    answers = list(tpu_schedule._compile_in_process(jobs))
    assert answers == [{"error": "KeyError: 'v9'"}, {"error": "KeyError: 'v10'"}]


def test_unknown_chips_are_refused():
    with pytest.raises(ValueError, match="no chip 'v9'; there are v5e, v5p, v6e, tpu7x"):
        tpu_schedule.run(chips="v9")


def recorded():
    return json.loads(tpu_schedule.TABLE.read_text())


def test_the_recorded_ternary_products_are_complete():
    for chip in tpu_schedule.CHIPS:
        for size in ("256x768x3072", "25216x768x3072"):
            kernels = recorded()["schedules"][chip][size]
            assert {"ternary_native", "ternary_int8", "xla_bfloat16", "xla_int8"} < set(kernels)
            assert all(figures["bundles"] > 0 for figures in kernels.values())


@pytest.fixture(scope="module")
def need_libtpu():
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("libtpu, the compiler for TPUs, is not installed")
    if (version, jax.__version__) != (recorded()["libtpu"], recorded()["jax"]):
        pytest.skip(f"the table was recorded with libtpu {recorded()['libtpu']}, not {version}")


@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_schedules_have_not_grown(need_libtpu, chip):
    size = "256x768x3072"
    jobs = tpu_schedule.jobs_of(chip, (256, 768, 3072), dense=False)
    for job, answer in zip(jobs, tpu_schedule.compile_jobs(jobs), strict=True):
        before, now = (
            recorded()["schedules"][chip][size][job["kernel"]]["bundles"],
            answer["bundles"],
        )
        assert now <= (1 + GROWTH) * before, (
            f"{job['kernel']} {size} on {chip}: {now} bundles, recorded were {before}; "
            "python -m launch.bench tpu_schedule records new ones"
        )


@pytest.mark.parametrize("chip", list(tpu_schedule.CHIPS))
def test_ragged_layers_compile(need_libtpu, chip):
    jobs = [
        job
        for shape in ((1, 588, 1280), (77, 5120, 1280), (1576, 768, 512))
        for job in tpu_schedule.jobs_of(chip, shape, dense=False)
    ]
    assert [answer.get("error") for answer in tpu_schedule.compile_jobs(jobs)] == [None] * len(jobs)
