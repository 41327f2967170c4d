"""A curvature matrix of a Problem's loss, whose products the engine makes."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from geomtraj.blocks import Blocks
from geomtraj.operators.base import PrincipalBlock, SymmetricOperator
from geomtraj.operators.evaluation.engine import Engine
from geomtraj.operators.guard import check_derivatives, check_gradient
from geomtraj.operators.hvp import Curvature
from geomtraj.operators.hvp.refusals import check_reached
from geomtraj.problem import Problem


class ProblemOperator(SymmetricOperator):
    """A matrix (P, P) of the loss L at theta: the sum over batches, divided by the total weight.

    Args:
        curvature: Which matrix.
        problem: The loss.
        theta: Where to measure, shape (P,); a copy of the current parameters if left out.
        strategy: How products are made.
        blocks: The parameters to differentiate by, the problem's if left out.

    Attributes:
        problem: The loss.
        theta: Where it is measured (P,).

    Raises:
        ComputationError: No selected parameter reaches the loss.
    """

    def __init__(
        self,
        curvature: Curvature,
        problem: Problem,
        theta: Tensor | None,
        *,
        strategy: str,
        blocks: Blocks | None = None,
    ):
        check_reached(problem)
        blocks = problem.blocks if blocks is None else blocks
        super().__init__(blocks.layout, problem.dtype, problem.device, blocks)
        self.problem = problem
        self.theta = problem.checked(theta)
        self._curvature = curvature
        self._engine = Engine(
            curvature, problem, problem.layout.unflatten(self.theta), layout=self.layout, strategy=strategy
        )

    @property
    def strategy(self) -> str:
        """The strategy of the next product."""
        return self._engine.strategy

    @property
    def timings(self) -> dict[str, float | str]:
        """Seconds for each product on the first batch by strategy, as far as tried; a sentence for those refused."""
        known = self._engine.known
        return {**{name: timing.product for name, timing in known.learnt.timings.items()}, **known.refused}

    def block(self, globs: str | Iterable[str]) -> SymmetricOperator:
        """The principal block of what matches; its products differentiate by the parameters of that alone.

        It has its own strategy where whole parameters match; else it is rows and columns of such an operator.
        """
        chosen = self.blocks.select(globs)
        blocks = self.blocks.around(chosen)
        asked = self._engine.asked
        part = ProblemOperator(self._curvature, self.problem, self.theta, strategy=asked, blocks=blocks)
        return part if blocks.size == sum(block.size for block in chosen) else PrincipalBlock(part, chosen)

    def check(self) -> None:
        """Refuses a problem whose derivatives are not what they are taken for; done once for each problem.

        Raises:
            InputError: They are not (see `geomtraj.operators.check_derivatives`).
        """
        plain = self._engine.asked == "finite-differences"
        (check_gradient if plain else check_derivatives)(self.problem, self.theta)

    def _matmat(self, vectors: Tensor) -> Tensor:
        self.check()
        rows = vectors.T if vectors.stride(0) == 1 else vectors.T.contiguous()
        total = self._engine.products(rows)
        return self.problem.over_ranks(total, of=vectors).div_(self.problem.total_weight).T
