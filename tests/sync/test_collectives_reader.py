"""The reader of compiled programs: each way in which XLA writes who talks to whom."""

import pytest

from tests.collectives import collectives

PROGRAM = """
  %a = f32[3,2]{1,0} parameter(0)
  %b = f32[4]{0} parameter(1)
  %all-reduce.1 = (f32[3,2]{1,0}, f32[4]{0}) all-reduce(%a, %b), channel_id=1, GROUPS, to_apply=%sum
  %start = ((f32[4]{0}), f32[16]{0}) all-gather-start(%b), channel_id=2, GROUPS, dimensions={0}
  ROOT %done = f32[16]{0} all-gather-done(%start)
"""
PAIRS, APART = [[0, 1], [2, 3]], [[0, 2], [1, 3]]


class Compiled:
    def __init__(self, groups):
        self.groups = groups

    def as_text(self):
        return PROGRAM.replace("GROUPS", f"replica_groups={self.groups}")


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", PAIRS),
        ("[2,2]<=[4]", PAIRS),
        ("[2,2]<=[2,2]T(1,0)", APART),
        ("mesh['d'=2,'e'=2] {'e'}", PAIRS),
        ("mesh['d'=2,'e'=2] {'d'}", APART),
        ("mesh['d'=4] {'d':(2)2}", PAIRS),
        ("mesh['d'=4] {'d':(1)2}", APART),
    ],
)
def test_what_is_moved_and_between_whom(text, groups):
    reduced, gathered = collectives(Compiled(text))
    assert (reduced.kind, reduced.numbers, reduced.groups) == ("all-reduce", 10, groups)
    assert (gathered.kind, gathered.numbers, gathered.groups) == ("all-gather", 4, groups)
