"""Where tasks are kept: MongoDB for a cluster, one SQLite file for a single machine, one document format for both.

`documents` translates between tasks and plain documents, `mongo` and `sqlite` store them. Both are held to the same
contract suite (`tests/contract/test_repository.py`), and so is the in-memory store of `poiesis.testing`. Drivers are
imported by the module that needs them, so that a single machine pays for no MongoDB driver.
"""
