"""The data plane: what brings a task's inputs onto its volume (TIF) and its outputs away (TOF).

`staging` has the two entry functions; `registry` knows a filer for each URL scheme; `transfer` has threads and retries. It runs as a
container's whole program (`python -m poiesis.filer`) as well as in-process, so nothing here is imported before it is used, and nothing of
the API, the queue or the cluster at all.
"""
