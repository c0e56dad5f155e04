"""The data plane: stages a task's inputs onto its volume (TIF) and uploads its outputs (TOF).

`staging.stage` is the entry, `inputs` and `outputs` the rules, `registry` the schemes, `transfer` threads and retries. It runs
as a container's program (`python -m poiesis.filer`) and in-process, so modules are imported only when they are used, and nothing of the
API, the queue or the cluster is.
"""
