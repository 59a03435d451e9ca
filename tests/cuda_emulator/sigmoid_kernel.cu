// Sigmoid's rules in the walks of csrc/contrastive/cuda.
#include "sigmoid.h"

#include "contrastive/cuda/walk.cuh"

namespace clipfast {
namespace {

struct SigmoidSumRule {
  template <typename Acc>
  struct Form {
    __device__ __forceinline__ Acc operator()(Acc logit) const {
      return log(Acc(1) + power_of_two(logit));
    }
  };

  template <typename Acc>
  __device__ __forceinline__ Form<Acc> form() const {
    return {};
  }

  template <typename Acc>
  __device__ __forceinline__ void note(Acc) const {}
};

struct SigmoidWeightRule {
  template <typename Acc>
  struct Form {
    __device__ __forceinline__ Acc row(int64_t) const { return 0; }

    __device__ __forceinline__ ColumnVector<Acc> columns(const Place&, int64_t) const { return {}; }

    __device__ __forceinline__ Acc operator()(Acc logit, Acc, Acc) const {
      return Acc(1) / (Acc(1) + power_of_two(-logit));
    }
  };

  template <typename Acc, typename Use>
  __device__ __forceinline__ void visit(const Use& use) const {
    use(Form<Acc>{});
  }
};

}  // namespace

const char* launch_sigmoid_sums(const Chunk& chunk, const ChunkSums& sums, void* stream) {
  run_sums(chunk, sums, SigmoidSumRule{}, static_cast<cudaStream_t>(stream));
  return launch_error();
}

const char* launch_sigmoid_weights(const Chunk& chunk, const MutableRows& weights, void* stream) {
  run_weights(chunk, weights, SigmoidWeightRule{}, static_cast<cudaStream_t>(stream));
  return launch_error();
}

}  // namespace clipfast
