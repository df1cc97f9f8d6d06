// PyTorch's CUDA headers name types of CUDA's large libraries, which a collective has no use for: names suffice, and spare the
// gigabyte of packages that bring the real headers.
#pragma once

typedef struct cusparseContext *cusparseHandle_t;
typedef enum { CUSPARSE_STATUS_SUCCESS } cusparseStatus_t;
