"""A strong ticket that balances a pole: a policy of frozen random weights, of which a search keeps half.

    python examples/cartpole.py [--seeds 5] [--steps 150]

The search needs no data set. `find_ticket` draws its batches from episodes that the network plays while it is searched,
and `forward` returns the loss of the policy gradient (REINFORCE, Williams 1992). The script prints the mean return, the
number of steps for which the pole stays up (at most 200), for the ticket, for random masks of the same density in the
same weights, and for all of the random weights.
"""

import argparse
import copy
import math

import torch
from torch import Tensor, nn

from crbg import Mask, bake, find_ticket
from crbg.masks.controls import random

LONGEST = 200  # steps of an episode


def step(state: Tensor, push_right: Tensor) -> Tensor:
    """Move carts by 0.02 s. The state is x, its velocity, the angle, its velocity (Barto, Sutton and Anderson 1983)."""
    x, v, angle, w = state.unbind(1)
    force = torch.where(push_right, 10.0, -10.0)
    pushed = (force + 0.05 * w**2 * angle.sin()) / 1.1  # masses: 1 for the cart, 0.1 for the pole of length 1
    turn = (9.8 * angle.sin() - angle.cos() * pushed) / (0.5 * (4 / 3 - 0.1 * angle.cos() ** 2 / 1.1))
    push = pushed - 0.05 * turn * angle.cos() / 1.1
    return torch.stack([x + 0.02 * v, v + 0.02 * push, angle + 0.02 * w, w + 0.02 * turn], 1)


def play(policy: nn.Module, episodes: int, greedy: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Play episodes side by side; return states (T, N, 4), actions (T, N), and whether each pole was up (T, N)."""
    state, up = 0.1 * torch.rand(episodes, 4) - 0.05, torch.ones(episodes, dtype=torch.bool)
    states, actions, ups = [], [], []
    with torch.no_grad():
        while bool(up.any()) and len(ups) < LONGEST:
            logits = policy(state)
            action = logits.argmax(1) if greedy else torch.distributions.Categorical(logits=logits).sample()
            states, actions, ups = [*states, state], [*actions, action], [*ups, up]
            state = step(state, action == 1)
            up = up & (state[:, 0].abs() < 2.4) & (state[:, 2].abs() < math.radians(12))
    return torch.stack(states), torch.stack(actions), torch.stack(ups)


class Episodes:
    """Batches of decisions from new episodes. The advantage says how much longer than average the pole stays up."""

    def __init__(self, policy: nn.Module, episodes: int = 32) -> None:
        self.policy, self.episodes = policy, episodes

    def __iter__(self):
        while True:
            states, actions, up = play(self.policy, self.episodes)
            left = up.flip(0).cumsum(0).flip(0).float()  # steps until the pole falls
            average = left.sum(1, keepdim=True) / up.sum(1, keepdim=True)
            yield {"states": states[up], "actions": actions[up], "advantages": ((left - average) / left[up].std())[up]}


def policy_gradient(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss whose gradient is that of the expected return."""
    chosen = torch.distributions.Categorical(logits=model(batch["states"])).log_prob(batch["actions"])
    return -(batch["advantages"] * chosen).mean()


def mean_return(policy: nn.Module) -> float:
    """Return the mean number of steps over 100 episodes in which the policy takes its best action."""
    torch.manual_seed(0)
    return float(play(policy, 100, greedy=True)[2].sum(0).float().mean())


def main() -> None:
    """Search with several seeds, and print the mean returns."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=80, help="steps of the search; each plays 32 episodes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        policy = nn.Sequential(nn.Linear(4, 128), nn.Tanh(), nn.Linear(128, 2))
        options = {"epochs": 1, "steps": args.steps, "forward": policy_gradient, "validation": None, "seed": seed}
        found = find_ticket(policy, Episodes(policy), 0.5, **options)
        chance = bake(copy.deepcopy(policy), random(Mask.full(found.mask), found.mask.density, seed))
        ticket = found.apply(copy.deepcopy(policy))
        print(
            f"seed {seed}: ticket {mean_return(ticket):.0f}, random mask {mean_return(chance):.0f}, "
            f"random weights {mean_return(policy):.0f}"
        )


if __name__ == "__main__":
    main()
