"""Caffe's solvers and rate policies as torch optimizers and schedulers."""
