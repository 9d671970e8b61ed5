"""What the commands do, as functions: a run or its folder and typed arguments in, a result out, nothing printed.

A run is opened by the classes that its configuration names, and without Lightning: see `eenet.late`.
"""
