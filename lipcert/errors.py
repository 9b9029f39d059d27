"""What lipcert says when it will not answer. Floor 0.

Every message states what happened, why that matters for a proof, and what to do now; errors about a model
name the module path in the user's model.
"""


class LipcertError(Exception):
    """Any refusal of lipcert; catch this to catch them all."""


class InvalidInput(LipcertError, ValueError):
    """An argument that cannot mean what a claim needs (a shape, a norm, an empty dimension, a wrong type)."""


class UnsupportedOperation(LipcertError):
    """The model does something no rule covers, or that a graph cannot describe faithfully.

    Attributes:
        path: The module path (or traced name) of the operation in the user's model.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        """Keep the path beside the message."""
        super().__init__(message)
        self.path = path


class NotLipschitz(UnsupportedOperation):
    """The operation is understood, and has no finite Lipschitz constant on the whole space."""


class NotFinite(LipcertError, ValueError):
    """A weight, constant or intermediate number is NaN or infinite."""


class FloatEnvironment(LipcertError):
    """The processor does not round as IEEE 754 says (flush-to-zero, another direction), so no bound can be trusted."""


class BudgetExceeded(LipcertError):
    """The work was estimated first and is over the budget; the message carries the number."""


class RankLost(LipcertError):
    """A process of a job with several is gone, so the work is incomplete and there is no answer."""


class CheckFailed(LipcertError):
    """The independent checker does not accept the certificate for this network."""


class LipschitzViolation(LipcertError, AssertionError):
    """A pair of inputs whose difference quotient exceeds the claimed constant."""


class ExecutionViolation(LipcertError, AssertionError):
    """A pair of inputs at which the executed function leaves its claim by more than its arithmetic can explain."""


class Unproved(LipcertError, AssertionError):
    """A claim that was asserted with a proof, and has neither a proof nor a counterexample."""


class PenaltyMismatch(LipcertError, AssertionError):
    """A penalty that is not what its name says: another value, or another gradient, than the definition."""
