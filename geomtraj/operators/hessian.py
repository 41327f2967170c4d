"""The Hessian of a Problem's loss."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from geomtraj.errors import ComputationError
from geomtraj.operators.base import PrincipalBlock, SymmetricOperator
from geomtraj.operators.evaluation.engine import Engine
from geomtraj.operators.guard import check_derivatives, check_gradient
from geomtraj.problem import Problem


class Hessian(SymmetricOperator):
    """The Hessian (P, P) of L at theta, known by its products with vectors.

    There are several strategies for a product; they give the same numbers up to rounding, "differences" excepted:

    - "kept": double backward, the gradient's graph kept from product to product while all of it fits into a quarter
      of the free memory.
    - "fresh": double backward with a new graph in each call; least memory.
    - "forward": forward over reverse, nothing kept.
    - "linearized-forward", "linearized-reverse": the operations that a product consists of are recorded once,
      simplified, and run for each vector. Mostly the quickest, after a preparation as long as a few products.
    - "compiled": "linearized-forward" through `torch.compile`, for very many products: preparing takes about a
      minute for each batch and theta, and needs a C++ compiler.
    - "differences": central differences of gradients, for models without a second derivative. Relative error up to
      1e-7 in float64 and about 1e-4 in float32; of no use where the loss has kinks (ReLU, max-pooling).

    "auto" begins with "kept". Once products have taken long enough to pay for a trial, it times the others on the
    first batch, a few products each, and changes to the quickest for as many products as have been made, preparation
    included. All Hessians of one problem share what was learnt: `strategy` and `timings` tell it. One whose product
    with a random vector is not that of double backward is not chosen.

    Where memory runs short, graphs are dropped and batches are cut into parts, which changes nothing but the time.

    Args:
        problem: The loss.
        theta: Where to measure, shape (P,); a copy of the current parameters if left out.
        strategy: "auto" or one of the names above.

    Raises:
        InputError: theta does not fit the problem's layout, or the strategy is unknown; from the first product, the
            problem's derivatives are not what they are taken for (see `geomtraj.operators.check_derivatives`).
        ComputationError: No selected parameter reaches the loss.
    """

    def __init__(self, problem: Problem, theta: Tensor | None = None, strategy: str = "auto"):
        super().__init__(problem.layout, problem.dtype, problem.device, problem.blocks)
        if set(problem.unused) == set(problem.layout):
            raise ComputationError(
                "no selected parameter reaches the loss, so its Hessian is zero: loss(model, batch) must compute with "
                "the model it is given, without torch.no_grad() or .detach() on the way."
            )
        self.problem = problem
        self.theta = problem.checked(theta)
        self._asked = strategy
        self._parameters = problem.layout.unflatten(self.theta)
        self._engine = Engine(problem, self._parameters, self.layout, strategy)

    @property
    def strategy(self) -> str:
        """The strategy of the next product."""
        return self._engine.strategy

    @property
    def timings(self) -> dict[str, float | str]:
        """Seconds for each product on the first batch by strategy, as far as tried; a sentence for those refused."""
        known = self._engine.history
        return {**{name: timing.product for name, timing in known.timings.items()}, **known.refused}

    def block(self, globs: str | Iterable[str]) -> SymmetricOperator:
        """The principal block of what matches; its products differentiate by the parameters of that alone.

        A `Hessian` of these parameters where all of their entries match, else rows and columns of one.
        """
        chosen = self.blocks.select(globs)
        blocks = self.blocks.around(chosen)
        part = object.__new__(type(self))
        SymmetricOperator.__init__(part, blocks.layout, self.dtype, self.device, blocks)
        part.problem, part.theta, part._asked = self.problem, self.theta, self._asked
        part._parameters = self._parameters
        part._engine = Engine(part.problem, part._parameters, part.layout, part._asked)
        return part if blocks.size == sum(block.size for block in chosen) else PrincipalBlock(part, chosen)

    def _matmat(self, vectors: Tensor) -> Tensor:
        check = check_gradient if self._asked == "differences" else check_derivatives
        check(self.problem, self.theta)
        rows = vectors.T if vectors.stride(0) == 1 else vectors.T.contiguous()
        total = self._engine.products(rows)
        return self.problem.over_ranks(total, of=vectors).div_(self.problem.total_weight).T
