"""What `ift.models.kernels` uses of the package liger-kernel, for Llamas, computed by torch on any device."""
