// The scheduler behind emulator.h, and the few library calls that kernels' callers make.
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ATen/cuda/CUDAContext.h"
#include "emulator.h"

namespace emulator {

uint3 thread_index, block_index;
dim3 block_size, grid_size;

namespace {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 256 * 1024;

enum class State { kReady, kAtBarrier, kAtShuffle, kDone };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  State state;
  // Two places: a lane may write its next value while others still read this one.
  char value[2][8];
  int parity;
};

std::vector<Fiber> fibers;
ucontext_t scheduler;
int current;
const std::function<void()>* thread_body;

[[noreturn]] void fail(const char* reason) {
  std::fprintf(stderr, "CUDA emulator: %s (block %u %u, thread %d)\n", reason, block_index.x,
               block_index.y, current);
  std::abort();
}

void enter() {
  (*thread_body)();
  fibers[current].state = State::kDone;
  swapcontext(&fibers[current].context, &scheduler);
}

void wait(State state) {
  fibers[current].state = state;
  swapcontext(&fibers[current].context, &scheduler);
}

// Whether fibers [begin, end) that have not left all wait in `state`; if so, they go on.
bool release(int begin, int end, State state) {
  bool any = false;
  for (int i = begin; i < end; ++i) {
    if (fibers[i].state == state) {
      any = true;
    } else if (fibers[i].state != State::kDone) {
      return false;
    } else if (state == State::kAtShuffle) {
      // Undefined on a GPU where the mask names the lane, and every mask here names all.
      for (int j = begin; j < end; ++j) {
        if (fibers[j].state == state) fail("a shuffle after a lane of the warp has left");
      }
    }
  }
  for (int i = begin; any && i < end; ++i) {
    if (fibers[i].state == state) fibers[i].state = State::kReady;
  }
  return any;
}

void run_block(int threads, bool is_reversed) {
  for (int i = 0; i < threads; ++i) {
    Fiber& f = fibers[i];
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = nullptr;
    f.state = State::kReady;
    f.parity = 0;
    makecontext(&f.context, enter, 0);
  }
  for (;;) {
    bool is_done = true;
    for (int i = 0; i < threads; ++i) {
      current = is_reversed ? threads - 1 - i : i;
      if (fibers[current].state != State::kReady) continue;
      thread_index = {static_cast<unsigned>(current), 0, 0};
      swapcontext(&scheduler, &fibers[current].context);
    }
    for (int i = 0; i < threads; ++i) is_done &= fibers[i].state == State::kDone;
    if (is_done) return;
    bool any = release(0, threads, State::kAtBarrier);
    for (int w = 0; w < threads; w += kWarp) any |= release(w, w + kWarp, State::kAtShuffle);
    if (!any) fail("threads wait for others that do not come");
  }
}

}  // namespace

int lane() { return current % kWarp; }

void check_alignment(const void* p, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) fail("a misaligned access");
}

void wait_for_block() { wait(State::kAtBarrier); }

void exchange(void* value, size_t size, int source_lane, unsigned mask) {
  if (mask != 0xffffffffu || size > 8) fail("a shuffle of a kind that is not emulated");
  Fiber& own = fibers[current];
  const int place = own.parity;
  own.parity = 1 - place;
  std::memcpy(own.value[place], value, size);
  const int source = current / kWarp * kWarp + source_lane;
  wait(State::kAtShuffle);
  std::memcpy(value, fibers[source].value[place], size);
}

void run(const Shape& shape, const std::function<void()>& thread) {
  const int threads = static_cast<int>(shape.block.x);
  if (shape.block.y != 1 || shape.block.z != 1 || shape.grid.z != 1 || threads % kWarp != 0) {
    fail("a launch of a kind that is not emulated");
  }
  if (shape.grid.y > 65535) fail("a grid of more than 65535 rows");
  if (static_cast<int>(fibers.size()) < threads) fibers.resize(threads);
  const char* wish = std::getenv("CLIPFAST_EMULATOR_REVERSED");
  const bool is_reversed = wish != nullptr && wish[0] == '1';
  thread_body = &thread;
  block_size = shape.block;
  grid_size = shape.grid;
  const unsigned blocks = shape.grid.x * shape.grid.y;
  for (unsigned i = 0; i < blocks; ++i) {
    const unsigned block = is_reversed ? blocks - 1 - i : i;
    block_index = {block % shape.grid.x, block / shape.grid.x, 0};
    run_block(threads, is_reversed);
  }
}

}  // namespace emulator

extern "C" {

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "none"; }
}

namespace {

double element(const void* data, cudaDataType_t type, int64_t i) {
  switch (type) {
    case CUDA_R_16F:
      return __half2float(static_cast<const __half*>(data)[i]);
    case CUDA_R_16BF:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
    case CUDA_R_32F:
      return static_cast<const float*>(data)[i];
    default:
      return static_cast<const double*>(data)[i];
  }
}

}  // namespace

// c [m, n] = alpha op(a) [m, k] op(b) [k, n] + beta c, all column-major, as cuBLAS defines it.
cublasStatus_t cublasGemmEx(cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, int m,
                            int n, int k, const void* alpha, const void* a, cudaDataType_t a_type,
                            int lda, const void* b, cudaDataType_t b_type, int ldb,
                            const void* beta, void* c, cudaDataType_t c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t) {
  const bool is_double = compute == CUBLAS_COMPUTE_64F;
  if (is_double != (c_type == CUDA_R_64F) || a_type != b_type || (is_double && a_type != c_type) ||
      (!is_double && c_type != CUDA_R_32F) || lda < (op_a == CUBLAS_OP_N ? m : k) ||
      ldb < (op_b == CUBLAS_OP_N ? k : n) || ldc < m || m < 1 || n < 1 || k < 0) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const cudaDataType_t scalar_type = is_double ? CUDA_R_64F : CUDA_R_32F;
  const double scale = element(alpha, scalar_type, 0), old = element(beta, scalar_type, 0);
  std::vector<double> left(static_cast<size_t>(m) * k), right(static_cast<size_t>(n) * k);
  for (int64_t l = 0; l < k; ++l) {
    for (int64_t i = 0; i < m; ++i) {
      left[i * k + l] = element(a, a_type, op_a == CUBLAS_OP_N ? i + l * lda : l + i * lda);
    }
    for (int64_t j = 0; j < n; ++j) {
      right[j * k + l] = element(b, b_type, op_b == CUBLAS_OP_N ? l + j * ldb : j + l * ldb);
    }
  }
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < m; ++i) {
      double total = 0;
      for (int64_t l = 0; l < k; ++l) total += left[i * k + l] * right[j * k + l];
      // beta = 0 does not read c, which may be NaN.
      const double before = old == 0 ? 0 : old * element(c, c_type, i + j * ldc);
      const double after = scale * total + before;
      if (is_double) {
        static_cast<double*>(c)[i + j * ldc] = after;
      } else {
        static_cast<float*>(c)[i + j * ldc] = static_cast<float>(after);
      }
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}
