"""The Hessian of a Problem's loss."""

from __future__ import annotations

from torch import Tensor

from geomtraj.operators.hvp.hessian import HESSIAN
from geomtraj.operators.problem_operator import ProblemOperator
from geomtraj.problem import Problem


class Hessian(ProblemOperator):
    """The Hessian (P, P) of L at theta, known by its products with vectors: H v = d/dtheta (gradient . v).

    There are several strategies for a product; they give the same numbers up to rounding, differences excepted:

    - "double-backward": the gradient's graph is kept from product to product while all of it fits into a quarter of the
      free memory, and each vector runs backward through it.
    - "double-backward-fresh": the same with a new graph in each call; least memory.
    - "forward-over-reverse": the gradient of dual numbers, nothing kept.
    - "linearized-double-backward", "linearized-forward-over-reverse": the operations that a product consists of are
      recorded once, simplified, and run for each vector. Often the quickest, after a preparation as long as some
      products.
    - "compiled": "linearized-forward-over-reverse" through `torch.compile`, for very many products: preparing takes
      about a minute for each batch and theta, and needs a C++ compiler.
    - "finite-differences": central differences of gradients, for models without a second derivative. Relative error up
      to 1e-7 in float64 and about 1e-4 in float32; of no use where the loss has kinks (ReLU, max-pooling).

    "auto" begins with "double-backward". It tries the recorded strategies on the products that are asked for, as soon
    as a twentieth of the time that products have taken pays for that, and changes where that is worth it for as many
    products as have been made, preparation included. What a process learnt is kept for all operators on models of the
    same structure: `strategy` and `timings` tell it. A strategy whose product is not that of double backward is not
    chosen. The choice depends on the clock, and with it the rounding: name a strategy for the same bits in each run.

    Where memory runs short, graphs are dropped and batches are cut into micro-batches, which changes nothing but the
    time.

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
        super().__init__(HESSIAN, problem, theta, strategy=strategy)
