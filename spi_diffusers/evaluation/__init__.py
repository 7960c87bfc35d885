"""Rollouts in the simulator, metrics, results files, plots and video."""

#: As "safe", but the policy's student answers.
FAST = "fast"
#: Ways in which SPI's policies choose an action: within the cost limit, or by reward alone (Eq. 12).
EXTRACTIONS = ("safe", "reward", FAST)
#: What an entry's extraction is where there is only one way to act, as with a baseline.
BASELINE_EXTRACTION = "policy"
#: Likewise, of a baseline that is told the cost limit when it acts.
LIMIT_EXTRACTION = "limit"


def knows_limit(extraction: str) -> bool:
    """Whether a policy that acts in this way is told the cost limit."""
    return extraction in ("safe", FAST, LIMIT_EXTRACTION)
