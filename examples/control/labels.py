"""Make labels.npz: the states and the actions of a model-predictive controller in flight.

    pip install casadi==3.8.2
    python examples/control/labels.py

The vehicle carries out the controller's action plus noise. The label is the action without the noise. So the labels cover
states that only an imperfect policy reaches, and show how to return from them. The method is DART (Laskey et al., CoRL
2017, arXiv:1703.09327). DART fits the strength of the noise to the policy's errors. Here it is drawn for each episode.
"""

from __future__ import annotations

from pathlib import Path

import casadi as ca
import control
import numpy as np

HORIZON = 30  # steps: 1.5 s
MARGIN = 0.05  # rad and m that the controller keeps from the limits, for gusts

EPISODES = 400
STEPS = 60
NOISE = (0.0, 0.1, 0.2, 0.4)  # standard deviation of what is added to the actions


def advance() -> ca.Function:
    """The simulation's own step, for CasADi to differentiate."""
    ca.GlobalOptions.setNumpyMode(1)  # numpy's functions then accept its expressions
    state, action = ca.SX.sym("state", 6), ca.SX.sym("action", 2)
    return ca.Function("advance", [state, action], [control.advance(state, action)])


def cost_to_go(step: ca.Function) -> np.ndarray:
    """The infinite-horizon cost near the target, as a quadratic form: iterates the discrete Riccati equation."""
    state, action = ca.SX.sym("state", 6), ca.SX.sym("action", 2)
    after = step(state, action)
    jacobians = ca.Function("jacobians", [state, action], [ca.jacobian(after, state), ca.jacobian(after, action)])
    a, b = (matrix.full() for matrix in jacobians(0, 0))
    value = np.diag(control.STATE_COST)
    for _ in range(1000):
        gain = np.linalg.solve(control.ACTION_COST * np.eye(2) + b.T @ value @ b, b.T @ value @ a)
        value = np.diag(control.STATE_COST) + a.T @ value @ (a - b @ gain)
    return value


class Controller:
    """Nonlinear model-predictive control by direct multiple shooting. Every plan starts from the plan before it.

    The limits of the thrust are hard. The limits of the state are soft, with an exact penalty, so a plan always exists.
    """

    def __init__(self) -> None:
        step = advance()
        states, actions = ca.SX.sym("states", 6, HORIZON + 1), ca.SX.sym("actions", 2, HORIZON)
        beyond = ca.SX.sym("beyond", 2, HORIZON)
        now, hill = ca.SX.sym("now", 6), ca.SX.sym("hill", 2)
        after = states[:, 1:]
        weights = np.tile(control.STATE_COST[:, None], HORIZON - 1)
        cost = ca.dot(weights * after[:, :-1], after[:, :-1]) + ca.bilin(cost_to_go(step), after[:, -1], after[:, -1])
        cost += control.ACTION_COST * ca.sumsqr(actions) + control.VIOLATION_COST * ca.sum1(ca.vec(beyond))
        dynamics = ca.horzcat(now, step.map(HORIZON)(states[:, :-1], actions)) - states
        tilt, below = after[2, :], control.ground(after[0, :], hill) - after[1, :]
        limits = ca.vertcat(tilt - beyond[0, :], -tilt - beyond[0, :], below - beyond[1, :])
        highest = np.array([control.TILT, control.TILT, 0]) - MARGIN
        plan = [ca.vec(states), ca.vec(actions), ca.vec(beyond)]
        constraints = ca.vertcat(ca.vec(dynamics), ca.vec(limits))
        problem = {"x": ca.vertcat(*plan), "p": ca.vertcat(now, hill), "f": cost, "g": constraints}
        quiet = {"ipopt.print_level": 0, "ipopt.sb": "yes", "print_time": False}
        self.solve = ca.nlpsol("solve", "ipopt", problem, {"ipopt.tol": 1e-5, "ipopt.mu_init": 1e-2, **quiet})
        sizes = [part.numel() for part in plan]
        self.bounds = {
            "lbx": np.repeat([-np.inf, -1, 0], sizes),
            "ubx": np.repeat([np.inf, 1, np.inf], sizes),
            "lbg": np.repeat([0, -np.inf], [dynamics.numel(), limits.numel()]),
            "ubg": np.concatenate([np.zeros(dynamics.numel()), np.tile(highest, HORIZON)]),
        }
        self.split = np.cumsum(sizes)[:-1]
        self.failures = 0

    def plan(self, state: np.ndarray, hill: np.ndarray, last: np.ndarray | None = None) -> np.ndarray:
        """The plan from a state. `last` is the plan of the step before."""
        guess = self._standing(state) if last is None else self._shifted(last)
        plan = self.solve(x0=guess, p=np.concatenate([state, hill]), **self.bounds)["x"].full().ravel()
        self.failures += not self.solve.stats()["success"]
        return plan

    def action(self, plan: np.ndarray) -> np.ndarray:
        """The first action of a plan."""
        return plan[self.split[0] :][:2]

    def _standing(self, state: np.ndarray) -> np.ndarray:
        return np.concatenate([np.tile(state, HORIZON + 1), np.zeros(4 * HORIZON)])

    def _shifted(self, plan: np.ndarray) -> np.ndarray:
        parts = zip(np.split(plan, self.split), (6, 2, 2), strict=True)
        return np.concatenate([np.concatenate([part[rows:], part[-rows:]]) for part, rows in parts])


def expert(controller: Controller) -> control.Policy:
    """The controller as a policy, for one run of the episodes."""
    plans: list[np.ndarray | None] = [None] * control.EPISODES

    def policy(observations: np.ndarray) -> np.ndarray:
        for row, observation in enumerate(observations):
            plans[row] = controller.plan(*np.split(observation * control.SCALE, [6]), plans[row])
        return np.stack([controller.action(plan) for plan in plans])

    return policy


def episode(controller: Controller, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The states (STEPS, 6) of a disturbed flight, the controller's actions (STEPS, 2) and the hill (2,)."""
    noise = random.choice(NOISE)
    (state, hill), plan = (column[:, 0] for column in control.scenes(random, 1)), None
    states, actions = [], []
    for _ in range(STEPS):
        plan = controller.plan(state, hill, plan)
        states.append(state)
        actions.append(controller.action(plan))
        action = np.clip(actions[-1] + noise * random.standard_normal(2), -1, 1)
        gust = control.GUSTS * random.standard_normal(6)
        state = control.advance(state[:, None], action[:, None])[:, 0] + gust
    return np.stack(states), np.stack(actions), hill


def main() -> None:
    controller = Controller()
    for split in control.EPISODE_SEEDS:
        print("controller", split, control.report(expert(controller), split))
    random = np.random.default_rng(0)
    episodes = [episode(controller, random) for _ in range(EPISODES)]
    states, actions, hills = (np.stack(part).astype("float32") for part in zip(*episodes, strict=True))
    np.savez_compressed(Path(__file__).with_name("labels.npz"), states=states, actions=actions, hills=hills)
    print(f"{states.shape[0]} episodes of {states.shape[1]} steps; {controller.failures} plans did not converge")


if __name__ == "__main__":
    main()
