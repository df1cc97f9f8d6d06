// Group norm, scale and shift, SiLU and dropout as one operation; and its gradient. NVRTC compiles this text when a GPU first needs
// it, with VALUE=0 for f32, 1 for bf16, 2 for f16. Values are computed in f32, and each sum in an order of its own: results repeat.
//
// A block has one group of one image: `channels_per_group` channels of `pixels` values. Each of its threads stays with one channel.

// What a kernel is given. All arrays are contiguous; x, y and their gradients are [B,C,H,W] or, with `channels_last`, [B,H,W,C].
struct Norm {
  const void *x, *weight, *bias;  // [C] of the last two
  const void *scale, *shift;      // [B,C], or null for none
  const void *grad_y;
  void *y, *grad_x;
  float *mean, *rstd;             // [B,G]
  float *sum, *sum_x;             // [B,C]: over the pixels, of the gradient before SiLU, alone and times the normalized x
  const long *seed;               // [1], of dropout's mask, or null for no dropout
  float keep, eps;                // `keep`: the share of values that dropout keeps
  int channels, channels_per_group, pixels, channels_last, silu;
};

#ifndef LCSC_HOST

#ifndef KERNEL
#define KERNEL(name) extern "C" __global__ void name
#endif

constexpr int THREADS = 256;

#if VALUE == 0
typedef float Value;
__device__ float load(Value v) { return v; }
__device__ Value store(float v) { return v; }
#elif VALUE == 1
typedef unsigned short Value;
__device__ float load(Value v) { return __uint_as_float(static_cast<unsigned>(v) << 16); }
__device__ Value store(float v) {
  unsigned bits = __float_as_uint(v);
  // To the nearest, ties to even; what is no number stays none.
  return v != v ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#else
typedef unsigned short Value;
#ifdef __CUDACC__
__device__ float load(Value v) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v));
  return wide;
}
__device__ Value store(float v) {
  Value narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(v));
  return narrow;
}
#endif
#endif

// A thread's channel, and which of its pixels: `first`, `first + stride`, …
struct Share {
  int channel, first, stride;     // `channel` within the group
  long place, step;               // of the first pixel in x, and to the next pixel

  __device__ Share(const Norm &n) {
    int thread = threadIdx.x, width = n.channels_per_group, group = blockIdx.x, image = blockIdx.y;
    stride = THREADS / width;
    // Neighbours in memory are neighbours among threads.
    channel = n.channels_last ? thread % width : thread / stride;
    first = n.channels_last ? thread / width : thread % stride;
    // The threads that are left over.
    if (channel >= width || first >= stride) channel = 0, first = n.pixels;
    long at = static_cast<long>(group) * width + channel, size = static_cast<long>(n.channels) * n.pixels;
    place = image * size + (n.channels_last ? at : at * n.pixels);
    step = n.channels_last ? n.channels : 1;
  }
};

// The sum of all threads' values.
__device__ float block_sum(float value) {
  __shared__ float part[THREADS];
  part[threadIdx.x] = value;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    __syncthreads();
  }
  float sum = part[0];
  __syncthreads();
  return sum;
}

// y = silu(normalized · gain + offset), where the norm's weights and the scale and shift of the image are one gain and offset.
struct Affine {
  float gain, offset;

  __device__ Affine(const Norm &n, const Share &share) {
    int c = blockIdx.x * n.channels_per_group + share.channel, of_image = blockIdx.y * n.channels + c;
    gain = load(static_cast<const Value *>(n.weight)[c]);
    offset = load(static_cast<const Value *>(n.bias)[c]);
    if (n.scale) {
      float scale = 1 + load(static_cast<const Value *>(n.scale)[of_image]);
      gain *= scale;
      offset = offset * scale + load(static_cast<const Value *>(n.shift)[of_image]);
    }
  }
};

// MurmurHash3's finaliser.
__device__ unsigned mixed(unsigned bits) {
  bits = (bits ^ bits >> 16) * 0x85ebca6b;
  bits = (bits ^ bits >> 13) * 0xc2b2ae35;
  return bits ^ bits >> 16;
}

// Dropout's factor of a value: a function of the seed, the image and the place in [C,H,W], so that the gradient needs no mask.
struct Dropout {
  unsigned key, first;
  float keep;

  __device__ Dropout(const Norm &n, const Share &share) : keep(n.seed ? n.keep : 1) {
    unsigned long seed = n.seed ? *n.seed : 0;
    key = mixed(mixed(static_cast<unsigned>(seed) + blockIdx.y) ^ static_cast<unsigned>(seed >> 32));
    first = (blockIdx.x * n.channels_per_group + share.channel) * n.pixels;
  }

  __device__ float factor(int pixel) const {
    if (keep == 1) return 1;
    return (mixed(mixed(first + pixel) + key) >> 8) < keep * 0x1p24f ? 1 / keep : 0;
  }
};

KERNEL(norm_forward)(Norm n) {
  Share share(n);
  auto x = static_cast<const Value *>(n.x);
  auto y = static_cast<Value *>(n.y);
  float count = static_cast<float>(n.channels_per_group) * n.pixels, sum = 0, squares = 0;
  for (int p = share.first; p < n.pixels; p += share.stride) sum += load(x[share.place + p * share.step]);
  float mean = block_sum(sum) / count;
  for (int p = share.first; p < n.pixels; p += share.stride) {
    float centred = load(x[share.place + p * share.step]) - mean;
    squares += centred * centred;
  }
  float rstd = 1 / sqrtf(block_sum(squares) / count + n.eps);
  if (threadIdx.x == 0) {
    int of_group = blockIdx.y * gridDim.x + blockIdx.x;
    n.mean[of_group] = mean;
    n.rstd[of_group] = rstd;
  }
  Affine affine(n, share);
  Dropout dropout(n, share);
  for (int p = share.first; p < n.pixels; p += share.stride) {
    long at = share.place + p * share.step;
    float z = (load(x[at]) - mean) * rstd * affine.gain + affine.offset;
    y[at] = store((n.silu ? z / (1 + expf(-z)) : z) * dropout.factor(p));
  }
}

// The gradient by z, the argument of SiLU.
__device__ float before_silu(const Norm &n, float z, float grad) {
  if (!n.silu) return grad;
  float sigmoid = 1 / (1 + expf(-z));
  return grad * sigmoid * (1 + z * (1 - sigmoid));
}

KERNEL(norm_backward)(Norm n) {
  Share share(n);
  auto x = static_cast<const Value *>(n.x), grad_y = static_cast<const Value *>(n.grad_y);
  auto grad_x = static_cast<Value *>(n.grad_x);
  int of_group = blockIdx.y * gridDim.x + blockIdx.x;
  float mean = n.mean[of_group], rstd = n.rstd[of_group], sum = 0, sum_x = 0;
  Affine affine(n, share);
  Dropout dropout(n, share);
  for (int p = share.first; p < n.pixels; p += share.stride) {
    long at = share.place + p * share.step;
    float normalized = (load(x[at]) - mean) * rstd;
    float grad = before_silu(n, normalized * affine.gain + affine.offset, load(grad_y[at]) * dropout.factor(p));
    sum += grad;
    sum_x += grad * normalized;
  }
  // Each channel's sums, for the gradients of weights, scale and shift.
  __shared__ float parts[2][THREADS];
  parts[0][threadIdx.x] = sum;
  parts[1][threadIdx.x] = sum_x;
  __syncthreads();
  if (threadIdx.x < n.channels_per_group) {
    float sums[2] = {0, 0};
    for (int i = 0; i < share.stride; i++) {
      int thread = n.channels_last ? i * n.channels_per_group + threadIdx.x : threadIdx.x * share.stride + i;
      sums[0] += parts[0][thread];
      sums[1] += parts[1][thread];
    }
    int of_image = blockIdx.y * n.channels + blockIdx.x * n.channels_per_group + threadIdx.x;
    n.sum[of_image] = sums[0];
    n.sum_x[of_image] = sums[1];
  }
  float count = static_cast<float>(n.channels_per_group) * n.pixels;
  float of_mean = block_sum(affine.gain * sum) / count, of_rstd = block_sum(affine.gain * sum_x) / count;
  for (int p = share.first; p < n.pixels; p += share.stride) {
    long at = share.place + p * share.step;
    float normalized = (load(x[at]) - mean) * rstd;
    float grad = before_silu(n, normalized * affine.gain + affine.offset, load(grad_y[at]) * dropout.factor(p));
    grad_x[at] = store(rstd * (affine.gain * grad - of_mean - normalized * of_rstd));
  }
}

#endif
