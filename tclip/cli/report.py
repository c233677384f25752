"""Teacher, post-training ternarisation and student side by side: report.json, report.md, plots.

tclip report --teacher=WORKDIR --student=WORKDIR --packed=DIR --out=DIR
"""

from collections.abc import Sequence

from absl import flags

from tclip.report import make_report

_TEACHER = flags.DEFINE_string("teacher", None, "Workdir of the float teacher.", required=True)
_STUDENT = flags.DEFINE_string("student", None, "Workdir of the ternary student.", required=True)
_PACKED = flags.DEFINE_string("packed", None, "Packed folder of the student.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the report.", required=True)
_SPLIT = flags.DEFINE_string("split", "test", "Split of the student's eval.data.")


def main(argv: Sequence[str]) -> None:
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    folders = (_TEACHER.value, _STUDENT.value, _PACKED.value, _OUT.value)
    print(make_report(*folders, _SPLIT.value))
