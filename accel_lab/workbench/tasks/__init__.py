"""Independent tasks, on processes here or on the workers of a cluster; nothing done is lost."""


class WorkerDied(RuntimeError):
    """The workers that had a task died, one after the other: one line."""
