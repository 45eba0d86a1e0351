"""A Keras model becomes a network of torch that computes the same. Every layer of the table is compared with Keras itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kerasmodels import Input, L, keras, randomised

from edgeprune.errors import UsageError
from edgeprune.frontends.keras import compare
from edgeprune.frontends.keras.build import build
from edgeprune.frontends.keras.graph import LayerGraph

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, of keras on its torch backend


def same(model: Any) -> LayerGraph:
    """The network, after its outputs were compared with those of Keras."""
    random = torch.Generator().manual_seed(0)
    given = [torch.rand(2, *tensor.shape[1:], generator=random) for tensor in model.inputs]
    network = build(randomised(model)).module.eval()
    with torch.no_grad():
        expected = keras.tree.flatten(model(given[0] if len(given) == 1 else given, training=False))
        found = network(*given)
    for one, other in zip(expected, found if isinstance(found, tuple) else (found,), strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= 1e-4 * float(one.abs().max())
    return network


def of(shape: tuple[int, ...], *layers: Any) -> LayerGraph:
    return same(keras.Sequential([Input(shape), *layers]))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_convolutions_pad_and_step_as_in_keras(padding: str, stride: int, window: int) -> None:
    for size in (10, 11):
        of((size, 4), L.Conv1D(6, window, strides=stride, padding=padding, activation="relu"))
        of((size, size, 4), L.Conv2D(6, window, strides=stride, padding=padding, activation="tanh"))
        of((size, size, 4), L.DepthwiseConv2D(window, strides=stride, padding=padding, depth_multiplier=2))
        of((size, size, 4), L.SeparableConv2D(5, window, strides=stride, padding=padding))
        of((size, size, 4), L.Conv2DTranspose(5, window, strides=stride, padding=padding, activation="tanh"))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_pools_pad_as_in_keras(padding: str) -> None:
    for window, stride in ((2, 2), (3, 2), (3, 1), (2, 3), (4, 2)):
        of((11, 4), L.MaxPooling1D(window, stride, padding))
        of((11, 10, 4), L.MaxPooling2D(window, stride, padding))
    for window, stride in ((2, 2), (3, 1), (3, 3)):
        of((10, 10, 4), L.AveragePooling2D(window, stride, padding))


def test_padding_counts_in_no_average() -> None:
    """As on TensorFlow and JAX. On torch, Keras repeats the border instead."""
    network = build(keras.Sequential([Input((4, 4, 1)), L.AveragePooling2D(3, 2, "same")])).module
    image = torch.arange(16.0).reshape(1, 4, 4, 1)
    corner = image[0, 2:, 2:, 0].mean()  # the last window reaches one position over the border
    assert network(image)[0, 1, 1, 0] == pytest.approx(float(corner))


LAYERS: list[tuple[tuple[int, ...], Callable[[], list[Any]]]] = [
    ((9, 4), lambda: [L.Conv1D(5, 3, padding="causal", dilation_rate=2)]),
    ((9, 4), lambda: [L.SeparableConv1D(5, 3, strides=2, padding="same"), L.DepthwiseConv1D(3)]),
    ((9, 4), lambda: [L.Conv1DTranspose(5, 3, strides=2, padding="same")]),
    ((6, 6, 6, 4), lambda: [L.Conv3D(5, 3, padding="same", strides=2), L.Conv3DTranspose(4, 2, strides=2)]),
    ((6, 6, 6, 4), lambda: [L.MaxPooling3D(2), L.AveragePooling3D(2), L.GlobalAveragePooling3D()]),
    ((8, 8, 4), lambda: [L.Conv2D(6, 3, dilation_rate=2, groups=2), L.Conv2DTranspose(4, 3, dilation_rate=2)]),
    ((8, 8, 4), lambda: [L.Conv2D(4, 1), L.BatchNormalization(), L.BatchNormalization(scale=False, center=False)]),
    ((8, 8, 4), lambda: [L.Conv2D(4, 1), L.LayerNormalization(), L.GroupNormalization(2), L.BatchNormalization()]),
    ((8, 8, 4), lambda: [L.Conv2D(4, 3), L.Flatten(), L.Dense(3, activation="softmax"), L.BatchNormalization()]),
    ((8, 8, 4), lambda: [L.ZeroPadding2D(((1, 2), (0, 3))), L.Cropping2D(((1, 0), (2, 1))), L.Dense(3)]),
    ((8, 8, 4), lambda: [L.UpSampling2D((2, 3), interpolation="bilinear"), L.UpSampling2D(2), L.Resizing(12, 13)]),
    ((8, 8, 4), lambda: [L.GlobalMaxPooling2D(keepdims=True), L.Reshape((4,)), L.Reshape((1, 1, 4)), L.Conv2D(3, 1)]),
    ((8, 8, 4), lambda: [L.AdaptiveAveragePooling2D(2), L.Permute((2, 1, 3)), L.Reshape((2, -1)), L.Flatten()]),
    (
        (8, 8, 3),
        lambda: [L.RandomFlip(), L.RandomRotation(0.1), L.RandomZoom(0.1), L.RandomContrast(0.1), L.Conv2D(3, 1)],
    ),
    ((8, 8, 4), lambda: [L.SpatialDropout2D(0.2), L.Dropout(0.2), L.GaussianNoise(0.1), L.Conv2D(3, 1)]),
    ((8, 8, 3), lambda: [L.Rescaling(1 / 127.5, -1), L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])]),
    ((8, 8, 4), lambda: [L.Conv2D(3, 3), L.PReLU(shared_axes=[1, 2]), L.Softmax(axis=1)]),
    ((8, 8, 4), lambda: [L.Conv2D(3, 3), L.ReLU(6.0), L.ReLU(3.0, 0.1, 0.2), L.LeakyReLU(0.3), L.ELU(0.5)]),
    ((4, 8, 8), lambda: [L.Conv2D(6, 3, strides=2, padding="same", data_format="channels_first"), L.Flatten()]),
    ((7,), lambda: [L.Embedding(10, 6), L.Conv1D(8, 3), L.GlobalMaxPooling1D(), L.RepeatVector(3)]),
    ((7, 5), lambda: [L.TimeDistributed(L.Dense(3)), L.LSTM(4, return_sequences=True), L.GRU(3), L.Dense(2)]),
    ((7, 5), lambda: [L.GRU(4, return_sequences=True, go_backwards=True, use_bias=False), L.SimpleRNN(3)]),
    ((7, 5), lambda: [L.Bidirectional(L.LSTM(4, return_sequences=True)), L.Bidirectional(L.GRU(3))]),
    ((7, 5), lambda: [L.Bidirectional(L.GRU(4, return_sequences=True), "ave"), L.Bidirectional(L.LSTM(3), "mul")]),
    ((7, 5), lambda: [L.SimpleRNN(4, activation="relu"), L.RMSNormalization(), L.UnitNormalization()]),
    ((3, 8, 8, 2), lambda: [L.TimeDistributed(L.Conv2D(4, 3, 2, activation="relu")), L.TimeDistributed(L.Flatten())]),
    ((3, 8, 8, 2), lambda: [L.TimeDistributed(keras.Sequential([L.Conv2D(4, 3), L.GlobalMaxPooling2D()])), L.GRU(3)]),
    ((9, 8, 3), lambda: [L.CenterCrop(6, 5), L.Conv2D(4, 3, activation=L.LeakyReLU(0.3)), L.Dense(3, L.Softmax())]),
]


@pytest.mark.parametrize(("shape", "layers"), LAYERS, ids=lambda value: "" if callable(value) else str(value))
def test_layers_compute_what_keras_computes(shape: tuple[int, ...], layers: Callable[[], list[Any]]) -> None:
    of(shape, *layers())


def test_activations_compute_what_keras_computes() -> None:
    names = """relu relu6 sigmoid tanh silu gelu elu selu celu mish softplus softsign hard_sigmoid hard_silu hard_tanh
        leaky_relu log_sigmoid tanh_shrink hard_shrink soft_shrink exponential softmax log_softmax linear"""
    for name in names.split():
        of((6, 6, 3), L.Conv2D(4, 3, activation=name), L.Activation(name))


def test_operations_and_merges_compute_what_keras_computes() -> None:
    image = Input((8, 8, 3))
    a, b = L.Conv2D(4, 3, padding="same")(image), L.Conv2D(4, 1)(image)
    scale = L.Conv2D(4, 1, activation="sigmoid")(L.Reshape((1, 1, 4))(L.GlobalAveragePooling2D()(a)))
    merges = [L.Add(), L.Multiply(), L.Average(), L.Maximum(), L.Minimum(), L.Subtract(), L.Concatenate()]
    merged = [merge([a, b]) for merge in (*merges, L.Concatenate(axis=1))]
    same(
        keras.Model(image, [*merged, L.Multiply()([a, scale]), (a + 3.0) * (1 / 6), 1.0 - b, a / 2, keras.ops.relu6(a)])
    )


def test_functions_and_indices_compute_what_keras_computes() -> None:
    image, ops = Input((6, 8, 3)), keras.ops
    x = ops.abs(L.Conv2D(4, 3, padding="same")(image)) + 0.1
    means = [ops.mean(x, axis=[1, 2]), ops.max(x, axis=-1), ops.sum(x, axis=3, keepdims=True), ops.min(x, axis=1)]
    parts = [x[:, 0], x[:, :, -1, 1:3], x[..., ::2], x[:, 1:-1, None]]
    elements = [ops.sqrt(x), ops.square(ops.exp(-x)), ops.log(x), ops.gelu(x), ops.gelu(x, False), ops.softmax(x, 2)]
    flat = ops.reshape(x, (-1, 48, 4))
    moved = [ops.transpose(x, (0, 3, 1, 2)), ops.expand_dims(flat, 1), ops.squeeze(ops.expand_dims(flat, 1), 1)]
    joined = [ops.concatenate([x, x * 2.0], axis=-1), ops.matmul(flat, ops.transpose(flat, (0, 2, 1)))]
    joined += [ops.stack([x, x * 2.0], axis=1), ops.clip(x, 0.2, 0.5), *ops.split(x, 2, -1), *ops.split(x, [1, 4], 2)]
    same(keras.Model(image, [*means, *parts, *elements, *moved, *joined]))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_computes_what_keras_computes(causal: bool) -> None:
    words = Input((7, 6))
    heads = L.MultiHeadAttention(3, 4, value_dim=5)
    attended = heads(words, words * 2.0, key=words - 1.0, use_causal_mask=causal)
    same(keras.Model(words, L.LayerNormalization()(words + attended)))


def test_a_recurrence_returns_its_states_and_takes_first_ones() -> None:
    words, others = Input((7, 5)), Input((6, 5))
    _, *states = L.LSTM(4, return_state=True)(words)
    _, state = L.GRU(4, return_state=True)(words)
    found = L.LSTM(4, return_sequences=True)(others, initial_state=states), L.GRU(4)(others, initial_state=[state])
    same(keras.Model([words, others], [*states, *found]))


@pytest.mark.parametrize("normalised", [False, True])
def test_products_of_two_inputs_compute_what_keras_computes(normalised: bool) -> None:
    a, b, vector = Input((4, 6)), Input((6, 5)), Input((6,))
    pairs = [
        ([a, b], (2, 1)),
        ([a, a], -1),
        ([a, a], 1),
        ([a, vector], (2, 1)),
        ([b, vector], 1),
        ([vector, vector], -1),
    ]
    same(keras.Model([a, b, vector], [L.Dot(axes, normalize=normalised)(given) for given, axes in pairs]))


def test_attention_takes_a_mask_as_an_input() -> None:
    words, mask = Input((7, 6)), Input((7, 7), dtype="bool")
    model = keras.Model([words, mask], L.MultiHeadAttention(3, 4)(words, words, attention_mask=mask))
    network = build(randomised(model)).module.eval()
    assert compare.difference(model, network) is None and compare.examples(model)[1].any()


def test_a_model_of_mixed_precision_is_compared_as_such() -> None:
    model = keras.Sequential([Input((8,)), L.Dense(16, dtype="mixed_float16"), L.Dense(3, dtype="float32")])
    network = build(randomised(model)).module.eval()
    assert compare.difference(model, network) is None
    with torch.no_grad():
        next(network.parameters()).mul_(1.2)
    assert "output differs" in str(compare.difference(model, network))


def test_shared_layers_and_models_stay_shared() -> None:
    inner = keras.Sequential([Input((8, 8, 3)), L.Conv2D(4, 3, padding="same"), L.BatchNormalization()], name="inner")
    shared = L.Conv2D(3, 3, padding="same", name="shared")
    one, other = Input((8, 8, 3)), Input((8, 8, 3))
    both = L.Concatenate()([inner(one), inner(shared(shared(other)))])
    network = same(keras.Model([one, other], L.GlobalAveragePooling2D()(both)))
    assert sum(name.endswith("weight") for name, _ in network.named_parameters()) == 3


def test_a_shared_layer_that_needs_two_paddings_is_named() -> None:
    shared = L.Conv2D(3, 3, strides=2, padding="same", name="shared")
    one, other = Input((8, 8, 3)), Input((9, 9, 3))
    with pytest.raises(UsageError, match="'shared' is shared by inputs of different sizes"):
        build(keras.Model([one, other], [shared(one), shared(other)]))


@pytest.mark.parametrize(
    ("shape", "layer", "message"),
    [
        ((8,), lambda: L.SpectralNormalization(L.Dense(2), name="s"), r"layer 's' \(SpectralNorm.*does not know"),
        ((4, 4, 3), lambda: L.CenterCrop(5, 3, name="crop"), "layer 'crop'.*fixed size that is not smaller"),
        ((7, 5), lambda: L.Bidirectional(L.GRU(4), None, name="both"), "layer 'both'.*merge_mode=None"),
        ((7, 5), lambda: L.GRU(4, reset_after=False, name="gru"), "layer 'gru'.*only reset_after=True"),
        ((7, 5), lambda: L.LSTM(4, activation="relu", name="lstm"), "layer 'lstm'.*only activation='tanh'"),
        ((8, 8, 3), lambda: L.UpSampling2D(2, interpolation="bicubic", name="up"), "layer 'up'.*'bicubic'"),
        ((None, None, 3), lambda: L.Conv2D(3, 3, strides=2, padding="same"), "input of fixed size"),
    ],
)
def test_what_cannot_be_converted_is_named(shape: Any, layer: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(keras.Sequential([Input(shape), layer()]))


PADDED = [[3, 2, 1, 2, 3, 0, 0], [0, 0, 0, 2, 1, 3, 1], [0, 3, 0, 0, 2, 1, 0], [1, 2, 3, 1, 2, 3, 1], [0] * 7]
MASKED: dict[str, Callable[[], list[Any]]] = {
    "LSTM": lambda: [L.LSTM(4)],
    "GRU of sequences": lambda: [L.GRU(4, return_sequences=True), L.SimpleRNN(3)],
    "backwards": lambda: [L.LSTM(4, go_backwards=True, return_sequences=True)],
    "zeros": lambda: [L.GRU(4, return_sequences=True, zero_output_for_mask=True)],
    "both ways": lambda: [L.Bidirectional(L.LSTM(4, return_sequences=True)), L.Bidirectional(L.GRU(3))],
    "layers between": lambda: [L.Dense(5, activation="relu"), L.Dropout(0.1), L.LayerNormalization(), L.LSTM(3)],
    "a layer that drops the mask": lambda: [L.Conv1D(5, 3), L.LSTM(3)],
    "time distributed": lambda: [L.TimeDistributed(L.Dense(3)), L.GRU(3)],
}


def require_masked(model: Any, *given: torch.Tensor) -> None:
    """A network computes what the model does, for samples that are padded behind, in front, inside, not and all over."""
    network = build(randomised(model)).module.eval()
    with torch.no_grad():
        expected, found = model(given[0] if len(given) == 1 else list(given), training=False), network(*given)
    assert float((expected - found).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")
@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("source", ["Embedding", "Masking"])
def test_steps_that_are_masked_do_not_count(source: str, name: str) -> None:
    words = torch.tensor(PADDED, dtype=torch.float32)
    if source == "Embedding":
        layers = [Input((7,)), L.Embedding(4, 5, mask_zero=True), *MASKED[name]()]
        require_masked(keras.Sequential(layers), words)
    else:
        layers = [Input((7, 2)), L.Masking(0.5), *MASKED[name]()]
        require_masked(keras.Sequential(layers), torch.where(words == 0, 0.5, words)[..., None].repeat(1, 1, 2))


def test_masked_steps_count_in_no_mean_and_get_no_attention() -> None:
    words = Input((7,))
    x = L.Embedding(4, 6, mask_zero=True)(words)
    given = torch.tensor(PADDED[:4], dtype=torch.float32)
    require_masked(keras.Model(words, L.GlobalAveragePooling1D()(x)), given)
    for causal in (False, True):
        attended = L.MultiHeadAttention(3, 4)(x, x, use_causal_mask=causal)
        require_masked(keras.Model(words, L.GlobalAveragePooling1D()(L.Add()([x, attended]))), given)
    other = Input((5,))
    key = L.Embedding(4, 6, mask_zero=True)(other)
    crossed = L.MultiHeadAttention(3, 4)(query=x, value=key, key=L.Dense(6)(key))
    require_masked(keras.Model([words, other], L.GRU(3)(crossed)), given, given[:, 2:])


def test_a_sum_of_masked_sequences_counts_where_either_does() -> None:
    words, other = Input((7,)), Input((7,))
    x, y = (L.Embedding(4, 3, mask_zero=True)(given) for given in (words, other))
    given = torch.tensor(PADDED, dtype=torch.float32)
    require_masked(keras.Model([words, other], L.LSTM(3)(L.Add()([x, y]))), given, given.flip(0))


def test_masks_that_cannot_be_converted_are_named() -> None:
    words = Input((7,))
    x = L.Embedding(4, 3, mask_zero=True)(words)
    for outputs, message in (
        (L.LSTM(3, return_state=True, name="lstm")(x), "layer 'lstm'.*a mask is not supported with return_state=True"),
        (L.LSTM(3)(L.Concatenate()([x, L.Dense(2)(x)])), "layer 'zeros_like.*does not know"),
    ):
        with pytest.raises(UsageError, match=message):
            build(keras.Model(words, outputs))


def test_a_model_without_a_graph_says_what_to_do() -> None:
    class Own(keras.Model):
        pass

    for model in (Own(name="own"), keras.Sequential([L.Dense(3)], name="open")):
        with pytest.raises(UsageError, match=f"the model '{model.name}'.*or write the network in torch"):
            build(model)
