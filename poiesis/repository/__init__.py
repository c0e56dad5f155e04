"""Where tasks, and what belongs to them, are kept: MongoDB for a cluster, one SQLite file for a single machine.

`documents` translates between tasks and plain documents, the same for both. The packages `mongo` and `sqlite` store them, with a module for
each kind of thing. Both are held to the same contract suites (`tests/contract`), and so are the in-memory stores of `poiesis.testing`.
Drivers are imported by the module that needs them, so that a single machine pays for no MongoDB driver.
"""
