"""Which algorithms there are, and what must be known of each without importing it; imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class AlgorithmEntry:
    """Where an algorithm is, and what its configuration must know without importing it.

    Attributes:
        group: Field of `TrainConfig` with its settings.
        class_name: Its class, in the module of `spi_diffusers.algorithms` that is called like the group.
        title: What tables, figures and help texts call it.
        limit: Where it takes a cost limit: "acting": its policy is told one when it acts; "training": it is
            trained for one; "none": it ignores the cost, and any limit only judges its policy.
        streams: It can train on data that stays in its files.
        uses: Settings outside its group that only it looks at.
        fixed: Settings of its group that make it what its name says.
    """

    group: str
    class_name: str
    title: str
    limit: Literal["acting", "training", "none"] = "training"
    streams: bool = False
    uses: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)


_SPI = AlgorithmEntry(
    "spi",
    "SPI",
    "safe SPI",
    limit="acting",
    streams=True,
    uses=("network", "learning_rate", "max_grad_norm", "holdout"),
    fixed={"conditioned": True},
)
_PAPER = replace(_SPI, uses=_SPI.uses[:-1], fixed={"conditioned": False})
#: By the name that users and results call it; presets/<name>.yaml holds its defaults.
ALGORITHMS: dict[str, AlgorithmEntry] = {
    "spi": _SPI,
    "spi-paper": replace(_PAPER, title="SPI"),
    "spi-paper-no-safety": replace(_PAPER, title="SPI except Q^c'", fixed={**_PAPER.fixed, "phi": 0.0}),
    "spi-paper-no-reward": replace(_PAPER, title="SPI except Q^r", fixed={**_PAPER.fixed, "mu": 0.0}),
    "bc": AlgorithmEntry("bc", "BC", "BC", limit="none"),
    "bc-safe": AlgorithmEntry("bc", "BCSafe", "BC-Safe"),
    "bcq-lag": AlgorithmEntry("bcq_lag", "BCQLag", "BCQ-Lag"),
    "bear-lag": AlgorithmEntry("bear_lag", "BEARLag", "BEAR-Lag"),
    "cpq": AlgorithmEntry("cpq", "CPQ", "CPQ"),
    "coptidice": AlgorithmEntry("coptidice", "COptiDICE", "COptiDICE"),
    "diffusion-ql": AlgorithmEntry("diffusion_ql", "DiffusionQL", "Diffusion-QL", limit="none"),
    "cdt": AlgorithmEntry("cdt", "CDT", "CDT", limit="acting"),
    "caps": AlgorithmEntry("caps", "CAPS", "CAPS", limit="acting"),
}
DEFAULT_ALGORITHM = "spi"
#: The algorithms whose policies are not told a cost limit.
BASELINES = {name: entry for name, entry in ALGORITHMS.items() if entry.limit != "acting"}
