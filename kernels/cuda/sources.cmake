# The sources of the CUDA backend, shared by the build with nvcc and the one on the emulator.
set(VERBATIM_CUDA_KERNELS
  attention.cu
  embedding.cu
  gather_rows.cu
  gemm_pinned.cu
  gemm_portable.cu
  kv_write.cu
  rms_norm.cu
  rope.cu
  sampling.cu
  swiglu.cu)
set(VERBATIM_CUDA_HOST_SOURCES
  batch_tables.cc
  cuda_backend.cc
  cuda_kv_cache.cc
  cuda_matrix.cc
  cuda_operations.cc
  cuda_sampler.cc
  device_memory.cc
  weight_packing.cc)
# Run on the emulator in every build and on a GPU by scripts/gpu-suite.
set(VERBATIM_CUDA_TESTS
  attention_test
  cuda_sampler_test
  gemm_pinned_test
  gemm_portable_test
  row_operations_test)
