"""Every defect of the table can be planted, and every test that should see it is there."""

from tests.mutant_table import EQUIVALENT, MUTANTS
from tests.mutants import ROOT


def test_the_text_that_a_defect_replaces_stands_once():
    assert [m for m in MUTANTS if (ROOT / m.file).read_text().count(m.old) != 1] == []


def test_the_tests_of_a_defect_exist():
    tests = {test for mutant in MUTANTS for test in mutant.tests}
    gone = []
    for test in tests:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text() if (ROOT / file).exists() else ""
        if f"def {name.partition('[')[0]}" not in text:
            gone.append(test)
    assert gone == []


def test_what_is_explained_stands_in_the_table():
    assert EQUIVALENT.keys() <= {(m.file.removeprefix("jaxbn/").removesuffix(".py"), m.new) for m in MUTANTS}
