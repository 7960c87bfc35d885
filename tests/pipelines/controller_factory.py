"""Controllers that have begun, and what the policy was told by them."""

import numpy as np

from spi_diffusers.pipelines import SafeController

ONE, TWO = np.zeros(3, np.float32), np.zeros((2, 3), np.float32)


class Told:
    """Passes calls on to a pipeline and keeps what it was told."""

    def __init__(self, pipeline):
        self.pipeline, self.calls = pipeline, []

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def __call__(self, observation, **arguments):
        self.calls.append((len(np.atleast_2d(observation)), arguments))
        return self.pipeline(observation, **arguments)

    @property
    def last(self):
        return [self.calls[-1][1][name].tolist() for name in ("cost_budget", "steps_left")]


def started(pipeline, *arguments, **options):
    controller = SafeController(pipeline, *arguments, **options)
    controller.reset()
    return controller


def step(controller, observation, cost=0.0, ended=False):
    action = controller.act(observation)
    controller.observe(cost, ended)
    return action
