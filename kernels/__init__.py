"""Fused operations on tensors; knows no diffusion."""
