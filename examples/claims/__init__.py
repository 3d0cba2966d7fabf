"""The claims that a student is taught about batch norm, each as a small experiment; `examples/study.py` runs them.

A claim is a module with
    TITLE, CLAIM        what is claimed, in a student's words
    parts(setting)      {name: function without arguments that measures and returns a dict of arrays}
    finding(results)    what came out, as a `Finding`; `results` has an entry for each part
    draw(results)       the same as a figure
"""
