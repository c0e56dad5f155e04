"""What Poiesis knows without any vendor: tasks, states, the plan of a task and the decision about its next step.

Everything here is pure and imports only the standard library.
"""
