"""The error for a task whose simulator cannot run here."""


class SimulatorNotInstalledError(ImportError):
    """The simulator of a task is not installed; the message names the task and the extra to install."""
