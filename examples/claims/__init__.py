"""The claims that a student is taught about batch norm, each as a small experiment; `examples/study.py` runs them.

A claim is a module with
    TITLE, SENTENCE     what is claimed, in the words of a student's guide
    SUPPORT, AGAINST    what would count for it, and against it
    LIMITS              what this cannot show
    LOOK, SEEN          one line that says where to look in the figure, and what is seen there, for those who cannot
    parts(setting)      {name: function without arguments that measures and returns a dict of arrays}
    finding(results)    what came out, as a `Finding`; `results` has an entry for each part
    draw(results)       the same as a figure
"""
