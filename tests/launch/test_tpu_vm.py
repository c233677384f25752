"""The exact calls of tpu_vm.sh, by the state that the slices are in, and what it ends with."""

import pytest

from tests.helpers.stand_ins import PACK, SLICE, TPU, TRAIN, make_recorders


def tpus(verb, *args):
    return ["gcloud", "compute", "tpus", "queued-resources", verb, "run", "--zone=z", *args]


DESCRIBE = tpus("describe", "--format=value(state.state)")
DELETE = tpus("delete", "--force", "--quiet")
CREATE = tpus(
    "create",
    *("--accelerator-type=v5litepod-256", "--runtime-version=v2-alpha-tpuv5-lite"),
    "--node-id=run",
)
EVERYWHERE = ("--node=all", "--worker=all")
INSTALL = [
    *PACK,
    [*tpus("scp")[:5], "dist/tclip.tgz", "run:", "--zone=z", *EVERYWHERE],
    tpus(
        *("ssh", *EVERYWHERE),
        "--command=mkdir -p tclip && tar -xzf tclip.tgz -C tclip && rm tclip.tgz && "
        "tclip/launch/worker.sh install b",
    ),
]
START = [
    tpus("ssh", *EVERYWHERE, f"--command=tclip/launch/worker.sh start {' '.join(TRAIN)}"),
    tpus("ssh", "--command=tclip/launch/worker.sh follow"),
]


@pytest.fixture
def stand_ins(tmp_path):
    return make_recorders(tmp_path / "bin")


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
        ("v4-64", "tpu-ubuntu2204-base"),
    ],
)
def test_slices_get_the_runtime_of_their_generation(stand_ins, accelerator, runtime):
    flags = (*TPU, f"--accelerator-type={accelerator}", "--node-count=2", "--spot")
    assert stand_ins.launch("tpu_vm", "create", *flags).returncode == 0
    assert stand_ins.launch("tpu_vm", "create", *flags, "--runtime-version=own").returncode == 0
    nodes = ("--node-count=2", "--node-prefix=run", "--spot")
    assert stand_ins.calls() == [
        tpus("create", f"--accelerator-type={accelerator}", f"--runtime-version={version}", *nodes)
        for version in (runtime, "own")
    ]


def test_a_tpu_run_from_nothing_to_the_end(stand_ins):
    stand_ins.states("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    for call in (
        ("create", *SLICE),
        ("install", *TPU, "--bucket=b"),
        ("train", *TPU, "--", *TRAIN),
        ("logs", *TPU, "--worker=7"),
        ("delete", *TPU),
    ):
        assert stand_ins.launch("tpu_vm", *call).returncode == 0
    wait = [DESCRIBE, ["sleep", "60"]] * 2
    logs = tpus("ssh", "--worker=7", "--command=tclip/launch/worker.sh follow")
    assert stand_ins.calls() == [
        *(CREATE, *wait, DESCRIBE, *INSTALL, DESCRIBE, *START, DESCRIBE, logs, DELETE),
    ]


@pytest.mark.parametrize(
    ("before", "calls"),
    [
        (["SUSPENDED", "ACTIVE"], [DESCRIBE, DELETE, CREATE]),
        (["FAILED", "ACTIVE"], [DESCRIBE, DELETE, CREATE]),
        (
            ["SUSPENDING", "SUSPENDED", "ACTIVE"],
            [DESCRIBE, ["sleep", "60"], DESCRIBE, DELETE, CREATE],
        ),
        (["PROVISIONING", "CREATING", "ACTIVE"], [DESCRIBE, DESCRIBE, ["sleep", "60"]]),
        (["ACTIVE"], [DESCRIBE]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_resume_makes_preempted_slices_anew_and_starts_the_same_command(stand_ins, before, calls):
    stand_ins.states(*before)
    done = stand_ins.launch("tpu_vm", "resume", *SLICE, "--bucket=b", "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert stand_ins.calls() == [*calls, DESCRIBE, *INSTALL, DESCRIBE, *START]


@pytest.mark.parametrize("subcommand", ["install", "train", "logs"])
def test_nothing_is_sent_to_slices_that_are_gone(stand_ins, subcommand):
    stand_ins.states("SUSPENDED")
    command = ("--", *TRAIN) if subcommand == "train" else ()
    done = stand_ins.launch("tpu_vm", subcommand, *TPU, *command)
    assert done.returncode == 2
    assert "tpu_vm: error: run is SUSPENDED" in done.stderr
    assert stand_ins.calls() == [DESCRIBE]


@pytest.mark.parametrize(
    ("then", "code"),
    [
        (["SUSPENDING"], 75),
        (["PROVISIONING", "SUSPENDED"], 75),
        (["ACTIVE", "SUSPENDING"], 75),
        (["FAILED"], 2),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_resume_asks_to_be_called_again_where_the_new_slices_are_preempted_too(
    stand_ins, then, code
):
    stand_ins.states("SUSPENDED", *then)
    done = stand_ins.launch("tpu_vm", "resume", *SLICE, "--", *TRAIN)
    assert done.returncode == code
    assert f"run is {then[-1]}" in done.stderr
    assert not any("worker.sh start" in word for call in stand_ins.calls() for word in call)


@pytest.mark.parametrize("word", ["describe", "delete", "create", "tar", "scp", "ssh"])
def test_a_call_that_fails_stops_resume_with_its_code(stand_ins, word):
    stand_ins.reply(word, code=7)
    stand_ins.states("SUSPENDED", "ACTIVE")
    done = stand_ins.launch("tpu_vm", "resume", *SLICE, "--", *TRAIN)
    assert done.returncode == 7
    *others, last = stand_ins.calls()
    assert word in last
    assert not any(word in call for call in others)


@pytest.mark.parametrize(
    ("code", "after", "expected"),
    [
        (0, [], 0),
        (75, ["ACTIVE"], 75),
        (1, ["ACTIVE"], 1),
        (1, ["SUSPENDING"], 75),
        # What a preemption does is seen before the state tells of it.
        (255, ["ACTIVE", "ACTIVE", "SUSPENDING"], 75),
        (134, ["ACTIVE", "SUSPENDED"], 75),
        # The connection was lost, or the command killed, by something else.
        (255, ["ACTIVE"] * 6, 255),
        (137, ["ACTIVE"] * 6, 137),
    ],
    ids=lambda value: str(len(value) if isinstance(value, list) else value),
)
def test_train_ends_with_the_code_of_the_command_or_75_if_preempted(
    stand_ins, code, after, expected
):
    stand_ins.reply("--command=tclip/launch/worker.sh follow", code=code)
    stand_ins.states("ACTIVE", *after)
    assert stand_ins.launch("tpu_vm", "train", *TPU, "--", *TRAIN).returncode == expected
    looks = [call for _ in after for call in (["sleep", "60"], DESCRIBE)]
    assert stand_ins.calls() == [DESCRIBE, *START, *looks[1:]]
