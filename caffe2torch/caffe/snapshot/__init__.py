"""What a Caffe run left behind: ``.caffemodel`` and ``.solverstate`` to arrays."""
