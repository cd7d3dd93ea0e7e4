from itertools import chain

from tests.bench import tables
from tests.conftest import REPOSITORY


def test_the_tables_of_emulated_clusters_are_of_the_runs_that_are_kept():
    page = (REPOSITORY / "docs/guide/emulated.md").read_text().splitlines()
    lines = list(chain(tables.overhead(), tables.rates(), tables.duplicates(), tables.routings()))
    assert len(lines) == 50
    assert [line for line in lines if line not in page] == []
