"""The TPU compiler's final schedule: how many instruction bundles a program issues.

A bundle is what a core issues at once. The schedule is static: a bundle that waits, for memory or
for the matrix unit, counts as one. The compiler writes it with the flags of `dump_flags`.
"""

import dataclasses
import re
from pathlib import Path

_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s(?:[ A-Z]*):(?P<depth>[ >]*)")
_LOOP_EXIT = re.compile(r", (\d+) /\* loop exit test")
# Iterations of a pipelined loop in which data is only fetched or only written back.
_PIPELINE_STAGES = 2


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Of one computation, or of several one after the other.

    Attributes:
      bundles: in the text of the program.
      inner: of them within the loop; all of them where there is none.
      trips: of the loop that do work.
      matrix_bundles: those of `bundles` in which a matrix unit gets work.
    """

    bundles: int
    inner: int
    trips: int
    matrix_bundles: int

    @property
    def executed(self) -> int:
        """Bundles that are issued, with every branch counted as taken and every other loop once."""
        return self.bundles + self.inner * (self.trips - 1)


def dump_flags(folder: Path) -> str:
    """What `LIBTPU_INIT_ARGS` has to be for the compiler to write its schedules to a folder."""
    return f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"


def take_schedules(folder: Path) -> list[Schedule]:
    """Reads the schedules of the computations compiled since the last call, and deletes them.

    Raises:
      ValueError: there are none.
    """
    schedules = []
    try:
        for file in folder.glob("*-final_bundles.txt"):
            prefix, number, _ = file.name.rsplit("-", 2)
            # The compiler's own programs around each computation.
            if "<" in prefix or prefix.endswith("-TLP"):
                continue
            use = f"{prefix}-{int(number) - 2:02}-final_hlo-static-per-bundle-utilization.txt"
            schedules.append(read_schedule(file.read_text(), (folder / use).read_text()))
    finally:
        for file in folder.iterdir():
            file.unlink()
    if not schedules:
        raise ValueError(f"the compiler wrote no schedules to {folder}")
    return schedules


def read_schedule(bundles_text: str, utilization_text: str) -> Schedule:
    """Reads the text of the bundles, and the table of the units that each of them uses."""
    depths = [
        match["depth"].count(">")
        for line in bundles_text.splitlines()
        if (match := _BUNDLE.match(line))
    ]
    exits = [int(count) for count in _LOOP_EXIT.findall(bundles_text)]
    inner = sum(depth > 0 for depth in depths)
    rows = utilization_text.partition("UTILIZATION:")[2].split("\n")
    matrix_bundles = sum(int(row.split()[0]) > 0 for row in rows if row.strip())
    if len(exits) > 1:
        raise ValueError(f"a schedule of {len(exits)} pipelined loops, of which one was expected")
    # Loops that copy within the memory of the core are not pipelined, nor is their length written.
    if not exits:
        return Schedule(len(depths), len(depths), 1, matrix_bundles)
    return Schedule(len(depths), inner, exits[0] - _PIPELINE_STAGES, matrix_bundles)
