"""CDT's policy: a causal transformer over the last steps of an episode, and what is still to come of it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from spi_diffusers.models.actors import _Actor

#: Bounds of an action's log standard deviation. Where the data repeats one action, it would fall for ever.
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
#: Tokens of a step, in this order: return to go, cost to go, observation, action.
TOKENS = 4


class CausalBlock(nn.Module):
    """Attention to a token and those before it, then an MLP; both added to what comes in, normalized before.

    Args:
        width: Size E of a token.
        num_heads: Heads of the attention, which divide E.
        dropout: Share of numbers that training leaves out.
    """

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, E) from tokens (B, L, E)."""
        projected = self.query_key_value(self.attention_norm(tokens))
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        attended = self.output(attended.transpose(1, 2).flatten(2))
        tokens = tokens + F.dropout(attended, self.dropout, self.training)
        return tokens + F.dropout(self.mlp(self.mlp_norm(tokens)), self.dropout, self.training)


class DecisionTransformer(_Actor, ModelMixin):  # diffusers looks for ModelMixin in a component's module
    """CDT's policy (Liu et al. 2023): actions that led to a return and a cost to go in the data.

    Returns and costs are undiscounted sums, in the units that they are logged in.

    Args:
        observation_dim: Size O of a (normalized) observation.
        action_dim: Size A of an action.
        max_episode_steps: Steps of an episode; later ones count as the last.
        context: Number W of steps that it looks back on, the present one included.
        embedding_dim: Size E of a token.
        num_layers: Number of blocks.
        num_heads: Heads of the attention, which divide E.
        dropout: Share of numbers that training leaves out.
        stochastic: Whether actions are Gaussian; else there is one action.
        return_scale: What returns are divided by.
        cost_scale: What costs are divided by.
        frontier_costs: Costs of the episodes of the data of which none that costs no more earns as much,
            rising.
        frontier_returns: Their returns, rising.

    Raises:
        ValueError: For sizes below one, heads that do not divide E, a dropout outside [0, 1), scales that are
            not positive, or a frontier that does not rise.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        max_episode_steps: int,
        context: int = 10,
        embedding_dim: int = 128,
        num_layers: int = 3,
        num_heads: int = 8,
        dropout: float = 0.1,
        stochastic: bool = True,
        return_scale: float = 1.0,
        cost_scale: float = 1.0,
        frontier_costs: Sequence[float] = (0.0,),
        frontier_returns: Sequence[float] = (0.0,),
    ):
        super().__init__()
        sizes = [observation_dim, action_dim, max_episode_steps, context]
        sizes += [embedding_dim, num_layers, num_heads]
        if min(sizes) < 1 or embedding_dim % num_heads:
            raise ValueError(
                f"All sizes must be at least 1, and num_heads must divide embedding_dim, got {sizes}."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}.")
        if not (0 < return_scale < float("inf") and 0 < cost_scale < float("inf")):
            raise ValueError(f"Scales must be positive and finite, got {return_scale} and {cost_scale}.")
        frontier = torch.tensor([frontier_costs, frontier_returns], dtype=torch.float64, device="cpu")
        if frontier.shape[1] == 0 or not bool((frontier.diff(dim=1) > 0).all()):
            raise ValueError("frontier_costs and frontier_returns must have a number at least, and rise.")
        self.embed_time = nn.Embedding(max_episode_steps, embedding_dim)
        self.embed_return, self.embed_cost = nn.Linear(1, embedding_dim), nn.Linear(1, embedding_dim)
        self.embed_observation = nn.Linear(observation_dim, embedding_dim)
        self.embed_action = nn.Linear(action_dim, embedding_dim)
        self.input_norm, self.output_norm = nn.LayerNorm(embedding_dim), nn.LayerNorm(embedding_dim)
        self.blocks = nn.ModuleList(CausalBlock(embedding_dim, num_heads, dropout) for _ in range(num_layers))
        self.action_head = nn.Linear(embedding_dim, (1 + stochastic) * action_dim)
        self.cost_head = nn.Linear(embedding_dim, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(
        self, observation: Tensor, action: Tensor, return_to_go: Tensor, cost_to_go: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """What it does in each step of W, of which it knows those before, and in it all but the action.

        Args:
            observation: Normalized, (B, W, O).
            action: In [-1, 1], (B, W, A).
            return_to_go: Return from this step to the end of the episode, (B, W).
            cost_to_go: Likewise the cost, (B, W).
            step: Number of the step in its episode, from 0, (B, W) int64.

        Returns:
            Mean of the action, (B, W, A); its log standard deviation, likewise, None where it is not
            stochastic; and the logit of the probability that the action costs something, (B, W); float32.
        """
        config, dtype = self.config, self.action_head.weight.dtype
        parts = (
            self.embed_return((return_to_go / config.return_scale).unsqueeze(-1).to(dtype)),
            self.embed_cost((cost_to_go / config.cost_scale).unsqueeze(-1).to(dtype)),
            self.embed_observation(observation.to(dtype)),
            self.embed_action(action.to(dtype)),
        )
        time = self.embed_time(step.clamp_max(config.max_episode_steps - 1))
        tokens = (torch.stack(parts, dim=2) + time.unsqueeze(2)).flatten(1, 2)  # (B, 4 W, E)
        tokens = F.dropout(self.input_norm(tokens), config.dropout, self.training)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.output_norm(tokens).unflatten(1, (-1, TOKENS))
        raw = self.action_head(tokens[:, :, 2]).float()  # after the observation, before the action
        costly = self.cost_head(tokens[:, :, 3]).float().squeeze(-1)
        if not config.stochastic:
            return raw, None, costly
        mean, log_std = raw.chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX), costly

    def target_return(self, cost_limit: Tensor) -> Tensor:
        """The highest return of the data's episodes that cost at most a limit, of any shape, float64.

        Where none does, that of the cheapest.
        """
        costs, returns = (
            torch.tensor(points, dtype=torch.float64, device=cost_limit.device)
            for points in (self.config.frontier_costs, self.config.frontier_returns)
        )
        within = torch.searchsorted(costs, cost_limit.double().contiguous(), right=True)
        return returns[(within - 1).clamp_min(0)]

    @torch.no_grad()
    def act(
        self, observation: Tensor, action: Tensor, return_to_go: Tensor, cost_to_go: Tensor, step: Tensor
    ) -> Tensor:
        """Mean actions of all steps in [-1, 1], (B, W, A): when it acts, it is not random; see `forward`."""
        return self(observation, action, return_to_go, cost_to_go, step)[0].clamp(-1.0, 1.0)
