"""Built-in models, faithful to their Caffe originals."""
