// Checks and registration of resize_crops_.
#include "resize.h"

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <vector>

namespace clipfast {
namespace {

using at::Tensor;

void check(at::TensorList images, const Tensor& boxes, at::ArrayRef<double> mean,
           at::ArrayRef<double> std, const Tensor& out) {
  const auto count = static_cast<int64_t>(images.size());
  TORCH_CHECK(boxes.dim() == 2 && boxes.size(0) == count && boxes.size(1) == 3 &&
                  boxes.scalar_type() == at::kDouble && boxes.is_contiguous(),
              "resize_crops_: expected boxes [", count, ", 3] float64, contiguous, got ",
              boxes.sizes(), " ", boxes.scalar_type());
  TORCH_CHECK(out.dim() == 4 && out.size(0) == count && out.size(1) == out.size(2) &&
                  out.size(1) > 0 && out.size(3) == 3 && out.scalar_type() == at::kFloat &&
                  out.is_contiguous(),
              "resize_crops_: expected out [", count, ", S, S, 3] float32, contiguous, got ",
              out.sizes(), " ", out.scalar_type());
  TORCH_CHECK(mean.size() == 3 && std.size() == 3,
              "resize_crops_: expected mean and std of 3 channels, got ", mean.size(), " and ",
              std.size());
  for (const Tensor& image : images) {
    TORCH_CHECK(image.dim() == 3 && image.size(2) == 3 && image.numel() > 0 &&
                    image.scalar_type() == at::kByte && image.is_contiguous(),
                "resize_crops_: expected images [H, W, 3] uint8, contiguous, got ", image.sizes(),
                " ", image.scalar_type());
  }
}

void resize_crops(at::TensorList images, const Tensor& boxes, at::ArrayRef<double> mean,
                  at::ArrayRef<double> std, Tensor out) {
  check(images, boxes, mean, std, out);
  const int64_t size = out.size(1);
  const auto* box = boxes.const_data_ptr<double>();
  auto* pixels = out.mutable_data_ptr<float>();
  std::vector<ResizeImage> list;
  list.reserve(images.size());
  for (size_t i = 0; i < images.size(); ++i, box += 3, pixels += 3 * size * size) {
    const Tensor& image = images[i];
    const int64_t height = image.size(0), width = image.size(1);
    // Half a pixel of slack: callers compute the square in float32. Not a number fails too.
    TORCH_CHECK(box[0] >= -0.5 && box[1] >= -0.5 && box[2] > 0 && box[0] + box[2] <= height + 0.5 &&
                    box[1] + box[2] <= width + 0.5,
                "resize_crops_: expected a square within ", height, " x ", width,
                " pixels, got top ", box[0], ", left ", box[1], ", side ", box[2]);
    list.push_back(
        {image.const_data_ptr<uint8_t>(), height, width, box[0], box[1], box[2], pixels});
  }
  ResizeArgs args{list.data(), size, {}, {}};
  for (int c = 0; c < 3; ++c) {
    args.factor[c] = static_cast<float>(1.0 / (255.0 * std[c]));
    args.offset[c] = static_cast<float>(-mean[c] / std[c]);
  }
  CLIPFAST_CPU_KERNEL(resize_images)(args, 0, static_cast<int64_t>(list.size()));
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CPU, m) { m.impl("resize_crops_", &resize_crops); }

}  // namespace clipfast
