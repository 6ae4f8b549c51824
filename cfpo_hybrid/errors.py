"""One tree of exceptions; each is also a standard one, and each survives pickling.

    CfpoError
    ├── UserError                      the user can mend it; the command line exits with 2
    │   ├── ConfigError      (ValueError)      one or many configuration mistakes, reported together
    │   ├── DataError        (ValueError)      a data file or column is missing or malformed
    │   ├── RegistryError    (KeyError)        an unknown or doubled name in a registry
    │   ├── ModelError       (ValueError)      a checkpoint or model folder that cannot be used
    │   └── RewardError      (ValueError)      a user's reward function cannot be loaded
    ├── BatchError           (ValueError)      a DataProto that breaks the schema
    ├── DispatchError        (RuntimeError)    a worker method or group used against its contract
    ├── ReshardError         (RuntimeError)    a plan that does not cover, or engines that disagree
    ├── NumericsError        (ArithmeticError) a non-finite or inconsistent quantity in training
    ├── WatchStop            (RuntimeError)    a run that crossed a limit it declared; the command line exits with 3
    └── WorkerError          (RuntimeError)    a worker raised or died; carries rank, role and traceback

A message says what was wrong, the value, what is allowed, and what to do. The library speaks of its own arguments,
``kl_coef=-1 must be ...``; who reads a configuration puts the key of its section before them. To add an exception: give it
the nearest parent here and a standard type, keep every constructor argument in ``args`` so that it pickles, and draw it
above.
"""

from collections.abc import Sequence


class CfpoError(Exception):
    """Root of everything the project raises on purpose."""


class UserError(CfpoError):
    """A mistake the user can mend; the command line prints it without a traceback and exits with 2."""


class ConfigError(UserError, ValueError):
    """Configuration mistakes, all of them at once.

    Args:
        problems: one message, or one message a mistake.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(self.problems, start=1))
        return f"{len(self.problems)} mistakes in the configuration:\n{lines}"


class DataError(UserError, ValueError):
    """A data file, column or row that cannot be used."""


class RegistryError(UserError, KeyError):
    """A name that is unknown to a registry, or registered twice."""

    def __str__(self) -> str:
        return str(self.args[0])


class ModelError(UserError, ValueError):
    """A model folder or checkpoint that cannot be loaded."""


class RewardError(UserError, ValueError):
    """A reward function that cannot be loaded."""


class BatchError(CfpoError, ValueError):
    """A batch that breaks the schema of its columns."""


class DispatchError(CfpoError, RuntimeError):
    """A worker group or a worker method used against its contract."""


class ReshardError(CfpoError, RuntimeError):
    """A reshard plan that does not cover its destination, or engines that disagree after a reshard."""


class NumericsError(CfpoError, ArithmeticError):
    """A quantity in training that is not finite or contradicts another."""


class WatchStop(CfpoError, RuntimeError):
    """A run crossed a limit it had declared: it saved its state and stopped."""


class WorkerError(CfpoError, RuntimeError):
    """A worker raised or died.

    Args:
        role: the worker group's name, e.g. ``"hybrid"``.
        rank: the worker's rank in its group; -1 when unknown.
        method: the method that was running.
        cause: the worker's traceback, or how the process ended.
    """

    def __init__(self, role: str, rank: int, method: str, cause: str) -> None:
        self.role, self.rank, self.method, self.cause = role, rank, method, cause
        super().__init__(role, rank, method, cause)

    def __str__(self) -> str:
        return f"worker {self.role}[rank {self.rank}] failed in {self.method}:\n{self.cause}"
