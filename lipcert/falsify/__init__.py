"""Claims and verdicts: search for a pair that breaks a claim, confirm it exactly, make it readable. Floor 5."""

from lipcert.falsify.check import assert_lipschitz, judged, lipcheck, refute, require_known, violating_pair
from lipcert.falsify.search import Effort
from lipcert.falsify.verdict import Claim, Proved, Refuted, Unknown, Verdict

__all__ = [
    "Claim",
    "Effort",
    "Proved",
    "Refuted",
    "Unknown",
    "Verdict",
    "assert_lipschitz",
    "judged",
    "lipcheck",
    "refute",
    "require_known",
    "violating_pair",
]
