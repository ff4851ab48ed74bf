"""BVLC Caffe's layer types: one row each, with its learnable blobs, the shapes of its tops, and its settings."""

from __future__ import annotations

from collections.abc import Mapping

from caffe2torch.net import blob_rules as blobs
from caffe2torch.net import data_tops as data
from caffe2torch.net import top_rules as tops
from caffe2torch.net.layer_rules import LayerType, losses, no_blobs, same

__all__ = ["BVLC_LAYERS"]

BVLC_LAYERS: Mapping[str, LayerType] = {
    # layers that learn
    "BatchNorm": LayerType(blobs.batch_norm, same),
    "Bias": LayerType(blobs.bias, same),
    "Convolution": LayerType(blobs.convolution, tops.convolution, counts_outputs=True),
    "Deconvolution": LayerType(blobs.deconvolution, tops.deconvolution, "convolution", counts_outputs=True),
    "Embed": LayerType(blobs.embed, tops.embed, counts_outputs=True),
    "InnerProduct": LayerType(blobs.inner_product, tops.inner_product, counts_outputs=True),
    "LSTM": LayerType(blobs.lstm, tops.recurrent, "recurrent"),
    "PReLU": LayerType(blobs.prelu, same),
    "Parameter": LayerType(blobs.parameter, data.parameter),
    "RNN": LayerType(blobs.rnn, tops.recurrent, "recurrent"),
    "Scale": LayerType(blobs.scale, same),
    # activations and normalizations
    "AbsVal": LayerType(no_blobs, same),
    "BNLL": LayerType(no_blobs, same),
    "Clip": LayerType(no_blobs, same),
    "Dropout": LayerType(no_blobs, same),
    "ELU": LayerType(no_blobs, same),
    "Exp": LayerType(no_blobs, same),
    "LRN": LayerType(no_blobs, tops.lrn),
    "Log": LayerType(no_blobs, same),
    "MVN": LayerType(no_blobs, same),
    "Power": LayerType(no_blobs, same),
    "ReLU": LayerType(no_blobs, same),
    "Sigmoid": LayerType(no_blobs, same),
    "Softmax": LayerType(no_blobs, same),
    "Swish": LayerType(no_blobs, same),
    "TanH": LayerType(no_blobs, same),
    "Threshold": LayerType(no_blobs, same),
    # windows and shapes
    "ArgMax": LayerType(no_blobs, tops.arg_max),
    "BatchReindex": LayerType(no_blobs, tops.batch_reindex),
    "Concat": LayerType(no_blobs, tops.concat),
    "Crop": LayerType(no_blobs, tops.crop),
    "Eltwise": LayerType(no_blobs, tops.eltwise),
    "Filter": LayerType(no_blobs, tops.filter_),
    "Flatten": LayerType(no_blobs, tops.flatten),
    "Im2col": LayerType(no_blobs, tops.im2col, "convolution"),
    "LSTMUnit": LayerType(no_blobs),  # only inside Caffe's own LSTM
    "Pooling": LayerType(no_blobs, tops.pooling),
    "Reduction": LayerType(no_blobs, tops.reduction),
    "Reshape": LayerType(no_blobs, tops.reshape),
    "SPP": LayerType(no_blobs, tops.spp),
    "Silence": LayerType(no_blobs),
    "Slice": LayerType(no_blobs, tops.slice_),
    "Split": LayerType(no_blobs, same),
    "Tile": LayerType(no_blobs, tops.tile),
    # losses and measures
    "Accuracy": LayerType(no_blobs, tops.accuracy),
    "ContrastiveLoss": LayerType(no_blobs, losses),
    "EuclideanLoss": LayerType(no_blobs, losses),
    "HingeLoss": LayerType(no_blobs, losses),
    "InfogainLoss": LayerType(no_blobs, losses),
    "MultinomialLogisticLoss": LayerType(no_blobs, losses),
    "SigmoidCrossEntropyLoss": LayerType(no_blobs, losses),
    "SoftmaxWithLoss": LayerType(no_blobs, tops.softmax_loss, "softmax"),
    # data
    "Data": LayerType(no_blobs, data.images),
    "DummyData": LayerType(no_blobs, data.dummy_data),
    "HDF5Data": LayerType(no_blobs, data.unknown),
    "HDF5Output": LayerType(no_blobs),
    "ImageData": LayerType(no_blobs, data.images),
    "Input": LayerType(no_blobs, data.input_),
    "MemoryData": LayerType(no_blobs, data.memory_data),
    "WindowData": LayerType(no_blobs, data.images),
}
