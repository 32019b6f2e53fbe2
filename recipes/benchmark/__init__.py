"""How fast the project is: each part measured in one process, in turns with what it is held against.

Nothing here is needed to train; ``recipes/benchmark.py`` is its command.
"""
