"""An example of an own task: heat a room for a day, within a budget of cents.

python docs/examples/heating.py heating.csv     # logs 120 days of simple thermostats
"""

import csv
import sys

import gymnasium
import numpy as np

STEPS = 48  # half hours of a day


class HeatingEnv(gymnasium.Env):
    """Heat a room. Reward: comfort, 0 to 1 per half hour. Cost: cents for electricity.

    Observation: room and outdoor temperature (Celsius), price (cents per kWh), time of day (0 to 1).
    Action: heating power in kW, 0 to 3.
    """

    observation_space = gymnasium.spaces.Box(-50.0, 100.0, (4,), np.float32)
    action_space = gymnasium.spaces.Box(0.0, 3.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        """Start a day at midnight."""
        super().reset(seed=seed)
        self.step_number, self.room = 0, self.np_random.uniform(14.0, 20.0)
        self.coldest = self.np_random.uniform(-5.0, 5.0)
        return self._observation(), {}

    def step(self, action):
        """Heat for half an hour."""
        power = float(np.clip(action[0], 0.0, 3.0))
        cents = 0.5 * power * self._price()
        self.room += 0.06 * (self._outdoor() - self.room) + 0.8 * power + self.np_random.normal(0.0, 0.1)
        self.step_number += 1
        comfort = max(0.0, 1.0 - abs(self.room - 21.0) / 5.0)
        return self._observation(), comfort, False, self.step_number == STEPS, {"cost": cents}

    def _time(self):
        return self.step_number / STEPS

    def _outdoor(self):
        return self.coldest + 4.0 * (1.0 - np.cos(2.0 * np.pi * self._time()))

    def _price(self):
        return 40.0 if 0.3 < self._time() < 0.9 else 20.0

    def _observation(self):
        return np.array([self.room, self._outdoor(), self._price(), self._time()], dtype=np.float32)


def write_log(path, days=120, seed=0):
    """Log thermostats of random set points to a CSV file, one row per half hour."""
    env, random = HeatingEnv(), np.random.default_rng(seed)
    with open(path, "w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["day", "room", "outdoor", "price", "time", "kw", "comfort", "cents"])
        for day in range(days):
            observation, _ = env.reset(seed=seed + day)
            set_point, expensive = random.uniform(12.0, 23.0), random.uniform(20.0, 50.0)
            done = False
            while not done:
                heats = observation[0] < set_point and observation[2] < expensive
                power = np.clip(random.normal(2.0 if heats else 0.3, 0.5), 0.0, 3.0)
                following, comfort, _, done, info = env.step([power])
                log.writerow([day, *observation.tolist(), power, comfort, info["cost"]])
                observation = following


if __name__ == "__main__":
    write_log(sys.argv[1])
