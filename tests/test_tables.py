"""Tables: valid Markdown, aligned, and safe with any text in a cell."""

from tclip.tables import markdown_table, megabytes, percent


def test_columns_are_aligned_and_markdown_is_valid():
    table = markdown_table(("model", "top-1"), [("teacher", "91.00%"), ("student", "9.5%")])
    assert table.splitlines() == [
        "| model   |  top-1 |",
        "|---------|-------:|",
        "| teacher | 91.00% |",
        "| student |   9.5% |",
    ]


def test_cells_cannot_break_the_table():
    table = markdown_table(("a", "b"), [("x|y", "1\n2")])
    assert table.splitlines()[2] == "| x\\|y | 1 2 |"
    assert len({len(line) for line in table.splitlines()}) == 1


def test_numbers_for_people():
    assert (percent(0.98765), megabytes(41_234_567)) == ("98.77%", "41.23 MB")
