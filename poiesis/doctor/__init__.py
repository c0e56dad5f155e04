"""`poiesis doctor`: what of a site does not work, what follows from it, and how to repair it (docs/doctor.md).

A check is a function that yields findings (`result.py`); `plan.py` decides which checks a run has, `run.py` runs them side by side. Checks
of a kind are in a module: settings, store, broker, kubernetes, trial, storage, identity, service, machine. `inside.py` is the part that
runs in a task's pod. Nothing here changes what the service keeps; what trials create is labelled and removed.
"""
