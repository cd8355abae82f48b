// The mixed edges of a cell, forward and backward, for one instruction set. fastdarts/ops/mixed_cell.py has the
// definition, which this must equal; mixed_cell.h the plan and the block layout.
//
// Forward, state by state: (1) y of each convolution that reads the state, with its BN's sums; (2) y of the second
// halves of separable convolutions, their middle (BN, ReLU) formed from the stored y; (3) the node: one affine sum over
// all y. Backward, node by node, last first: (4) per candidate the two sums that BN's gradient needs (alpha's gradient
// is a by-product); (5) second halves; (6) first halves, into the sources' gradients. When all edges of a state are
// through: (7) its pools, skips and bypass. Where several ranks share the statistics (ranks.h), these are summed over
// the ranks after (1), (2), (4) and (5), for all edges that are ready at once.
//
// Each file has a class derived from that of the file it includes: mixed_cell_layout.h for both
// directions; mixed_cell_forward_convolutions.h (1) and (2), mixed_cell_forward.h (3) and the order of the stages;
// mixed_cell_backward_sums.h (4) and the backward's memory, mixed_cell_backward_convolutions.h (5) and (6),
// mixed_cell_backward.h (7) and the order of the stages.
//
// A convolution is stored as y minus a pivot, one number a channel close to y's mean, so its sums of squares do not
// cancel. Sums have type T within about 64 pixels, then double; partial sums belong to blocks of images or to fixed
// runs of blocks, and are added in order: the result does not depend on the number of threads.
#include "mixed_cell_backward.h"
#include "mixed_cell_forward.h"

namespace fastdarts::ISA {
namespace {

template <typename T, template <typename, int> class Direction, typename Call>
void run(const CellPlan& plan, const Call& call) {
  if constexpr (LANES<T> >= 8) {
    if (plan.images == 2) return Direction<T, 2>(plan, call).run();
  }
  if constexpr (LANES<T> >= 16) {
    if (plan.images == 4) return Direction<T, 4>(plan, call).run();
  }
  Direction<T, 1>(plan, call).run();
}

}  // namespace

const CellKernels cell_kernels = {
    FASTDARTS_VECTOR_BYTES,
    run<float, Forward, CellForward<float>>,
    run<double, Forward, CellForward<double>>,
    run<float, Backward, CellBackward<float>>,
    run<double, Backward, CellBackward<double>>,
};

}  // namespace fastdarts::ISA
