"""The operations that a program of an exported folder may use: they compute on tensors and do nothing else.

None reads or writes a file, changes its arguments, gives uninitialised memory, or takes a function. What an exported
backbone needs beyond them is refused when it is written.
"""

_ATEN = """
__and__.Tensor _to_copy.default _upsample_bicubic2d_aa.default _upsample_bicubic2d_aa.vec _upsample_bilinear2d_aa.vec
abs.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_max_pool2d.default add.Scalar add.Tensor
addcmul.default addmm.default alias.default amax.default amin.default any.default any.dim arange.default arange.start
arange.start_step argmax.default argmin.default avg_pool1d.default avg_pool2d.default batch_norm.default
bitwise_and.Tensor bitwise_not.default bitwise_or.Tensor bmm.default cat.default ceil.default chunk.default
clamp.Tensor clamp.default clamp_max.default clamp_min.default clone.default col2im.default constant_pad_nd.default
contiguous.default conv1d.default conv2d.default conv2d.padding conv_transpose2d.input cos.default cumsum.default
detach.default div.Scalar div.Tensor div.Tensor_mode dropout.default einsum.default elu.default embedding.default
eq.Scalar eq.Tensor erf.default exp.default expand.default expand_as.default eye.default eye.m feature_dropout.default
flatten.using_ints flip.default floor.default full.default full_like.default gather.default ge.Scalar ge.Tensor
gelu.default glu.default group_norm.default gt.Scalar gt.Tensor hardsigmoid.default hardswish.default hardtanh.default
im2col.default index.Tensor index_select.default instance_norm.default layer_norm.default le.Scalar le.Tensor
leaky_relu.default lift_fresh_copy.default linalg_vector_norm.default linear.default log.default log_softmax.int
logical_and.default logical_not.default logical_or.default lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor
matmul.default max.dim max.other max_pool2d.default maximum.default mean.default mean.dim meshgrid.indexing min.dim
min.other minimum.default mish.default movedim.int movedim.intlist mul.Scalar mul.Tensor narrow.default ne.Scalar
ne.Tensor neg.default new_full.default new_ones.default new_zeros.default one_hot.default ones.default
ones_like.default pad.default permute.default pixel_shuffle.default pixel_unshuffle.default pow.Scalar
pow.Tensor_Scalar pow.Tensor_Tensor prelu.default reciprocal.default relu.default relu6.default repeat.default
repeat_interleave.self_int reshape.default reshape_as.default rms_norm.default roll.default round.default rsqrt.default
rsub.Scalar scalar_tensor.default scaled_dot_product_attention.default select.int sigmoid.default silu.default
sin.default slice.Tensor softmax.int softplus.default split.Tensor split_with_sizes.default sqrt.default square.default
squeeze.default squeeze.dim squeeze.dims stack.default std.correction sub.Scalar sub.Tensor sum.default sum.dim_IntList
swapaxes.default sym_size.int t.default tanh.default tensor_split.sections tile.default to.device to.dtype
to.dtype_layout topk.default transpose.int triu.default type_as.default unbind.int unflatten.int unfold.default
unsqueeze.default upsample_bicubic2d.vec upsample_bilinear2d.vec upsample_nearest2d.vec var.correction
var_mean.correction view.default view_as.default where.ScalarOther where.ScalarSelf where.self zeros.default
zeros_like.default
"""

OPERATORS = frozenset(f"aten.{name}" for name in _ATEN.split()) | frozenset(
    f"python.{name}" for name in ("getitem", "add", "sub", "mul", "floordiv", "mod", "neg")
)
