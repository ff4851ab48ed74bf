"""caffe2torch: carry how a Caffe network learned over to PyTorch, checked."""
